// Every block of the README and of docs/clients.md, on a strict and on a comet route, without a proxy, behind nginx and behind
// HAProxy, over an outage and over a restart that loses the logs. The pages are of another origin.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { access, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { ReverseProxy } from "./proxies.mjs";
import { Site } from "./site.mjs";
import { Server, run, snippet, until } from "./support.mjs";

const limit = { timeout: 120_000 };
const ROUTES = { strict: "/v1/stream", comet: "/events" };
const JSON_TYPE = { "Content-Type": "application/json" };
let directory;
let redis;
let server;
let site;
let ways;
let listen;
let follow;
let produce;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "matrix-"));
  const socket = join(directory, "redis");
  redis = spawn("redis-server", ["--port", "0", "--unixsocket", socket, "--dir", directory, "--save", ""], { stdio: "ignore" });
  redis.flush = () => promisify(execFile)("redis-cli", ["-s", socket, "flushall"]);
  await until(() => access(socket).then(() => true, () => false), true);
  server = await Server.start(process.env.SERVER, "--redis", `redis+unix://${socket}`);
  const to = new URL(server.url);
  ways = { "without a proxy": server, "behind nginx": await ReverseProxy.nginx(to), "behind HAProxy": await ReverseProxy.haproxy(to) };
  site = await Site.start();
  ({ listen } = await run(await snippet("README.md", "js", "function listen("), "listen"));
  ({ follow } = await run(await snippet("docs/clients.md", "js", "function follow("), "follow"));
  ({ produce } = await run(await snippet("docs/clients.md", "js", "function produce("), "produce"));
});
after(async () => {
  await site?.stop();
  for (const way of Object.values(ways ?? {})) await way.stop?.();
  await server?.kill();
  redis.kill();
  await rm(directory, { recursive: true });
  assert.deepEqual(site.thrown, []);
});

/** Each combination of a route and a way to it. */
const cells = () => Object.entries(ROUTES).flatMap(([route, path]) => Object.entries(ways).map(([way, { url }]) => ({ route, way, url: `${url}${path}` })));

async function send(path, messages, headers = {}, method = "POST") {
  const body = messages && JSON.stringify(messages);
  const answer = await fetch(`${server.url}${path}`, { method, headers: { ...JSON_TYPE, ...headers }, body });
  assert.ok(answer.ok, `${method} ${path}: ${answer.status} ${await answer.text()}`);
}

/** Makes a channel with a message on each route. */
const create = (name, message) =>
  Promise.all([send(`/v1/stream/${name}`, [message], {}, "PUT"), send(`/events/${name}`, [message])]);
const append = (name, message, headers) =>
  Promise.all(Object.values(ROUTES).map((route) => send(`${route}/${name}`, message && [message], headers)));

/** A reader in this process. */
const inNode = (reader, ...more) => (url) => {
  const one = { read: [], startedOver: 0 };
  one.ended = reader(url, (message) => one.read.push(message), () => one.startedOver++, ...more);
  return { look: () => [one.read, one.startedOver], end: () => one.ended };
};

/** A reader in a page, with connections of its own. */
const inPage = (name, ...more) => async (url) => {
  const page = await site.open(await site.browsers[0].newContext());
  await page.evaluate(([name, url, more]) => void window[name](url, take, startOver, ...more), [name, url, more]);
  return { look: () => page.evaluate("[read, startedOver]"), end: () => page.context().close() };
};

/** A reader in a process that prints a line for each message, and "starting over". */
const inProcess = (start) => async (url) => {
  const child = spawn(...(await start(url)), { stdio: ["ignore", "pipe", "inherit"] });
  let printed = "";
  child.stdout.on("data", (text) => (printed += text));
  const ended = new Promise((resolve) => child.on("close", resolve));
  const look = () => {
    const lines = printed.split("\n").slice(0, -1).filter((line) => line !== "starting over");
    return [lines.flatMap((line) => JSON.parse(line)), printed.split("starting over\n").length - 1];
  };
  return { look, end: async () => assert.equal(await ended, 0) };
};

const python = inProcess(async (url) => {
  const code = await snippet("docs/clients.md", "python", "def follow(");
  const rest = `import json, sys
for message in follow(sys.argv[1], lambda: print("starting over", flush=True)):
    print(json.dumps(message), flush=True)
`;
  return [process.env.PYTHON, ["-c", code + rest, url]];
});

let files = 0;
const curl = inProcess(async (url) => {
  const code = await snippet("docs/clients.md", "sh", "follow()");
  return ["sh", ["-c", `${code}\nfollow "$0" "$1"`, url, join(directory, `answer-${files++}`)]];
});

/** Every block that reads. `listen` has no callback for starting over. */
const READERS = {
  "listen in Node": { start: inNode((url, take) => listen(url, take)), silent: true },
  "follow by long-poll in Node": { start: inNode((...args) => follow(...args), "long-poll") },
  "follow by sse in Node": { start: inNode((...args) => follow(...args), "sse") },
  "listen in Chromium": { start: inPage("listen"), silent: true },
  "follow by long-poll in Chromium": { start: inPage("follow", "long-poll") },
  "follow by sse in Chromium": { start: inPage("follow", "sse") },
  "watch in Chromium": { start: inPage("watch") },
  Python: { start: python },
  curl: { start: curl },
};

test("every reader reads each message once and in order, over an outage, a restart without the logs, and to the end", limit, async () => {
  await create("read", "before");
  const readers = await Promise.all(
    cells().flatMap(({ route, way, url }) =>
      Object.entries(READERS).map(async ([name, { start, silent }]) => ({
        name: `${name}, ${route} route, ${way}`, silent, ...(await start(`${url}/read`)),
      })),
    ),
  );
  const see = async () => Object.fromEntries(await Promise.all(readers.map(async ({ name, look }) => [name, await look()])));
  const haveRead = (messages, startedOver) =>
    until(see, Object.fromEntries(readers.map(({ name, silent }) => [name, [messages, silent ? 0 : startedOver]])));
  await haveRead(["before"], 0);
  await append("read", "live");
  await haveRead(["before", "live"], 0);

  // Away for so long that an `EventSource` is refused by a proxy more than once.
  await server.kill();
  await sleep(4500);
  await server.start();
  await append("read", "kept");
  await haveRead(["before", "live", "kept"], 0);

  await server.kill();
  await redis.flush();
  await server.start();
  await create("read", "after");
  await haveRead(["before", "live", "kept", "after"], 1);
  await append("read", undefined, { "Stream-Closed": "true" });
  await Promise.all(readers.map(({ end }) => end()));
});

test("every message of a producer is in the channel once and in order, over an outage", limit, async () => {
  const producers = cells().map(({ route, way, url }) => {
    const name = `produced/${way.replaceAll(" ", "-")}`;
    return { cell: `${route} route, ${way}`, path: `${ROUTES[route]}/${name}`, url: `${url}/${name}`, errors: [] };
  });
  await Promise.all(producers.map(({ path }) => send(path, ["before"], {}, "PUT")));
  for (const one of producers) one.producer = produce(one.url, "matrix", (error) => one.errors.push(error.message));
  const each = (message) =>
    Promise.all(producers.map(({ producer }) => (producer.append(JSON.stringify(message)), producer.flush())));
  await each("one");
  await server.kill();
  const during = each("two");
  await sleep(1000);
  await server.start();
  await during;
  await each("three");
  for (const { cell, path, errors } of producers) {
    assert.deepEqual([cell, errors], [cell, []]);
    assert.deepEqual([cell, await (await fetch(`${server.url}${path}?offset=-1`)).json()], [cell, ["before", "one", "two", "three"]]);
  }
});

test("a page that is loaded again loses nothing of what it produces", limit, async () => {
  await Promise.all(
    cells().map(async ({ route, way, url }) => {
      const name = `reloaded/${way.replaceAll(" ", "-")}`;
      await send(`${ROUTES[route]}/${name}`, undefined, {}, "PUT");
      const page = await site.open(await site.browsers[0].newContext());
      for (const load of ["first", "second"]) {
        await page.evaluate(async ([url, load]) => {
          const errors = [];
          const producer = produce(url, "page", (error) => errors.push(error.message));
          for (let n = 1; n <= 3; n++) {
            producer.append(JSON.stringify(`${load} ${n}`));
            await producer.flush();
          }
          if (errors.length > 0) throw new Error(errors.join());
        }, [`${url}/${name}`, load]);
        await page.reload();
        await page.waitForFunction("window.ready");
      }
      const produced = await (await fetch(`${server.url}${ROUTES[route]}/${name}?offset=-1`)).json();
      const expected = ["first", "second"].flatMap((load) => [1, 2, 3].map((n) => `${load} ${n}`));
      assert.deepEqual([route, way, produced], [route, way, expected]);
      await page.context().close();
    }),
  );
});

test("the README's commands read, wait and stream", limit, async () => {
  const block = await snippet("README.md", "sh", "offset=OFFSET");
  const commands = block.trim().split("\n").map((line) => line.split(" #")[0].trim());
  assert.equal(commands.length, 4);
  await create("news", "before");
  await Promise.all(
    cells().map(async ({ route, way, url }) => {
      const head = await fetch(`${url}/news?offset=-1`);
      const offset = head.headers.get("Stream-Next-Offset");
      const all = commands.map((command) => {
        const line = command.replace("localhost:3000/events/news", `${url}/news`).replace("OFFSET", offset);
        const child = spawn("sh", ["-c", `exec ${line} -s`], { stdio: ["ignore", "pipe", "inherit"] });
        const it = { command, child, said: "" };
        child.stdout.on("data", (text) => (it.said += text));
        return it;
      });
      Object.assign(all, { route, way });
      return all;
    }),
  ).then(async (started) => {
    // On a strict route, a bare `GET` reads.
    const waits = started.length * 2 + Object.keys(ways).length;
    await until(waiters, waits);
    await append("news", "news");
    for (const all of started) {
      const [read, bare, wait, stream] = all;
      const cell = `${all.route} route, ${all.way}`;
      const body = ({ said }) => said.split("\r\n\r\n").slice(1).join("");
      await until(() => [cell, [read, bare, wait].map(body)], [
        cell, ['["before"]', all.route === "comet" ? '["news"]' : '["before"]', '["news"]'],
      ]);
      await until(() => [cell, /data: ?\["news"\]/.test(stream.said)], [cell, true]);
      for (const { child } of all) child.kill();
    }
    await until(waiters, 0);
  });
});

const waiters = async () => Number(await (await fetch(`${server.url}/waiters`)).text());

for (const live of ["long-poll", "sse"]) {
  test(`behind every proxy, a wait by ${live} ends at the server when its client is gone`, limit, async () => {
    await create("gone", "before");
    for (const { route, way, url } of cells()) {
      const client = new AbortController();
      const offset = (await fetch(`${url}/gone?offset=-1`)).headers.get("Stream-Next-Offset");
      const wait = fetch(`${url}/gone?offset=${offset}&live=${live}`, { signal: client.signal }).then((answer) => answer.text());
      await until(async () => [route, way, await waiters()], [route, way, 1]);
      client.abort();
      await assert.rejects(wait, { name: "AbortError" });
      // Shorter than the silence after which an event stream sends a comment.
      await until(async () => [route, way, await waiters()], [route, way, 0], 5_000);
    }
  });
}

test("behind every proxy, an event arrives at once", limit, async () => {
  await create("prompt", 0);
  const arrivals = [];
  await Promise.all(
    Object.entries(ways).map(async ([way, { url }]) => {
      const client = new AbortController();
      const stream = await fetch(`${url}/events/prompt?offset=now&live=sse`, { signal: client.signal });
      const arrived = new Map();
      const reading = (async () => {
        let text = "";
        for await (const chunk of stream.body.pipeThrough(new TextDecoderStream())) {
          text += chunk;
          for (const [, at] of text.matchAll(/^data: ?\[([0-9.]+)\]$/gm)) if (!arrived.has(at)) arrived.set(at, performance.now() - at);
        }
      })().catch(() => {});
      arrivals.push({ way, arrived, stop: () => (client.abort(), reading) });
    }),
  );
  for (let n = 0; n < 30; n++) {
    await send("/events/prompt", [performance.now()]);
    await sleep(60 + 40 * Math.random());
  }
  for (const { way, arrived, stop } of arrivals) {
    await until(() => [way, arrived.size], [way, 30]);
    const median = [...arrived.values()].sort((a, b) => a - b)[15];
    assert.ok(median < 60, `${way}: half of the events took ${median} ms and more`);
    await stop();
  }
});
