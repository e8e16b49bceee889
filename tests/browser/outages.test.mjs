// Things go wrong, and the page says so and carries on.
import assert from "node:assert/strict";
import { connect, createServer } from "node:net";
import { test } from "node:test";
import { numbered, reads, sees, setUp, until } from "./support.mjs";

const it = setUp();
const limit = { timeout: 60_000 };
const CONNECTED = "Connected";
const RECONNECTING = "Reconnecting…";

test("a page that was offline gets what it missed, once and in order", limit, async () => {
  const [ada, grace] = [await it.enter("Ada", "offline"), await it.enter("Grace", "offline")];
  await it.server.say("before", { room: "offline" });
  await reads(ada, ["before"]);

  await ada.context().setOffline(true);
  await sees(ada, "#state", RECONNECTING);
  const missed = numbered("missed", 20);
  for (const text of missed) await it.server.say(text, { room: "offline" });
  await reads(grace, ["before", ...missed]);

  // What is said meanwhile is not lost either: it stays where it was typed.
  await ada.fill("#text", "can you hear me?");
  await ada.press("#text", "Enter");
  await sees(ada, "#problem", "Not sent: the server cannot be reached. Your message is still here.");
  assert.equal(await ada.inputValue("#text"), "can you hear me?");
  await reads(ada, ["before"]);

  await ada.context().setOffline(false);
  await sees(ada, "#state", CONNECTED);
  await reads(ada, ["before", ...missed]);
  await ada.press("#text", "Enter");
  for (const page of [ada, grace]) await reads(page, ["before", ...missed, "can you hear me?"]);
  await sees(ada, "#problem", "");
});

for (const [what, room, words] of [
  ["with nothing said since", "killed", []],
  ["with something said before the page is back", "killed-too", ["after", "and more"]],
]) {
  test(`the server is killed and started again, ${what}: the page says so and starts over`, limit, async () => {
    const pages = [await it.enter("Ada", room), await it.enter("Grace", room)];
    await it.server.say("lost", { room });
    for (const page of pages) await reads(page, ["lost"]);

    await it.server.kill();
    for (const page of pages) {
      await sees(page, "#state", RECONNECTING);
      await reads(page, ["lost"]);
    }
    await it.server.start();
    for (const text of words) await it.server.say(text, { room });
    for (const page of pages) {
      await sees(page, "#log li:first-child", "Starting over: the server was restarted, or this page was away for too long.");
      await sees(page, "#state", CONNECTED);
      await reads(page, words);
    }

    await pages[0].fill("#text", "here again");
    await pages[0].press("#text", "Enter");
    for (const page of pages) await reads(page, [...words, "here again"]);
    for (const page of pages) await page.context().close();
  });
}

test("the server is killed in the middle of a burst: what comes after it arrives, once and in order", limit, async () => {
  const page = await it.enter("Ada", "middle");
  const burst = Promise.allSettled(numbered("burst", 200).map((text) => it.server.say(text, { room: "middle" })));
  await until(async () => (await page.locator(".text").count()) > 0, true);
  await it.server.kill();
  await burst;
  await it.server.start();
  const after = numbered("after", 50);
  for (const text of after) await it.server.say(text, { room: "middle" });
  await reads(page, after);
  await sees(page, "#state", CONNECTED);
});

test("a room that nobody has spoken in yet goes on over a restart as if nothing had been", limit, async () => {
  const page = await it.enter("Ada", "quiet");
  await it.server.kill();
  await sees(page, "#state", RECONNECTING);
  await it.server.start();
  await sees(page, "#state", CONNECTED);
  await it.server.say("first", { room: "quiet" });
  await reads(page, ["first"]);
  assert.equal(await page.getByText("Starting over").count(), 0);
});

test("a connection that has died unnoticed is given up, and nothing was lost", limit, async () => {
  const tunnel = await Tunnel.to(it.server.url);
  const context = await it.somebody("Ada");
  // A twentieth of the time that the page gives an answer, so that the test need not take it.
  await context.addInitScript(() => {
    const timeout = AbortSignal.timeout.bind(AbortSignal);
    AbortSignal.timeout = (milliseconds) => timeout(milliseconds / 20);
  });
  const page = await context.newPage();
  await page.goto(`${tunnel.url}/asleep`);
  await it.server.say("before", { room: "asleep" });
  await reads(page, ["before"]);

  tunnel.freeze();
  await it.server.say("during", { room: "asleep" });
  await sees(page, "#state", RECONNECTING);
  await it.server.say("still", { room: "asleep" });
  await reads(page, ["before"]);
  tunnel.thaw();
  await reads(page, ["before", "during", "still"]);
  await sees(page, "#state", CONNECTED);
  await context.close();
  tunnel.close();
});

test("awake again, or back on the network, the page asks anew at once", limit, async () => {
  const page = await it.enter("Ada", "lid");
  await until(() => it.server.waiting("lid"), 1);
  for (const event of ["visibilitychange", "online", "offline"]) {
    const given = page.waitForEvent("requestfailed", (request) => request.url().includes("long-poll"));
    const asked = page.waitForRequest((request) => /\?offset=[^&]*$/.test(request.url()));
    // And waits again, before the next: how many the server counts would not tell, while it has yet to see the old one go.
    const waits = page.waitForRequest((request) => request.url().includes("long-poll"));
    await page.evaluate((event) => document.dispatchEvent(new Event(event, { bubbles: true })), event);
    await Promise.all([given, asked, waits]);
  }
  await it.server.say("hello", { room: "lid" });
  await reads(page, ["hello"]);
});

test("a server that asks for patience is given it", limit, async () => {
  const page = await (await it.somebody("Ada")).newPage();
  const asked = [];
  await page.route(/\?offset=/, (route) => {
    asked.push(Date.now());
    if (asked.length > 1) return route.continue();
    return route.fulfill({ status: 503, headers: { "Retry-After": "2" } });
  });
  await page.goto(`${it.server.url}/patience`);
  await sees(page, "#state", RECONNECTING);
  await sees(page, "#state", CONNECTED);
  assert.ok(asked[1] - asked[0] >= 1_990, `after ${asked[1] - asked[0]} ms`);
});

test("a page that nobody sees holds no connection, so that many tabs do not keep one from talking", limit, async () => {
  const context = await it.somebody("Ada");
  const tabs = [];
  for (let tab = 0; tab < 8; tab++) {
    const page = await context.newPage();
    await page.goto(`${it.server.url}/tabs`);
    await sees(page, "#state", CONNECTED);
    await hide(page, tab < 7);
    tabs.push(page);
  }
  const [hidden, shown] = [tabs[0], tabs[7]];
  await until(() => it.server.waiting("tabs"), 1);

  await shown.fill("#text", "room for me?");
  await shown.press("#text", "Enter");
  await reads(shown, ["room for me?"]);

  // Looked for now and then; now, as the network is said to be back.
  await hidden.evaluate(() => dispatchEvent(new Event("online")));
  await reads(hidden, ["room for me?"]);
  await until(() => hidden.title(), "(1) #tabs");
  assert.equal(await it.server.waiting("tabs"), 1);
  await hide(hidden, false);
  await until(() => hidden.title(), "#tabs");
  await until(() => it.server.waiting("tabs"), 2);
});

/** Hides a page or shows it, as far as it can tell: headless, every tab is in view. */
function hide(page, hidden) {
  return page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
}

/** A way to the server that can die without a sign, as networks do: no reset, no end, nothing. */
class Tunnel {
  #frozen = false;
  #sockets = new Set();

  static async to(url) {
    const tunnel = new Tunnel();
    const { hostname, port } = new URL(url);
    tunnel.server = createServer((near) => {
      const far = connect(port, hostname);
      const dead = { is: tunnel.#frozen };
      for (const [from, to] of [[near, far], [far, near]]) {
        from.on("data", (bytes) => dead.is || to.write(bytes));
        from.on("close", () => dead.is || to.destroy());
        from.on("error", () => {});
        tunnel.#sockets.add(from);
      }
      near.dead = dead;
    });
    await new Promise((listening) => tunnel.server.listen(0, "127.0.0.1", listening));
    tunnel.url = `http://127.0.0.1:${tunnel.server.address().port}`;
    return tunnel;
  }

  /** What is connected is dead for good, and so is what connects from now on. */
  freeze() {
    this.#frozen = true;
    for (const socket of this.#sockets) if (socket.dead) socket.dead.is = true;
  }

  thaw() {
    this.#frozen = false;
  }

  close() {
    this.server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}
