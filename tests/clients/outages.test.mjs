// Readers in Node, `@durable-streams/client` and the README's own, when things go wrong.
import { stream } from "@durable-streams/client";
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { access, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { Proxy, Server, badly, numbered, run, snippet, until } from "./support.mjs";

const limit = { timeout: 90_000 };
let server;
let listen;
let follow;
before(async () => {
  server = await Server.start();
  const code = await snippet("README.md", "js", "function listen(");
  assert.equal(code, await snippet("docs/clients.md", "js", "function listen("), "the same in both places");
  ({ listen } = await run(code, "listen"));
  ({ follow } = await run(await snippet("docs/clients.md", "js", "function follow("), "follow"));
});
after(() => server.kill());

/** Readers of a stream until its end. They differ in how they wait, and are given the same words. */
const READERS = {
  "follow by long-poll": (url, read, startOver) => follow(url, read, startOver, "long-poll"),
  "follow by sse": (url, read, startOver) => follow(url, read, startOver, "sse"),
  listen: (url, read) => listen(url, read),
};

/** Has every kind of reader read `url`, some of each. */
function readers(url, each = 1) {
  const all = Object.entries(READERS).flatMap(([name, reader]) =>
    Array.from({ length: each }, () => {
      const one = { name, read: [], startedOver: 0 };
      one.ended = reader(url, (message) => one.read.push(message), () => one.startedOver++);
      return one;
    }),
  );
  return {
    all,
    /** Waits until each of them has read so many messages. */
    haveRead: (count) => until(() => all.map((one) => one.read.length), all.map(() => count)),
    /** Waits for the end, and that they have read these messages, each once and in this order, up to it. */
    async end(messages) {
      await Promise.all(all.map((one) => one.ended));
      // The client says that it is at the end a moment before it hands out the last of it.
      for (const { name, read } of all) await until(() => [name, read], [name, messages]);
    },
  };
}

test("over connections that are cut at random, every message arrives once and in order", limit, async () => {
  await server.create("cut");
  const proxy = await Proxy.to(server.url, badly);
  const them = readers(server.at("cut", proxy), 4);
  const written = [];
  // A race has been run when both have won it often: cut in the middle of an answer, and while waiting for one.
  while (proxy.midway < 25 || proxy.unanswered < 25 || written.length < 200) {
    for (const message of numbered(`burst ${written.length}`, 5)) {
      written.push(message);
      await server.append("cut", message);
    }
    await sleep(300 * Math.random());
  }
  await server.close("cut");
  proxy.calm();
  await them.end(written);
  assert.ok(them.all.every((one) => one.startedOver === 0));
});

test("the server is away for two seconds, and nothing is lost", limit, async () => {
  await server.create("away");
  const proxy = await Proxy.to(server.url);
  const them = readers(server.at("away", proxy));
  await server.append("away", "before");
  await them.haveRead(1);
  proxy.down();
  await server.append("away", "meanwhile");
  await sleep(2000);
  await them.haveRead(1);
  await proxy.up();
  await server.append("away", "after");
  await server.close("away");
  await them.end(["before", "meanwhile", "after"]);
  assert.ok(them.all.every((one) => one.startedOver === 0));
});

test("the server stands still for a second, and goes on as if nothing had been", limit, async () => {
  await server.create("still");
  const them = readers(server.at("still"));
  await server.append("still", "before");
  await them.haveRead(1);
  let during;
  await server.stopped(async () => {
    during = server.append("still", "during");
    await sleep(1000);
    await them.haveRead(1);
  });
  await during;
  await server.close("still");
  await them.end(["before", "during"]);
});

test("a server that is killed and started again with its logs on Redis goes on where it was", limit, async () => {
  const directory = await mkdtemp(join(tmpdir(), "streams-"));
  const socket = join(directory, "redis");
  const redis = spawn("redis-server", ["--port", "0", "--unixsocket", socket, "--dir", directory, "--save", ""], { stdio: "ignore" });
  await until(() => access(socket).then(() => true, () => false), true);
  const mine = await Server.start(process.env.STREAMS, "--redis", `redis+unix://${socket}`);
  await mine.create("kept");
  const proxy = await Proxy.to(mine.url);
  const them = readers(mine.at("kept", proxy));
  await mine.append("kept", "before");
  await them.haveRead(1);

  // Nobody reaches the server while it is away, and what is appended as it comes back is not missed.
  proxy.down();
  await mine.kill();
  await mine.start();
  await mine.append("kept", "meanwhile");
  await proxy.up();
  await mine.append("kept", "after");
  await mine.close("kept");
  await them.end(["before", "meanwhile", "after"]);
  assert.ok(them.all.every((one) => one.startedOver === 0), "the log is the one that they know");
  await mine.kill();
  redis.kill();
  await rm(directory, { recursive: true });
});

test("a session is told that its place is gone, and the ten lines around it start over", limit, async () => {
  const mine = await Server.start();
  await mine.create("lost", "application/json", '["before"]');
  const them = readers(mine.at("lost"));
  const session = await stream({ url: mine.at("lost") });
  const alone = [];
  session.subscribeJson((batch) => alone.push(...batch.items));
  const end = assert.rejects(session.closed, { status: 404 });
  await them.haveRead(1);

  await mine.kill();
  await sleep(500);
  await mine.start();
  // A strict route does not know the stream until somebody makes it again; the session alone gives up at that.
  await end;
  await mine.create("lost");
  await assert.rejects(stream({ url: mine.at("lost"), offset: session.offset }), { status: 410 });
  await mine.append("lost", "after");
  await them.haveRead(2);
  await mine.append("lost", "more");
  await mine.close("lost");
  await them.end(["before", "after", "more"]);
  for (const { name, startedOver } of them.all) assert.equal(startedOver, name === "listen" ? 0 : 1, name);
  assert.deepEqual(alone, ["before"]);
  await mine.kill();
});

test("a producer is told that its stream is gone, and starts over", limit, async () => {
  const mine = await Server.start();
  await mine.create("produced");
  const errors = [];
  const { produce } = await run(await snippet("docs/clients.md", "js", "function produce("), "produce");
  const producer = produce(mine.at("produced"), "one", (error) => errors.push(error.status));
  for (const message of ["one", "two"]) {
    producer.append(JSON.stringify(message));
    await producer.flush();
  }
  await mine.kill();
  await mine.start();
  producer.append(JSON.stringify("three"));
  await producer.flush();
  assert.deepEqual(errors, [404]);

  await mine.create("produced");
  await producer.restart();
  producer.append(JSON.stringify("three"));
  await producer.flush();
  assert.deepEqual(errors, [404]);
  assert.deepEqual(await mine.messages("produced"), ["three"]);
  await mine.kill();
});

test("the chat's rooms can be listened to with the README's lines, over a restart", limit, async () => {
  const chat = await Server.start(process.env.CHAT);
  const say = async (text) => {
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ name: "curl", text });
    assert.equal((await fetch(`${chat.url}/rooms/lobby`, { method: "POST", headers, body })).status, 204);
  };
  const read = [];
  // For ever: a room has no end.
  listen(`${chat.url}/rooms/lobby`, (message) => read.push(message.text));
  for (const text of ["one", "two"]) await say(text);
  await until(() => read, ["one", "two"]);
  await chat.kill();
  await chat.start();
  await say("three");
  await until(() => read, ["one", "two", "three"]);
  await say("four");
  await until(() => read, ["one", "two", "three", "four"]);
  await chat.kill();
});

test("curl follows a stream over an outage and a restart to its end", limit, async () => {
  const mine = await Server.start();
  const folder = await mkdtemp(join(tmpdir(), "clients-"));
  const script = `${await snippet("docs/clients.md", "sh", "follow()")}\nfollow "$0" "$1"`;
  await mine.create("curl");
  const proxy = await Proxy.to(mine.url);
  const curl = promisify(execFile)("sh", ["-c", script, mine.at("curl", proxy), join(folder, "answer")]);
  let output = "";
  curl.child.stdout.on("data", (text) => (output += text));
  await mine.append("curl", "one");
  await until(() => output, '["one"]\n');
  proxy.down();
  await mine.append("curl", "two");
  await proxy.up();
  await until(() => output, '["one"]\n["two"]\n');
  await mine.kill();
  await mine.start();
  await mine.create("curl", "application/json", '["three"]');
  await until(() => output, '["one"]\n["two"]\nstarting over\n["three"]\n');
  await mine.close("curl");
  assert.equal((await curl).stderr, "");
  await rm(folder, { recursive: true });
  await mine.kill();
});

test("a name that is not a stream's is not asked for for ever", limit, async () => {
  const refused = follow(`${server.url}/v1/stream/a%2Fb`, assert.fail, assert.fail);
  await assert.rejects(refused, { status: 400 });
});
