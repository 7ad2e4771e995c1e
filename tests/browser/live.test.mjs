// The page while real builds run, and with a token: on the stack's engine, registry and git server.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Browser, Service, check, repository, shoot, until } from "./harness.mjs";

const TOKEN = "a-token-of-the-tests";
const ESC = "\\033";
const DOCKERFILE = `FROM debian:bookworm-slim
RUN echo "${ESC}[32mgreen${ESC}[0m and <script>alert(1)</script>"; for i in $(seq 1 40); do echo "step $i"; sleep 0.1; done
`;
const unique = `p${Date.now().toString(36)}`;
let [service, browser, works, fails, sleeps] = [];

before(async () => {
  browser = await Browser.start();
  service = await Service.start({ settings: { API_TOKEN: TOKEN } });
  works = repository(`${unique}/works`, { Dockerfile: DOCKERFILE });
  fails = repository(`${unique}/fails`, { Dockerfile: "FROM debian:bookworm-slim\nRUN echo compiling; cc --version\n" });
  sleeps = repository(`${unique}/sleeps`, { Dockerfile: "FROM debian:bookworm-slim\nRUN echo asleep; sleep 300\n" });
});

after(async () => {
  await browser?.stop();
  await service?.stop();
});

/** A page of somebody who is logged in. */
async function logged(options) {
  const page = await browser.page(service, options);
  await page.goto("/login");
  await page.fill("#token", TOKEN);
  await page.click("button:text-is('Log in')");
  await page.waitForURL((url) => url.pathname === "/");
  return page;
}

async function submit(page, repo, fields = {}) {
  await page.goto("/new");
  await page.fill("#user", unique);
  await page.fill("#repo", repo);
  for (const [name, value] of Object.entries(fields)) await page.fill(name, value);
  await page.click("button:text-is('Build')");
  await page.waitForURL("**/builds/**");
}

const state = (page) => page.textContent("h1 .state");
const becomes = (page, wanted) => until(wanted, async () => (await state(page)) === wanted);

test("nothing is shown before the login, and the session has every guard", async () => {
  const page = await browser.page(service);
  await page.goto("/dead");
  await page.waitForURL("**/login?next=%2Fdead");
  await check(page, "login");
  await page.fill("#token", "a guess");
  await page.click("button:text-is('Log in')");
  assert.equal(await page.textContent("#wrong"), "This is not the token of this service.");
  await check(page, "wrong token");
  await shoot(page, "login");
  await page.fill("#token", TOKEN);
  await page.click("button:text-is('Log in')");
  await page.waitForURL("**/dead");
  const [cookie, ...others] = await page.context().cookies();
  assert.equal(others.length, 0);
  assert.ok(cookie.httpOnly && cookie.sameSite === "Strict" && !cookie.value.includes(TOKEN));
  await page.click("button:text-is('Log out')");
  await page.waitForURL("**/login");
  // The cookie that was, if somebody has kept it, is worth nothing any more.
  await page.context().addCookies([{ name: cookie.name, value: cookie.value, url: service.url }]);
  await page.goto("/");
  await page.waitForURL("**/login");
});

test("a build is asked for, followed while it runs, and ends with its image", async () => {
  const page = await logged();
  const list = await logged();
  await submit(page, works);
  await becomes(page, "Building");
  await until("its log comes", async () => (await page.locator(".log .row:has-text('step 3')").count()) > 0);
  await until("the list knows", async () => (await list.locator(".builds .state.building").count()) === 1);
  await shoot(page, "building");
  await shoot(list, "building-list");
  // Whoever does not follow reads on undisturbed, and is told of what came.
  await page.click("button:text-is('Follow')");
  const shown = await page.locator(".log .row").count();
  await until("more comes", async () => (await page.locator("text=/Later lines \\(\\d+\\)/").count()) === 1);
  assert.equal(await page.locator(".log .row").count(), shown);
  await page.click("button:text-is('Follow')");
  await becomes(page, "Ready");
  assert.match(await page.textContent("#pull"), /docker pull .+@sha256:[0-9a-f]{64}/);
  await until("the log is whole", async () => (await page.locator(".log .row:has-text('step 40')").count()) > 0);
  assert.equal(await page.textContent(".log .f2"), "green");
  assert.match(await page.textContent(".log"), /green and <script>alert\(1\)<\/script>/);
  assert.equal(await page.locator(".attempt .stages li").count(), 3);
  await check(page, "a build that ran");
});

test("the plan is shown before, and what was shown is built", async () => {
  const page = await logged();
  await page.goto("/new");
  await page.fill("#user", unique);
  await page.fill("#repo", works);
  await page.fill("#token", "not-needed");
  await page.click("summary");
  await page.fill("#build_args", "HTTP_PROXY=http://proxy.invalid");
  await page.press("#repo", "Enter");
  await page.waitForSelector("#plan");
  assert.match(await page.textContent(".facts"), /[0-9a-f]{40}.*dockerfile, because there is a `Dockerfile`.*debian:bookworm-slim/s);
  assert.match(await page.textContent(".note"), /HTTP_PROXY.*is not used/);
  assert.match(await page.textContent(".log-plain"), /FROM debian:bookworm-slim/);
  assert.doesNotMatch(await page.content(), /not-needed/);
  await check(page, "plan");
  await shoot(page, "plan");
  const commit = /[0-9a-f]{40}/.exec(await page.textContent(".facts"))[0];
  await page.click("button:text-is('Build this commit')");
  await page.waitForURL("**/builds/**");
  await becomes(page, "Ready");
  assert.equal(await page.getAttribute(".facts code[title]", "title"), commit);
  await page.goto("/new");
  await page.fill("#user", unique);
  await page.fill("#repo", `${unique}/nothing-there`);
  await page.click("button:text-is('Show the plan')");
  assert.match(await page.textContent(".wrong"), /nothing-there/);
  assert.equal(await page.inputValue("#user"), unique);
  await check(page, "no plan");
});

test("a build is cancelled after a question", async () => {
  const page = await logged();
  await submit(page, sleeps);
  await becomes(page, "Building");
  await until("it sleeps", async () => /asleep/.test(await page.textContent(".log")));
  await page.click("#cancel");
  await check(page, "cancel");
  await page.click("text=Let it go on");
  await page.click("#cancel");
  await page.click("button:text-is('Cancel the build')");
  await page.waitForURL("**/builds/**");
  await becomes(page, "Cancelled");
});

test("a build that fails leaves a letter, and is asked for again from there", async () => {
  const page = await logged();
  await submit(page, fails);
  await becomes(page, "Failed");
  assert.match(await page.textContent(".callout.failed"), /cc --version.*exit code 127/s);
  await page.click("#letter");
  await page.waitForURL("**/dead/**");
  await page.click("text=Ask again…");
  await page.click("button:text-is('Ask again')");
  await page.waitForURL("**/builds/**");
  await becomes(page, "Failed");
  await page.click("#again");
  assert.equal(await page.inputValue("#repo"), fails);
  await page.fill("#repo", "not a repository");
  await page.click("button:text-is('Build')");
  assert.match(await page.textContent(".wrong"), /`repo`/);
  await check(page, "a form that is wrong");
});
