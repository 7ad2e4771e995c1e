// What the browser tests share: the service as a process, the browser, and what holds for every page.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

const root = resolve(fileURLToPath(import.meta.url), "../../..");
const target = resolve(root, process.env.CARGO_TARGET_DIR ?? "target");
const binary = join(target, "debug/image-builder");
const seeder = join(target, "debug/examples/page-seed");
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
export const screenshots = join(root, "target/screenshots");

/** How long anything may take that comes. */
export const PATIENCE = 20_000;

/** Asks until the answer is good, for at most `patience` milliseconds. */
export async function until(what, ask, patience = PATIENCE) {
  const end = Date.now() + patience;
  for (;;) {
    const found = await ask();
    if (found) return found;
    assert.ok(Date.now() < end, `${what}: not within ${patience / 1000} s`);
    await new Promise((done) => setTimeout(done, 100));
  }
}

/** The service at work, on a queue and a history of its own. */
export class Service {
  static async start({ builds = 0, letters = 0, settings = {} } = {}) {
    const service = new Service();
    service.directory = mkdtempSync(join(tmpdir(), "page-"));
    if (builds || letters) {
      execFileSync(seeder, [join(service.directory, "data"), String(builds), String(letters)], { stdio: "inherit" });
    }
    const env = {
      PATH: process.env.PATH,
      HOME: service.directory,
      DATA_DIR: join(service.directory, "data"),
      HTTP_ADDR: "127.0.0.1:0",
      LOG_FORMAT: "json",
      TENANCY: "trusted",
      RETRY_INITIAL_DELAY: "200ms",
      RETRY_MULTIPLIER: "3",
      RETRY_MAX_DELAY: "600ms",
      ...settings,
    };
    for (const [name, from] of [["GITHUB_URL", "GIT_SERVER_URL"], ["REGISTRY_URL", "REGISTRY_URL"], ["DOCKER_HOST", "DOCKER_HOST"]]) {
      if (process.env[from]) env[name] = process.env[from];
    }
    service.child = spawn(binary, ["serve"], { cwd: service.directory, env, stdio: ["ignore", "pipe", "pipe"] });
    service.lines = "";
    for (const stream of [service.child.stdout, service.child.stderr]) stream.on("data", (text) => { service.lines += text; });
    await until("the service starts", () => {
      assert.equal(service.child.exitCode, null, service.lines);
      return service.lines.includes("at work");
    });
    service.url = `http://${/"http":"([^"]+)"/.exec(service.lines)[1]}`;
    return service;
  }

  /** Memory of its own, in bytes. */
  memory() {
    const status = readFileSync(`/proc/${this.child.pid}/status`, "utf8");
    return Number(/RssAnon:\s+(\d+)/.exec(status)[1]) * 1024;
  }

  async kill() {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const ended = new Promise((done) => this.child.once("exit", done));
    this.child.kill("SIGKILL");
    await ended;
  }

  async stop() {
    await this.kill();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** A repository with these files on the stack's git server. */
export function repository(name, files) {
  const directory = mkdtempSync(join(tmpdir(), "repo-"));
  for (const [path, text] of Object.entries(files)) writeFileSync(join(directory, path), text);
  const git = (...args) => execFileSync("git", ["-c", "user.name=t", "-c", "user.email=t@example.org", ...args], { cwd: directory, stdio: "pipe" });
  git("init", "--quiet", "--initial-branch=main");
  git("add", ".");
  git("commit", "--quiet", "-m", "one");
  execFileSync(join(root, ".devcontainer/stack.sh"), ["repo", name, directory], { stdio: "pipe" });
  rmSync(directory, { recursive: true, force: true });
  return name;
}

/** A browser whose pages must never complain: no error of a script, nothing that the policy stops. */
const CHROMIUM = "/usr/bin/chromium";
const SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** A browser with this page open that nobody looks into: whoever does has it keep all that the page fetches. */
export function openUnwatched(url) {
  const profile = mkdtempSync(join(tmpdir(), "profile-"));
  const child = spawn(CHROMIUM, ["--headless=new", `--user-data-dir=${profile}`, "--remote-debugging-port=0", ...SWITCHES, url], { stdio: "ignore" });
  const ended = new Promise((done) => child.on("exit", done));
  const stop = async () => {
    child.kill();
    await ended;
    rmSync(profile, { recursive: true, force: true });
  };
  return { pid: child.pid, stop };
}

export class Browser {
  static async start() {
    const browser = new Browser();
    browser.chromium = await chromium.launch({ executablePath: CHROMIUM, args: SWITCHES });
    return browser;
  }

  /** A page of its own session. What it complains of is in `complaints`. */
  async page(service, options = {}) {
    const { phone, dark, ...rest } = options;
    const context = await this.chromium.newContext({
      baseURL: service.url,
      viewport: phone ? { width: 390, height: 844 } : { width: 1280, height: 860 },
      colorScheme: dark ? "dark" : "light",
      permissions: ["clipboard-read", "clipboard-write"],
      ...rest,
    });
    if (process.env.PAGE_ASSETS) {
      // For whoever works on the page's looks: no new build for each change.
      await context.route("**/assets/*", (route) => {
        route.fulfill({ path: join(root, "src/api/page", new URL(route.request().url()).pathname) });
      });
    }
    const page = await context.newPage();
    page.complaints = [];
    page.on("pageerror", (error) => page.complaints.push(String(error)));
    page.on("console", (message) => {
      // A status that a test wants is no complaint of the page.
      const isStatus = /Failed to load resource: the server responded with a status of (4|5)\d\d/.test(message.text());
      if (message.type() === "error" && !isStatus) page.complaints.push(message.text());
    });
    page.on("dialog", (dialog) => {
      page.complaints.push(`a dialog: ${dialog.message()}`);
      dialog.dismiss();
    });
    page.setDefaultTimeout(PATIENCE);
    return page;
  }

  async stop() {
    await this.chromium.close();
  }
}

/** What holds for every page, in both schemes and on a phone. */
export async function check(page, what) {
  assert.deepEqual(page.complaints, [], what);
  await page.evaluate(axe);
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
    const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html.slice(0, 160)).slice(0, 3).join(" | ")}`);
    assert.deepEqual(found, [], `${what}, ${colorScheme}`);
  }
  const size = page.viewportSize();
  await page.setViewportSize({ width: 360, height: 740 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(wide <= 0, `${what}: ${wide} px too wide for a phone`);
  await page.setViewportSize(size);
  await page.emulateMedia({ colorScheme: null });
}

/** Looks at a page in light and dark, and on a phone. */
export async function shoot(page, name) {
  mkdirSync(screenshots, { recursive: true });
  const size = page.viewportSize();
  for (const [variant, colorScheme, viewport] of [
    ["light", "light", { width: 1280, height: 860 }],
    ["dark", "dark", { width: 1280, height: 860 }],
    ["phone", "light", { width: 390, height: 844 }],
    ["phone-dark", "dark", { width: 390, height: 844 }],
  ]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await page.setViewportSize(viewport);
    await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
    await page.screenshot({ path: join(screenshots, `${name}-${variant}.png`) });
  }
  await page.setViewportSize(size);
  await page.emulateMedia({ colorScheme: null });
}
