// A build's log: shown as it comes, searched, and paged through. However long it is, so many lines are held at the
// most, and of the others where every 500th or so begins.

/** Lines that are shown at once. */
const SHOWN = 2000;
/** Lines that are added by a press of a button. */
const STEP = 1000;
/** Lines from one known place to the next, at the least. */
const EVERY = 500;
/** Bytes that are read at once. */
const PART = 256 * 1024;
/** Matches that are found at the most. */
const MOST_FOUND = 1000;
/** Characters of a line that are shown: the rest is in the download. */
const LONGEST_LINE = 4000;

const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "className") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
};

// What would be acted upon, or not be seen: it is shown as a sign of its own.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const visible = (text) => text.replace(UNSEEN, (c) => (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : "\ufffd"));

/** The nearest of the eight colours to one of the 256, or to a mixed one. */
const nearest = (red, green, blue) => (red > 127 ? 1 : 0) + (green > 127 ? 2 : 0) + (blue > 127 ? 4 : 0);
function colourOf(codes) {
  const kind = codes.shift();
  if (kind === 2) {
    const [red = 0, green = 0, blue = 0] = codes.splice(0, 3);
    return nearest(red, green, blue);
  }
  if (kind !== 5) return null;
  const number = codes.shift() ?? 0;
  if (number < 16) return number % 8;
  if (number >= 232) return number > 243 ? 7 : 0;
  const [red, green, blue] = [Math.floor((number - 16) / 36), Math.floor((number - 16) / 6) % 6, (number - 16) % 6];
  return nearest(red * 51, green * 51, blue * 51);
}

/** What is drawn from here on, after a sequence of a terminal. */
function restyle(style, parameters) {
  const codes = parameters.split(/[;:]/).map(Number);
  while (codes.length) {
    const code = codes.shift();
    if (!code) style = {};
    else if (code === 1) style = { ...style, bold: true };
    else if (code === 2) style = { ...style, dim: true };
    else if (code === 3) style = { ...style, italic: true };
    else if (code === 4) style = { ...style, under: true };
    else if (code === 9) style = { ...style, strike: true };
    else if (code === 22) style = { ...style, bold: false, dim: false };
    else if (code === 23) style = { ...style, italic: false };
    else if (code === 24) style = { ...style, under: false };
    else if (code === 29) style = { ...style, strike: false };
    else if (code >= 30 && code <= 37) style = { ...style, front: code - 30 };
    else if (code >= 90 && code <= 97) style = { ...style, front: code - 90 };
    else if (code === 38) style = { ...style, front: colourOf(codes) };
    else if (code === 39) style = { ...style, front: null };
    else if (code >= 40 && code <= 47) style = { ...style, back: code - 40 };
    else if (code >= 100 && code <= 107) style = { ...style, back: code - 100 };
    else if (code === 48) style = { ...style, back: colourOf(codes) };
    else if (code === 49) style = { ...style, back: null };
  }
  return style;
}

const classes = ({ front, back, ...flags }) => [
  ...(Number.isInteger(front) ? [`f${front}`] : []),
  ...(Number.isInteger(back) ? [`b${back}`] : []),
  ...Object.keys(flags).filter((flag) => flags[flag]),
].join(" ");

const SEQUENCE = /\u001b\[([0-?]*)[ -/]*([@-~])/g;

/** A line's pieces, each with its classes. Nothing of it is ever read as HTML. */
function pieces(line) {
  const found = [];
  let [style, from] = [{}, 0];
  const push = (text) => { if (text) found.push([visible(text), classes(style)]); };
  for (const match of line.matchAll(SEQUENCE)) {
    push(line.slice(from, match.index));
    from = match.index + match[0].length;
    if (match[2] === "m") style = restyle(style, match[1]);
  }
  push(line.slice(from));
  return found;
}

const plain = (line) => visible(line.replace(SEQUENCE, ""));

/** The text of a row, with what is searched for marked. */
function drawn(line, wanted) {
  const text = element("span", { className: line.startsWith("=> ") ? "text step" : "text" });
  const cut = line.length > LONGEST_LINE ? `${line.slice(0, LONGEST_LINE)}\u2026` : line;
  for (const [piece, style] of pieces(cut)) {
    const into = style ? element("span", { className: style }) : text;
    const small = piece.toLowerCase();
    let from = 0;
    for (let at; wanted && (at = small.indexOf(wanted, from)) >= 0; from = at + wanted.length) {
      into.append(piece.slice(from, at), element("mark", {}, piece.slice(at, at + wanted.length)));
    }
    into.append(piece.slice(from));
    if (into !== text) text.append(into);
  }
  return text;
}

const lineEnds = (text) => text.replace(/\r\n?/g, "\n");

class Log {
  constructor(place) {
    this.hasEnded = "ended" in place.dataset;
    this.url = new URL(place.dataset.url, location.href);
    /** Lines of which it is known where they begin, in bytes. */
    this.places = [{ line: 1, at: 0 }];
    /** Lines that are known, and the bytes that they fill. */
    this.lines = 0;
    this.bytes = 0;
    /** The first line that is shown, and those behind it. */
    this.first = 1;
    this.rows = [];
    this.follows = true;
    /** Whether lines are being read to be shown, so that those that come are not added. */
    this.busy = false;
    this.wanted = "";
    this.found = [];
    this.at = -1;
    this.build(place);
  }

  build(place) {
    const button = (label, action, pressed) => {
      const made = element("button", { className: "button small", type: "button" }, label);
      if (pressed !== undefined) made.setAttribute("aria-pressed", String(pressed));
      made.addEventListener("click", action);
      return made;
    };
    this.followButton = button("Follow", () => this.setFollows(!this.follows), true);
    this.wrapButton = button("Wrap", () => {
      const wraps = this.view.classList.toggle("wrap");
      this.wrapButton.setAttribute("aria-pressed", String(wraps));
    }, true);
    this.input = element("input", { type: "search", placeholder: "Search the log", "aria-label": "Search the log", spellcheck: "false", autocomplete: "off" });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.search(event.shiftKey ? -1 : 1);
    });
    this.input.addEventListener("input", () => { if (!this.input.value) this.search(1); });
    this.count = element("span", { className: "found", role: "status" });
    const find = element("div", { className: "find" }, this.input,
      button("Previous", () => this.search(-1)), button("Next", () => this.search(1)));
    const tools = element("div", { className: "log-tools", role: "group", "aria-label": "The log" },
      this.followButton, this.wrapButton, this.count, find);
    this.earlier = button("Earlier lines", () => this.showFrom(Math.max(1, this.first - STEP), "end"));
    this.later = button("Later lines", () => this.showFrom(this.first + STEP, "start"));
    for (const more of [this.earlier, this.later]) { more.classList.add("more"); more.hidden = true; }
    this.list = element("div", {});
    this.view = element("div", { className: "log wrap", tabindex: "0", role: "group", "aria-label": "Lines of the log" },
      this.earlier, this.list, this.later);
    // Whoever scrolls up wants to read on.
    this.view.addEventListener("scroll", () => {
      const left = this.view.scrollHeight - this.view.scrollTop - this.view.clientHeight;
      if (this.follows && !this.busy && left > 60) this.setFollows(false);
    }, { passive: true });
    this.list.addEventListener("click", (event) => {
      if (event.target.closest("a")) this.setFollows(false);
    });
    addEventListener("hashchange", () => this.goToHash());
    place.replaceChildren(tools, this.view);
  }

  setFollows(follows) {
    this.follows = follows;
    this.followButton.setAttribute("aria-pressed", String(follows));
    this.describe();
    if (follows) return this.showEnd();
  }

  describe() {
    this.earlier.hidden = this.first <= 1;
    const behind = this.lines - (this.first + this.rows.length - 1);
    this.later.hidden = behind <= 0;
    this.later.textContent = `Later lines (${behind.toLocaleString("en")})`;
    const all = `${this.lines.toLocaleString("en")} lines`;
    if (!this.wanted) this.count.textContent = all;
    else if (this.searching) this.count.textContent = "Searching\u2026";
    else if (!this.found.length) this.count.textContent = "Not found";
    else this.count.textContent = `${this.at + 1} of ${this.found.length}${this.found.length >= MOST_FOUND ? "+" : ""}`;
  }

  row(number, line) {
    const link = element("a", { href: `#L${number}`, "aria-label": `Line ${number}` }, String(number));
    const here = `#L${number}` === location.hash ? "row here" : "row";
    return element("div", { id: `L${number}`, className: here }, link, drawn(line, this.wanted));
  }

  /** Takes lines that follow those that are known; `end` is where they do. */
  take(lines, end, lengths) {
    let at = this.bytes;
    for (const [index, line] of lines.entries()) {
      // Events do not say how long their lines are in the log: where they begin is known of the first one.
      const isKnown = lengths || index === 0;
      if (isKnown && this.lines + 1 - this.places.at(-1).line >= EVERY) this.places.push({ line: this.lines + 1, at });
      this.lines += 1;
      at += lengths?.[index] ?? 0;
      if (this.follows && !this.busy) this.rows.push(line);
    }
    this.bytes = end;
    if (!this.follows || this.busy) return this.describe();
    const beyond = this.rows.length - SHOWN;
    if (beyond > 0) {
      this.rows.splice(0, beyond);
      this.first += beyond;
    }
    const fresh = this.rows.slice(-lines.length);
    this.list.append(...fresh.map((line, index) => this.row(this.lines - fresh.length + 1 + index, line)));
    while (this.list.children.length > this.rows.length) this.list.firstChild.remove();
    this.describe();
    this.view.scrollTop = this.view.scrollHeight;
  }

  /** Reads the lines from one on; calls `each` with their number until it says that it has enough. */
  async read(first, each) {
    const place = this.places.findLast(({ line }) => line <= first);
    let [number, from] = [place.line, place.at];
    while (from < this.bytes) {
      const part = await this.part(from, Math.min(this.bytes, from + PART));
      if (!part.lines.length) return;
      for (const line of part.lines) {
        if (number >= first && each(number, line)) return;
        number += 1;
      }
      from = part.end;
    }
  }

  /** Whole lines of these bytes. */
  async part(from, end) {
    const answer = await fetch(this.url, { headers: { Range: `bytes=${from}-${end - 1}`, Accept: "text/plain" } });
    if (answer.status === 416) return { lines: [], lengths: [], end: from, total: from };
    if (!answer.ok) throw new Error(`The log cannot be read: ${answer.status}`);
    const total = Number(answer.headers.get("Content-Range")?.split("/")[1] ?? answer.headers.get("Content-Length"));
    let bytes = new Uint8Array(await answer.arrayBuffer());
    const last = bytes.lastIndexOf(10);
    // A line that is longer than what is read at once is cut, and so is one that is not ended yet.
    if (last >= 0) bytes = bytes.subarray(0, last + 1);
    else if (!this.hasEnded && bytes.length < PART) bytes = bytes.subarray(0, 0);
    const [lines, lengths] = [[], []];
    const decoder = new TextDecoder();
    for (let at = 0; at < bytes.length;) {
      let stop = bytes.indexOf(10, at);
      if (stop < 0) stop = bytes.length - 1;
      const text = lineEnds(decoder.decode(bytes.subarray(at, stop + 1))).replace(/\n$/, "");
      // What ends a line for a reader of events ends one here: the numbers stay the same.
      for (const [index, line] of text.split("\n").entries()) {
        lines.push(line);
        lengths.push(index ? 0 : stop + 1 - at);
      }
      at = stop + 1;
    }
    return { lines, lengths, end: from + bytes.length, total };
  }

  /** Shows the lines from one on. */
  async showFrom(first, scroll) {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const rows = [];
    this.busy = true;
    await this.read(first, (number, line) => rows.push(line) >= SHOWN);
    if (turn !== this.turn) return;
    this.busy = false;
    const before = this.first;
    this.first = first;
    this.rows = rows;
    this.list.replaceChildren(...rows.map((line, index) => this.row(first + index, line)));
    this.describe();
    if (scroll === "bottom") this.view.scrollTop = this.view.scrollHeight;
    else if (scroll === "end") document.getElementById(`L${before}`)?.scrollIntoView({ block: "start" });
    else if (scroll === "start") document.getElementById(`L${first + SHOWN - STEP}`)?.scrollIntoView({ block: "end" });
  }

  /** Shows the last lines, those that come meanwhile among them. */
  async showEnd() {
    let known;
    do {
      known = this.lines;
      await this.showFrom(Math.max(1, known - STEP + 1), "bottom");
    } while (this.lines > known && this.follows);
  }

  async goTo(number) {
    if (number < 1 || number > this.lines) return;
    if (this.follows) {
      this.follows = false;
      this.followButton.setAttribute("aria-pressed", "false");
    }
    if (number < this.first || number >= this.first + this.rows.length) {
      await this.showFrom(Math.max(1, number - STEP), "none");
    }
    for (const row of this.list.querySelectorAll(".here")) row.classList.remove("here");
    const row = document.getElementById(`L${number}`);
    row?.classList.add("here");
    if (row) this.view.scrollTop += row.getBoundingClientRect().top - this.view.getBoundingClientRect().top - this.view.clientHeight / 3;
    this.describe();
  }

  async goToHash() {
    const number = /^#L(\d+)$/.exec(location.hash)?.[1];
    if (number) await this.goTo(Number(number));
    return Boolean(number);
  }

  /** Finds what is written in the field, and goes to the next or the previous place. */
  async search(step) {
    const wanted = this.input.value.toLowerCase();
    if (wanted !== this.wanted || this.searched !== this.lines) {
      const again = wanted === this.wanted && this.found[this.at];
      this.wanted = wanted;
      [this.found, this.at, this.searched] = [[], -1, this.lines];
      this.searching = true;
      this.describe();
      if (wanted) {
        await this.read(1, (number, line) => {
          if (plain(line).toLowerCase().includes(wanted)) this.found.push(number);
          return this.found.length >= MOST_FOUND || wanted !== this.wanted;
        });
      }
      if (wanted !== this.wanted) return;
      this.searching = false;
      if (again) this.at = this.found.indexOf(again);
      this.list.replaceChildren(...this.rows.map((line, index) => this.row(this.first + index, line)));
    }
    if (this.found.length) {
      if (this.at < 0 && step < 0) this.at = 0;
      this.at = (this.at + step + this.found.length) % this.found.length;
      await this.goTo(this.found[this.at]);
    }
    this.describe();
  }

  /** What is there by now. */
  async load() {
    this.busy = true;
    for (let part; !part || (part.lines.length && part.end < part.total);) {
      part = await this.part(this.bytes, this.bytes + PART);
      this.take(part.lines, part.end, part.lengths);
    }
    this.busy = false;
  }

  /** And what comes. Its offset says where we are: a service that was away goes on from there. */
  live() {
    const url = new URL(this.url);
    url.searchParams.set("offset", this.bytes);
    const events = new EventSource(url);
    events.onmessage = ({ data, lastEventId }) => {
      const end = Number(lastEventId);
      if (end < this.bytes) return location.reload();
      this.take(data.split("\n"), end);
    };
    events.addEventListener("end", () => events.close());
    addEventListener("pagehide", () => events.close());
    addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  }
}

const place = document.getElementById("log");
if (place) {
  const end = place.querySelector(".log-plain").cloneNode(true);
  const log = new Log(place);
  try {
    await log.load();
    const isAsked = await log.goToHash();
    if (!isAsked) await log.showEnd();
    if (log.hasEnded) {
      log.follows = false;
      log.followButton.hidden = true;
    } else {
      log.live();
    }
  } catch {
    place.replaceChildren(end);
  }
}
