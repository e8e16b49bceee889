// `@durable-streams/client` in Node: what it reads and what it writes.
import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client";
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Proxy, Server, badly, numbered, run, snippet, until } from "./support.mjs";

const limit = { timeout: 60_000 };
let server;
let produce;
before(async () => {
  server = await Server.start();
  ({ produce } = await run(await snippet("docs/clients.md", "js", "function produce("), "produce"));
});
after(() => server.kill());

test("it reads what there is, whole, from the start and from where it was", limit, async () => {
  // More than goes into one answer.
  const messages = numbered("x".repeat(100_000), 30);
  await server.create("there");
  for (const message of messages.slice(0, 20)) await server.append("there", message);
  const first = await stream({ url: server.at("there") });
  assert.ok((await first.json()).join() === messages.slice(0, 20).join());

  for (const message of messages.slice(20)) await server.append("there", message);
  const rest = await stream({ url: server.at("there"), offset: first.offset });
  assert.ok((await rest.json()).join() === messages.slice(20).join());
  assert.deepEqual(await (await stream({ url: server.at("there"), offset: "now" })).json(), []);

  // Told not to live, the client takes one answer. It says that there is more.
  const piece = await stream({ url: server.at("there"), live: false });
  assert.equal(piece.upToDate, false);
  assert.equal((await piece.json()).length, 10);
});

for (const live of ["long-poll", "sse"]) {
  test(`live by ${live}, it reads what there was and what comes, until the end`, limit, async () => {
    const messages = numbered("message\n\r\r\n", 200);
    const name = `live-${live}`;
    await server.create(name, "application/json", JSON.stringify(messages.slice(0, 50)));
    const session = await stream({ url: server.at(name), live });
    const read = [];
    session.subscribeJson((batch) => read.push(...batch.items));
    await until(() => read.length, 50);
    for (const message of messages.slice(50)) await server.append(name, message);
    await server.close(name);
    await session.closed;
    assert.ok(session.streamClosed);
    // It says so a moment before it hands out the last of it: here and below.
    await until(() => read, messages);
  });

  test(`live by ${live}, bytes are those that went in`, limit, async () => {
    const name = `bytes-${live}`;
    const handle = await DurableStream.create({ url: server.at(name), contentType: "application/x-whatever" });
    const session = await handle.stream({ live });
    const read = [];
    session.subscribeBytes((batch) => read.push(batch.data));
    const written = Array.from({ length: 50 }, () => randomBytes(1 + Math.floor(5000 * Math.random())));
    for (const bytes of written) await handle.append(bytes);
    await handle.close();
    await session.closed;
    await until(() => Buffer.concat(read).equals(Buffer.concat(written)), true);
  });
}

test("text in any alphabet arrives as it was written", limit, async () => {
  const text = "Ünïcödé 漢字 🦀\r\ndata: not an event\n\n: nor a comment\r";
  const handle = await DurableStream.create({ url: server.at("text"), contentType: "text/plain" });
  await handle.append(text);
  assert.equal(await (await handle.stream({ live: false })).text(), text);
});

test("a handle knows its stream: created once, closed for good, deleted", limit, async () => {
  const url = server.at("handle");
  const handle = await DurableStream.create({ url, contentType: "application/json", ttlSeconds: 60 });
  await DurableStream.create({ url, contentType: "application/json", ttlSeconds: 60 });
  await assert.rejects(DurableStream.create({ url, contentType: "text/plain" }), { status: 409 });
  await handle.append('"b"', { seq: "2" });
  await assert.rejects(handle.append('"a"', { seq: "1" }), { status: 409 });
  const { finalOffset } = await handle.close({ body: '"end"' });
  await assert.rejects(handle.append('"late"'), (error) => {
    const { "stream-closed": closed, "stream-next-offset": end } = error.headers;
    return error.status === 409 && closed === "true" && end === finalOffset;
  });
  const { exists, contentType, offset, streamClosed } = await handle.head();
  assert.deepEqual({ exists, contentType, offset, streamClosed }, {
    exists: true, contentType: "application/json", offset: finalOffset, streamClosed: true,
  });
  await handle.delete();
  assert.deepEqual(await handle.head(), { exists: false });
  await assert.rejects(stream({ url, backoffOptions: { maxRetries: 0 } }), { status: 404 });
});

test("what a producer sends over connections that are cut is there once and in order", limit, async () => {
  await server.create("produced");
  const proxy = await Proxy.to(server.url, badly);
  const errors = [];
  const producer = produce(server.at("produced", proxy), "one", (error) => errors.push(error));
  const sent = [];
  // For as long as it takes to lose the answers to some appends.
  while (proxy.midway < 10 || sent.length < 200) {
    for (const message of numbered(`batch ${sent.length}`, 10)) {
      sent.push(message);
      producer.append(JSON.stringify(message));
      // Several batches are under way at a time, and overtake each other.
      if (sent.length % 2 === 0) await sleep(6);
    }
    await producer.flush();
  }
  await producer.close(JSON.stringify("the end"));
  assert.deepEqual(errors, []);
  assert.deepEqual(await server.messages("produced"), [...sent, "the end"]);
});

test("a batch that is sent again is not there twice", limit, async () => {
  await server.create("twice");
  const statuses = [];
  const twice = async (...request) => {
    for (let time = 1; time < 3; time++) statuses.push((await fetch(...request)).status);
    return fetch(...request);
  };
  const handle = new DurableStream({ url: server.at("twice"), contentType: "application/json" });
  const producer = new IdempotentProducer(handle, "two", { fetch: twice, maxInFlight: 1 });
  for (const message of ["a", "b"]) {
    producer.append(JSON.stringify(message));
    await producer.flush();
  }
  assert.deepEqual(statuses, [200, 204, 200, 204]);
  assert.deepEqual(await server.messages("twice"), ["a", "b"]);
});

/** A producer's errors, by what tells them apart, and how often it has asked. */
function counted() {
  const seen = { errors: [], posts: 0 };
  const onError = (error) => seen.errors.push(error.status ?? error.name);
  const counting = (...request) => {
    // A producer that never stops is to fail the test, not to keep it from ending.
    if (++seen.posts > 500) throw new Error("it never stops");
    return fetch(...request);
  };
  return { seen, onError, counting };
}

async function append(producer, ...messages) {
  for (const message of messages) {
    producer.append(JSON.stringify(message));
    await producer.flush().catch(() => {});
  }
}

test("a producer is told once that its stream was deleted and created again", limit, async () => {
  await server.create("again");
  const { seen, onError, counting } = counted();
  const handle = new DurableStream({ url: server.at("again"), contentType: "application/json" });
  const producer = new IdempotentProducer(handle, "stock", { fetch: counting, onError });
  await append(producer, "a", "b");
  await fetch(server.at("again"), { method: "DELETE" });
  await server.create("again");
  await append(producer, "c");
  assert.deepEqual(seen, { errors: ["StaleEpochError"], posts: 3 });
  await producer.restart();
  await append(producer, "c", "d");
  assert.deepEqual(seen, { errors: ["StaleEpochError"], posts: 5 });
  assert.deepEqual(await server.messages("again"), ["c", "d"]);
});

test("a producer of which the server has forgotten everything is told so once", limit, async () => {
  const mine = await Server.start();
  await mine.create("forgotten");
  const { seen, onError } = counted();
  const producer = produce(mine.at("forgotten"), "one", onError);
  await append(producer, "a", "b");
  await mine.kill();
  await mine.start();
  // The server cannot know that there was a stream of this name.
  await mine.create("forgotten");
  await append(producer, "c");
  assert.deepEqual(seen.errors, [400]);
  await producer.restart();
  await append(producer, "c");
  assert.deepEqual(seen.errors, [400]);
  assert.deepEqual(await mine.messages("forgotten"), ["c"]);
  await mine.kill();
});

test("a producer is told once that its stream was closed", limit, async () => {
  await server.create("ended");
  const { seen, onError } = counted();
  const producer = produce(server.at("ended"), "one", onError);
  await append(producer, "a", "b");
  await server.close("ended");
  await append(producer, "c");
  assert.deepEqual(seen.errors, [400]);
  assert.deepEqual(await server.messages("ended"), ["a", "b"]);
});

test("of two producers of one name the later has the stream", limit, async () => {
  await server.create("fenced");
  const handle = new DurableStream({ url: server.at("fenced"), contentType: "application/json" });
  const errors = [];
  const [old, young] = [0, 1].map(
    (epoch) => new IdempotentProducer(handle, "same", { epoch, onError: (error) => errors.push(error.name) }),
  );
  for (const [producer, message] of [[old, "before"], [young, "mine"], [old, "a ghost's"], [young, "still mine"]]) {
    producer.append(JSON.stringify(message));
    await producer.flush();
  }
  assert.deepEqual(errors, ["StaleEpochError"]);
  assert.deepEqual(await server.messages("fenced"), ["before", "mine", "still mine"]);
});
