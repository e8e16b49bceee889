// In a browser, from another origin: `@durable-streams/client`, the browser's own `EventSource` and `fetch`, and what
// strangers put into streams.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Site } from "./site.mjs";
import { Proxy, Server, badly, numbered, until } from "./support.mjs";

const limit = { timeout: 60_000 };
let server;
let site;
let browsers;
const open = (browser) => site.open(browser);

before(async () => {
  server = await Server.start();
  site = await Site.start(2);
  browsers = site.browsers;
});
after(async () => {
  await site?.stop();
  await server.kill();
  assert.deepEqual(site.thrown, []);
});

const read = (page) => page.evaluate("read");
const reads = (page, messages) => until(() => read(page), messages);

test("the client reads, waits, streams and writes from another origin", limit, async () => {
  const page = await open();
  await page.evaluate(async (url) => {
    const handle = await DurableStream.create({ url, contentType: "application/json" });
    const seen = (window.seen = { "long-poll": [], sse: [] });
    const sessions = [];
    for (const live of Object.keys(seen)) {
      const session = await handle.stream({ live });
      session.subscribeJson((batch) => seen[live].push(...batch.items));
      sessions.push(session);
    }
    const producer = new IdempotentProducer(handle, "browser", { autoClaim: true });
    for (let n = 1; n <= 100; n++) {
      producer.append(JSON.stringify(`message ${n}`));
      if (n % 10 === 0) await producer.flush();
    }
    await producer.close();
    for (const session of sessions) await session.closed;
    seen["catch-up"] = await (await handle.stream()).json();
  }, server.at("all"));
  // The client says that it is at the end a moment before it hands out the last of it: here and below.
  const messages = numbered("message", 100);
  await until(() => page.evaluate("seen"), { "long-poll": messages, sse: messages, "catch-up": messages });
  await page.close();
});

test("bytes come through an event stream from another origin as they went in", limit, async () => {
  const page = await open();
  await page.evaluate(async (url) => {
    const handle = await DurableStream.create({ url, contentType: "image/png" });
    const session = await handle.stream({ live: "sse" });
    session.subscribeBytes((batch) => read.push(...batch.data));
    for (let byte = 0; byte < 256; byte += 16) await handle.append(Uint8Array.from({ length: 16 }, (_, n) => byte + n));
    await handle.close();
    await session.closed;
  }, server.at("png"));
  await reads(page, Array.from({ length: 256 }, (_, byte) => byte));
  await page.close();
});

test("of an answer that is cut, wherever it is, nothing is taken", limit, async () => {
  await server.create("anywhere", "application/json", '["a message"]');
  const whole = await fetch(server.at("anywhere"));
  const expected = [200, whole.headers.get("Stream-Next-Offset"), await whole.text()];
  let bytes = 0;
  const proxy = await Proxy.to(server.url, () => ({ bytes }));
  const page = await open();
  const seen = { refused: 0, "cut in its head": 0, whole: 0 };
  while (seen.whole === 0) {
    const [found, ...answer] = await page.evaluate(async (url) => {
      try {
        const answer = await whole(url, { cache: "no-store" });
        return ["whole", answer.status, answer.headers.get("Stream-Next-Offset"), await answer.text()];
      } catch ({ message }) {
        return [message in { "cut in its head": 0 } ? message : "refused"];
      }
    }, server.at("anywhere", proxy));
    if (found === "whole") assert.deepEqual(answer, expected, `after ${bytes} bytes`);
    seen[found]++;
    bytes++;
  }
  // The browser refuses what is cut in the body, and takes half a head for a whole one, once it knows that the page may read it.
  assert.ok(seen.refused >= 10 && seen["cut in its head"] >= 20, JSON.stringify(seen));
  await page.close();
  proxy.down();
});

test("two browsers on one stream, one by events and one by waits, over connections that are cut, read the same", limit, async () => {
  await server.create("two");
  const proxy = await Proxy.to(server.url, badly);
  const pages = await Promise.all(browsers.map(open));
  const lives = ["sse", "long-poll"];
  for (const [n, page] of pages.entries()) {
    await page.evaluate(([url, live]) => void follow(url, take, startOver, live), [server.at("two", proxy), lives[n]]);
  }
  const written = [];
  while (proxy.midway < 6 || proxy.unanswered < 4 || written.length < 100) {
    written.push(`message ${written.length + 1}`);
    await server.append("two", written.at(-1));
    await sleep(100 * Math.random());
  }
  proxy.calm();
  await server.append("two", "the end");
  for (const page of pages) {
    await reads(page, [...written, "the end"]);
    assert.equal(await page.evaluate("startedOver"), 0);
    await page.close();
  }
  proxy.down();
});

for (const live of ["long-poll", "sse"]) {
  test(`hidden, a page holds no ${live}; shown again, it reads what it missed`, limit, async () => {
    const name = `hidden-${live}`;
    await server.create(name);
    const page = await open();
    // The first request is a plain one; what has `live` is what the page waits with.
    const waiting = new Set();
    page.on("request", (request) => request.url().includes("live=") && waiting.add(request));
    for (const gone of ["requestfailed", "requestfinished"]) page.on(gone, (request) => waiting.delete(request));
    await page.evaluate(([url, live]) => void follow(url, take, startOver, live), [server.at(name), live]);
    await server.append(name, "seen");
    await reads(page, ["seen"]);

    for (const round of [1, 2]) {
      const before = await read(page);
      await until(() => waiting.size, 1);
      await hide(page, true);
      await until(() => waiting.size, 0);
      const missed = [`missed ${round}`, `missed too ${round}`];
      for (const message of missed) await server.append(name, message);
      await sleep(500);
      assert.deepEqual([waiting.size, await read(page)], [0, before]);
      await hide(page, false);
      await reads(page, [...before, ...missed]);
      await server.append(name, `seen ${round}`);
      await reads(page, [...before, ...missed, `seen ${round}`]);
    }
    assert.equal(await page.evaluate("startedOver"), 0);
    await page.close();
  });
}

/** Hides a page or shows it, as far as it can tell: headless, every tab is in view. */
function hide(page, hidden) {
  return page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
}

test("the browser's own EventSource goes on where it was, wherever it was cut", limit, async () => {
  await server.create("events", "application/json", '["first"]');
  // Each cuts the first connection at another place, and no other.
  const proxies = await Promise.all(
    [/event: data\n/, /event: data\n.*?\n\n/s, /event: control\ndata:/, /event: control\n.*?\n\n/s].map((until) => {
      const fates = [{ until }];
      return Proxy.to(server.url, () => fates.pop() ?? {});
    }),
  );
  const pages = await Promise.all(
    proxies.map(async (proxy) => {
      const page = await open();
      await page.evaluate((url) => watch(url, take, startOver), server.at("events", proxy));
      return page;
    }),
  );
  // What is said while they are away is in what they come back to.
  await until(() => proxies.map((proxy) => proxy.midway), [1, 1, 1, 1]);
  await server.append("events", "second");
  for (const page of pages) await reads(page, ["first", "second"]);
  await server.append("events", "third");
  for (const page of pages) {
    await reads(page, ["first", "second", "third"]);
    assert.equal(await page.evaluate("startedOver"), 0);
  }
  // At the end it is told so, and does not come back.
  await server.close("events");
  let asked = 0;
  for (const page of pages) page.on("request", () => asked++);
  await sleep(4000);
  assert.equal(asked, 0);
  for (const page of pages) await page.close();
  for (const proxy of proxies) proxy.down();
});

test("the server loses everything, and each kind of reader starts over", limit, async () => {
  const mine = await Server.start();
  await mine.create("lost", "application/json", '["before"]');
  const readers = { listen: 0, follow: 1, watch: 1 };
  const pages = {};
  for (const reader of Object.keys(readers)) {
    pages[reader] = await open();
    await pages[reader].evaluate(([reader, url]) => void window[reader](url, take, startOver), [reader, mine.at("lost")]);
    await reads(pages[reader], ["before"]);
  }
  await mine.kill();
  await mine.start();
  await mine.create("lost", "application/json", '["after"]');
  for (const page of Object.values(pages)) await reads(page, ["before", "after"]);
  await mine.append("lost", "more");
  for (const [reader, startedOver] of Object.entries(readers)) {
    await reads(pages[reader], ["before", "after", "more"]);
    assert.equal(await pages[reader].evaluate("startedOver"), startedOver, reader);
    await pages[reader].close();
  }
  await mine.kill();
});

// A page of the server's own origin that a stranger can fill: what runs in it may do whatever its users may.
const SCRIPT = `document.title = "ran"; localStorage.ran = 1; parent.postMessage("ran", "*"); fetch("ran", { method: "PUT" })`;
for (const [type, text] of [
  ["text/html", `<!doctype html><title>quiet</title><img src="data:," onerror='${SCRIPT}'><script>${SCRIPT}</script>`],
  ["image/svg+xml", `<svg xmlns="http://www.w3.org/2000/svg"><title>quiet</title><script>${SCRIPT.replaceAll("&", "&amp;")}</script></svg>`],
  ["application/xhtml+xml", `<html xmlns="http://www.w3.org/1999/xhtml"><head><title>quiet</title><script>${SCRIPT}</script></head></html>`],
]) {
  for (const [how, policy] of [["is looked at and does not run", true], ["would run if it were not for the policy", false]]) {
    test(`${type} that a stranger has put into a stream ${how}`, limit, async () => {
      const folder = `${type.replaceAll(/\W/g, "-")}-${policy}`;
      await server.create(`${folder}/page`, type, text);
      const context = await browsers[0].newContext();
      if (!policy) {
        await context.route(`**/${folder}/page`, async (route) => {
          const answer = await route.fetch();
          const { "content-security-policy": sandbox, ...headers } = answer.headers();
          assert.equal(sandbox, "sandbox");
          await route.fulfill({ response: answer, headers });
        });
      }
      const url = server.at(`${folder}/page`);
      const ran = async () => (await fetch(server.at(`${folder}/ran`))).status === 200;

      const page = await context.newPage();
      await page.goto(url);
      if (!policy) {
        await until(ran, true);
        assert.equal(await page.title(), "ran");
        return context.close();
      }
      assert.equal(await page.title(), "quiet");
      assert.equal(await page.evaluate("origin"), "null");
      await assert.rejects(page.evaluate("localStorage.length"), /SecurityError/);

      // Nor in a frame, on a page of the same origin.
      await page.goto(`${server.url}/plain`);
      const heard = await page.evaluate(async (url) => {
        const heard = [];
        addEventListener("message", (event) => heard.push(event.data));
        const frame = Object.assign(document.createElement("iframe"), { src: url });
        const loaded = new Promise((loaded) => frame.addEventListener("load", loaded));
        document.body.append(frame);
        await loaded;
        await new Promise((later) => setTimeout(later, 300));
        return { heard, reached: frame.contentDocument !== null, kept: localStorage.length };
      }, url);
      assert.deepEqual(heard, { heard: [], reached: false, kept: 0 });
      assert.equal(await ran(), false);
      await context.close();
    });
  }
}

// Chromium splits a content type at commas and takes the last type that it knows.
for (const type of ["text/plain;,text/html", "application/octet-stream;,text/html", "application/json;,text/html"]) {
  test(`${type} is no content type for a stream, because Chromium runs it`, limit, async () => {
    const name = `comma-${type.replaceAll(/\W/g, "-")}`;
    const body = `"<title>quiet</title><script>document.title = 'ran'</script>"`;
    for (const method of ["PUT", "POST"]) {
      const answer = await fetch(server.at(name), { method, headers: { "Content-Type": type }, body });
      assert.equal(answer.status, 400, `${method}: ${await answer.text()}`);
    }
    assert.equal((await fetch(server.at(name))).status, 404);

    // What it would be without the check, on a server that stores any type.
    const careless = createServer((_, answer) => {
      answer.writeHead(200, { "Content-Type": type, "X-Content-Type-Options": "nosniff" });
      answer.end(body);
    });
    careless.listen(0, "127.0.0.1");
    await once(careless, "listening");
    const page = await browsers[0].newPage();
    await page.goto(`http://127.0.0.1:${careless.address().port}`);
    assert.equal(await page.title(), "ran");
    await page.close();
    careless.close();
  });
}

// Types that look like a page to a careless parser, and are accepted.
for (const type of ["text/plain;x=\"text/html\"", "text/plain;;text=html", "application/json;x=\"\\\";text/html\""]) {
  test(`${type} is accepted, and Chromium does not run it`, limit, async () => {
    const name = `accepted-${type.replaceAll(/\W/g, "-")}`;
    await server.create(name, type, `"<title>quiet</title><script>document.title = 'ran'</script>"`);
    const page = await browsers[0].newPage();
    const answer = await page.goto(server.at(name));
    assert.equal(answer.headers()["content-type"], type);
    assert.equal(await page.title(), "");
    assert.match(await page.evaluate("document.body.innerText"), /<script>/);
    await page.close();
  });
}
