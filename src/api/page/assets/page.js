// Keeps a page up to date: it is fetched anew, and what differs is changed in place, so that nothing jumps and the
// focus stays. Without it the page is whole, and as old as when it was loaded.

const pause = (time) => new Promise((done) => setTimeout(done, time));

/** Makes `old` like `fresh`, and keeps of it what is the same. */
function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.isEqualNode(fresh)) return;
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  // Rows are known by their keys: one that is new moves the others, and does not change them.
  const known = new Map();
  for (const child of old.children) if (child.dataset.key) known.set(child.dataset.key, child);
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const same = child.dataset?.key && known.get(child.dataset.key);
    if (same) {
      if (same === at) at = at.nextSibling;
      else old.insertBefore(same, at);
      morph(same, child);
    } else if (!at || child.dataset?.key || at.dataset?.key) {
      old.insertBefore(child, at);
    } else {
      const next = at.nextSibling;
      morph(at, child);
      at = next;
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

/** Offers what only a script can do. */
function equip() {
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = !navigator.clipboard;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copy).textContent.trim();
  button.textContent = await navigator.clipboard.writeText(text).then(() => "Copied", () => "Not copied");
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});

/** Whether somebody would be disturbed: a text is selected there. */
const isSelecting = (region) => {
  const selection = getSelection();
  return !selection.isCollapsed && region.contains(selection.anchorNode);
};

async function follow(region) {
  const stale = document.getElementById("stale");
  let shown;
  for (;;) {
    const every = Number(region.dataset.live);
    if (!every) return;
    await pause(stale.hidden ? every : 5000);
    while (document.hidden) await new Promise((seen) => document.addEventListener("visibilitychange", seen, { once: true }));
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "manual" });
      // The session is over: the login asks for the token, and leads back here.
      if (answer.type === "opaqueredirect") return location.reload();
      if (answer.status >= 500) throw new Error(String(answer.status));
      const text = await answer.text();
      if (text === shown) {
        stale.hidden = true;
        continue;
      }
      const fresh = new DOMParser().parseFromString(text, "text/html");
      const found = fresh.querySelector("[data-live]");
      if (!found) return location.reload();
      stale.hidden = true;
      if (isSelecting(region)) continue;
      morph(region, document.importNode(found, true));
      shown = text;
      document.title = fresh.title;
      const size = fresh.getElementById("log-size");
      if (size) document.getElementById("log-size").textContent = size.textContent;
      equip();
    } catch {
      stale.hidden = false;
    }
  }
}

equip();
for (const region of document.querySelectorAll("[data-live]")) follow(region);
