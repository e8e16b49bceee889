// `durable-streams` from PyPI: as it comes, and in the lines that the documentation puts around it.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { setTimeout as sleep } from "node:timers/promises";
import { Proxy, Server, badly, numbered, snippet, until } from "./support.mjs";

const limit = { timeout: 60_000 };
let server;
before(async () => (server = await Server.start()));
after(() => server.kill());

/** Python, and what it has printed. */
function python(...args) {
  const child = spawn(process.env.PYTHON, args, { stdio: ["ignore", "pipe", "inherit"] });
  const it = { said: [], rest: "" };
  child.stdout.on("data", (text) => {
    const lines = (it.rest + text).split("\n");
    it.rest = lines.pop();
    it.said.push(...lines.map((line) => JSON.parse(line)));
  });
  const closed = once(child, "close");
  it.ended = async () => assert.deepEqual(await closed, [0, null]);
  return it;
}

const script = fileURLToPath(new URL("reads.py", import.meta.url));

test("it reads what there is", limit, async () => {
  const messages = ["Ünïcödé 漢字 🦀", "\r\n\n", ...numbered("message", 100)];
  await server.create("read", "application/json", JSON.stringify(messages));
  const reader = python(script, server.at("read"), "read");
  await reader.ended();
  assert.deepEqual(reader.said, messages);
});

for (const how of ["poll", "events"]) {
  test(`it follows by ${how === "poll" ? "long-poll" : "sse"}`, limit, async () => {
    await server.create(how, "application/json", '["there"]');
    const reader = python(script, server.at(how), how);
    await until(() => reader.said, ["there"]);
    const messages = numbered("message", 50);
    for (const message of messages) await server.append(how, message);
    await server.append(how, "the end");
    await reader.ended();
    assert.deepEqual(reader.said, ["there", ...messages, "the end"]);
  });
}

test("it creates, appends and deletes, and is told what the server does not take", limit, async () => {
  const writer = python(script, server.at("write"), "write");
  await writer.ended();
  assert.deepEqual(writer.said, ["there already", "one", "two", "deleted"]);
});

/** The lines of the documentation, printing what they read. */
const follow = async (url) => {
  const rest = `import json, sys
say = lambda what: print(json.dumps(what), flush=True)
for message in follow(sys.argv[1], lambda: say("starting over")):
    say(message)
`;
  return python("-c", (await snippet("docs/clients.md", "python", "def follow(")) + rest, url);
};

test("over connections that are cut it reads every message once and in order, to the end", limit, async () => {
  await server.create("cut");
  const proxy = await Proxy.to(server.url, badly);
  const readers = await Promise.all([1, 2, 3].map(() => follow(server.at("cut", proxy))));
  const written = [];
  while (proxy.midway < 5 || proxy.unanswered < 5 || written.length < 100) {
    written.push(`message ${written.length + 1}`);
    await server.append("cut", written.at(-1));
    await sleep(100 * Math.random());
  }
  await server.close("cut");
  proxy.calm();
  for (const reader of readers) {
    await reader.ended();
    assert.deepEqual(reader.said, written);
  }
});

test("it starts over when the server has lost everything", limit, async () => {
  const mine = await Server.start();
  await mine.create("lost", "application/json", '["before"]');
  const reader = await follow(mine.at("lost"));
  await until(() => reader.said, ["before"]);
  await mine.kill();
  await mine.start();
  await mine.create("lost", "application/json", '["after"]');
  await until(() => reader.said, ["before", "starting over", "after"]);
  await mine.close("lost");
  await reader.ended();
  await mine.kill();
});
