// The page on a history and dead letters that were made for it: no engine, no registry, no git server.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Browser, Service, check, shoot, until } from "./harness.mjs";

const BUILDS = 1000;
let [service, browser] = [];

before(async () => {
  browser = await Browser.start();
  service = await Service.start({ builds: BUILDS, letters: 7 });
});

after(async () => {
  await browser?.stop();
  await service?.stop();
});

test("an empty service says what to do next", async () => {
  const empty = await Service.start();
  try {
    const page = await browser.page(empty);
    await page.goto("/");
    assert.match(await page.textContent(".empty"), /image-builder submit owner\/name --wait/);
    await check(page, "empty");
    await shoot(page, "empty");
    await page.goto("/dead");
    assert.match(await page.textContent(".empty"), /No dead letters/);
    await check(page, "no letters");
    await page.goto("/");
    await page.click(".empty a");
    await page.waitForURL("**/new");
    await check(page, "new build");
    await page.goto("/");
    await empty.kill();
    await page.waitForSelector("#stale:not([hidden])");
  } finally {
    await empty.stop();
  }
});

test("a thousand builds are counted, paged through and searched", async () => {
  const page = await browser.page(service);
  await page.goto("/");
  assert.equal((await page.textContent("#tab- .count")).replace("\u2009", ""), String(BUILDS));
  await check(page, "builds");
  await shoot(page, "builds");
  assert.equal(await page.locator(".row-link").count(), 50);
  const first = await page.locator(".row-link").first().getAttribute("href");
  await page.click("text=Older");
  await page.waitForURL("**cursor=**");
  assert.equal(await page.locator(".row-link").count(), 50);
  assert.notEqual(await page.locator(".row-link").first().getAttribute("href"), first);
  await page.click("text=Newest");
  await page.click("#tab-failed");
  await page.waitForURL("**state=failed**");
  const states = await page.locator(".c-state .state").allTextContents();
  assert.ok(states.length > 40 && states.every((state) => state === "Failed"), states.join());
  await page.fill("#q", "alice");
  await page.press("#q", "Enter");
  await page.waitForURL("**q=alice**");
  assert.ok((await page.locator(".c-user").allTextContents()).every((user) => user === "alice"));
  assert.match(page.url(), /state=failed/);
  for (const [search, count] of [["nobody", 0], ["shop-7", 1], ["carol/blog", 1]]) {
    await page.goto(`/?q=${encodeURIComponent(search)}`);
    const found = await page.locator(".row-link").count();
    assert.ok(count ? found >= count : found === 0, `${search}: ${found}`);
  }
  await page.goto("/?q=nobody");
  await check(page, "nothing found");
});

test("the keyboard reaches everything, and the focus is seen", async () => {
  const page = await browser.page(service);
  await page.goto("/");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the content");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.id), "q");
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.notEqual(outline, "none");
  // It stays where it is while the list is brought up to date.
  await page.focus(".row-link");
  const focused = await page.evaluate(() => document.activeElement.id);
  await page.waitForResponse((answer) => new URL(answer.url()).pathname === "/");
  await page.waitForResponse((answer) => new URL(answer.url()).pathname === "/");
  assert.equal(await page.evaluate(() => document.activeElement.id), focused);
  await page.keyboard.press("Enter");
  await page.waitForURL("**/builds/**");
});

test("a build that failed says why, and one that is ready where its image is", async () => {
  const page = await browser.page(service);
  await page.goto("/?state=failed");
  await page.locator(".row-link").first().click();
  assert.match(await page.textContent(".callout.failed"), /exit code 1: the lock file does not fit/);
  assert.equal(await page.locator(".attempt.failed").count(), 2);
  await page.waitForSelector(".log .row");
  assert.match(await page.textContent(".log"), /error <script>alert\(1\)<\/script>/);
  assert.equal(await page.locator(".log script").count(), 0);
  await check(page, "failed");
  await shoot(page, "failed");
  await page.goto("/?state=ready");
  await page.locator(".row-link").first().click();
  await page.click("[data-copy]");
  const copied = await page.evaluate(() => navigator.clipboard.readText());
  assert.match(copied, /^docker pull registry\.example\/\w+\/[\w-]+@sha256:[0-9a-f]{64}$/);
  await check(page, "ready");
  await shoot(page, "ready");
  await page.click("#again");
  assert.equal(await page.inputValue("#type"), "commit");
  assert.match(await page.inputValue("#reference"), /^[0-9a-f]{40}$/);
  await check(page, "build again");
});

test("a long log is paged through, searched and linked to, and holds few lines at once", async () => {
  const page = await browser.page(service);
  await page.goto("/?q=shop-0");
  await page.locator(".row-link").first().click();
  await page.waitForSelector(".log .row");
  const rows = () => page.locator(".log .row").count();
  const text = (line) => page.textContent(`#L${line} .text`);
  await until("the end is shown", async () => (await page.locator("#L20002").count()) === 1);
  assert.ok((await rows()) <= 2000);
  assert.equal(await page.textContent(".found"), "20,002 lines");
  await page.click("text=Earlier lines");
  await until("earlier lines", async () => (await page.locator("#L18100").count()) === 1);
  assert.ok((await rows()) <= 2000);
  // A link to a line, and what stands there.
  await page.goto(`${page.url().split("#")[0]}#L120`);
  await page.waitForSelector("#L120.here");
  assert.match(await text(120), /transforming \(118\)/);
  assert.ok(await page.locator("#L120").isVisible());
  await page.fill("[aria-label='Search the log']", "(19990)");
  await page.press("[aria-label='Search the log']", "Enter");
  await until("it is found", async () => (await page.textContent(".found")) === "1 of 1");
  assert.match(await page.textContent(".log .here mark"), /\(19990\)/);
  assert.ok((await rows()) <= 2000);
  // Colours are classes, and what a stranger wrote is text.
  assert.ok((await page.locator(".log .f2").count()) > 10);
  assert.equal(await page.locator(".log script, .log [style]").count(), 0);
  await page.click("text=Wrap");
  assert.equal(await page.locator(".log.wrap").count(), 0);
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("text=Download")]);
  assert.equal(download.suggestedFilename(), "shop-0.log");
  await check(page, "log");
  await shoot(page, "log");
});

test("the workers are shown with what they need and who waits", async () => {
  const page = await browser.page(service);
  await page.goto("/workers");
  for (const actor of ["listener", "connector", "builder", "pusher", "notifier", "retry"]) {
    assert.equal(await page.locator(`.plain th:text-is("${actor}")`).count(), 1);
  }
  await check(page, "workers");
  await shoot(page, "workers");
});

test("without its script the page is whole", async () => {
  const page = await browser.page(service, { javaScriptEnabled: false });
  await page.goto("/?q=shop-0");
  await page.locator(".row-link").first().click();
  assert.match(await page.textContent(".log-plain"), /npm warn deprecated/);
  await page.goto("/dead");
  await page.locator("text=Drop…").first().click();
  assert.match(await page.textContent("h1"), /Drop this dead letter\?/);
  await page.click("text=Leave it");
  await page.waitForURL("**/dead/**");
});

test("dead letters are listed, shown, asked for again and dropped", async () => {
  const page = await browser.page(service);
  await page.goto("/dead");
  const count = () => page.locator(".letters tbody tr").count();
  assert.equal(await count(), 7);
  await check(page, "dead letters");
  await shoot(page, "dead");
  await page.locator(".row-link").first().click();
  assert.match(await page.textContent(".log-plain"), /"repo": "alice\/shop"/);
  assert.doesNotMatch(await page.content(), /ghp_0123456789|s3cret/);
  await check(page, "letter");
  await page.click("text=Ask again…");
  await check(page, "redrive");
  await shoot(page, "redrive");
  await page.click("button:text-is('Ask again')");
  assert.match(await page.textContent("main"), /`token`/);
  await page.goBack();
  await page.fill("input[name='given.token']", "ghp_x");
  await page.fill("input[name='given.buildPlan.secrets.npm']", "y");
  await page.click("button:text-is('Ask again')");
  await page.waitForURL("**/builds/**");
  await page.goto("/dead?fault=service");
  const ofService = await count();
  assert.ok(ofService > 0 && ofService < 6);
  await page.click("text=Drop all that match…");
  await check(page, "drop all");
  await page.click("button:text-is('Drop')");
  await page.waitForURL("**/dead?done=**");
  assert.equal(await page.textContent(".note"), `Dropped ${ofService} letters.`);
  // The build that was asked for again may have left a letter of its own by now.
  await page.goto("/dead?fault=service");
  assert.equal(await count(), 0);
});
