// What an open page and many readers cost: `tests/browser/run measure`. MINUTES=60 BUILDS=200 spreads so many builds
// over a longer look; without BUILDS one follows another.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { get } from "node:http";
import { after, before, test } from "node:test";

import { Browser, PATIENCE, Service, openUnwatched, repository, until } from "./harness.mjs";

const MINUTES = Number(process.env.MINUTES ?? 3);
const BUILDS = Number(process.env.BUILDS ?? Infinity);
const STREAMS = 100;
const unique = `m${Date.now().toString(36)}`;
const megabytes = (bytes) => Number((bytes / 1e6).toFixed(1));
let [service, browser, unwatched, works] = [];

before(async () => {
  browser = await Browser.start();
  service = await Service.start();
  works = repository(`${unique}/works`, {
    Dockerfile: "FROM debian:bookworm-slim\nARG N\nARG SLEEP=1\nRUN for i in $(seq 1 300); do echo \"$N line $i\"; done; sleep $SLEEP\n",
  });
});

after(async () => {
  await browser?.stop();
  await unwatched?.stop();
  await service?.stop();
});

const submit = (number, plan) => fetch(`${service.url}/v1/builds`, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({
    userID: `${unique}${number % 4}`, repo: works, applicationID: `app${number}`, uuid: `${unique}-${number}`, force: true, buildPlan: plan,
  }),
});

/** Memory of a process and all that it started, in bytes. */
function ofTree(root) {
  const processes = readdirSync("/proc").filter((name) => /^\d+$/.test(name)).flatMap((pid) => {
    try {
      const status = readFileSync(`/proc/${pid}/status`, "utf8");
      const field = (name) => Number(new RegExp(`${name}:\\s+(\\d+)`).exec(status)?.[1] ?? 0);
      return [{ pid: Number(pid), parent: field("PPid"), bytes: field("RssAnon") * 1024 }];
    } catch {
      return [];
    }
  });
  const ours = new Set([root]);
  for (let before = 0; before !== ours.size;) {
    before = ours.size;
    for (const { pid, parent } of processes) if (ours.has(parent)) ours.add(pid);
  }
  return processes.filter(({ pid }) => ours.has(pid)).reduce((sum, { bytes }) => sum + bytes, 0);
}

test("an open page costs the same at the end as at the beginning, whatever is built", async () => {
  const [list, log] = [await browser.page(service), await browser.page(service)];
  await list.goto("/");
  unwatched = openUnwatched(service.url);
  const script = async (page) => {
    const session = await page.context().newCDPSession(page);
    await session.send("HeapProfiler.collectGarbage");
    const { nodes } = await session.send("Memory.getDOMCounters");
    const { usedSize } = await session.send("Runtime.getHeapUsage");
    await session.detach();
    return { nodes, usedSize };
  };
  const samples = [];
  const begin = Date.now();
  const end = begin + MINUTES * 60_000;
  for (let number = 0; Date.now() < end && number < BUILDS; number += 1) {
    const due = begin + number * ((end - begin) / BUILDS);
    await new Promise((done) => setTimeout(done, Math.max(0, due - Date.now())));
    await submit(number, { buildArgs: { N: String(number) } });
    if (number % 10 === 0) {
      await log.goto(`/builds/${unique}-${number}`);
    }
    await until("it ends", async () => /"state":"(ready|failed)"/.test(await (await fetch(`${service.url}/v1/builds/${unique}-${number}`)).text()), 5 * PATIENCE);
    if (number % 5 === 4) {
      const [of, ofLog] = [await script(list), await script(log)];
      samples.push({ builds: number + 1, service: megabytes(service.memory()), browser: megabytes(ofTree(unwatched.pid)), heap: megabytes(of.usedSize), nodes: of.nodes, logHeap: megabytes(ofLog.usedSize), logNodes: ofLog.nodes });
      console.log(JSON.stringify(samples.at(-1)));
    }
  }
  // The list is full after 50 builds at the latest; from then on nothing may grow.
  const settled = samples.slice(Math.floor(samples.length / 2));
  const [first, last] = [settled[0], settled.at(-1)];
  assert.ok(last.heap < first.heap + 2, `the script's memory grows: ${JSON.stringify([first, last])}`);
  assert.ok(last.browser < first.browser + 20, `the browser's memory grows: ${JSON.stringify([first, last])}`);
  assert.ok(last.service < first.service + 15, `the service's memory grows: ${JSON.stringify([first, last])}`);
});

test("a hundred who follow a log cost the service at most 20 MB", async () => {
  await submit(9999, { buildArgs: { SLEEP: "40" } });
  await until("it is known", async () => (await fetch(`${service.url}/v1/builds/${unique}-9999`)).ok);
  const before = service.memory();
  let heard = 0;
  const streams = [];
  for (let number = 0; number < STREAMS; number += 1) {
    const request = get(`${service.url}/v1/builds/${unique}-9999/log`, { headers: { Accept: "text/event-stream" }, agent: false }, (answer) => {
      assert.equal(answer.statusCode, 200);
      answer.once("data", () => { heard += 1; });
      answer.on("data", () => {});
    });
    request.on("error", () => {});
    streams.push(request);
  }
  await until("all are heard", () => heard === STREAMS);
  let most = service.memory();
  const end = Date.now() + 20_000;
  while (Date.now() < end) {
    most = Math.max(most, service.memory());
    await new Promise((done) => setTimeout(done, 200));
  }
  for (const stream of streams) stream.destroy();
  console.log(`${STREAMS} streams: ${megabytes(before)} MB before, ${megabytes(most)} MB at the most`);
  assert.ok(most - before <= 20e6, `${megabytes(most - before)} MB`);
});
