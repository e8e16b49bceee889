// People talk.
import assert from "node:assert/strict";
import { test } from "node:test";
import { numbered, reads, said, sees, setUp, until } from "./support.mjs";

const it = setUp();
const limit = { timeout: 60_000 };

test("with the keyboard alone: a name, a message, and the other page has it", limit, async () => {
  const [ada, grace] = [await it.enter(undefined, "keys"), await it.enter("Grace", "keys")];

  await ada.keyboard.type("Ada");
  await ada.keyboard.press("Tab");
  await ada.keyboard.type("Hello,");
  await ada.keyboard.press("Shift+Enter");
  await ada.keyboard.type("world");
  await ada.keyboard.press("Enter");
  for (const page of [ada, grace]) {
    await reads(page, ["Hello,\nworld"]);
    assert.equal(await page.locator("#log .name").textContent(), "Ada");
    assert.match(await page.locator("#log time").textContent(), /^\d\d:\d\d$/);
  }
  assert.equal(await ada.locator("li.mine").count(), 1);
  assert.equal(await grace.locator("li.mine").count(), 0);

  // Who has a name begins at the message, and goes on from it.
  await until(() => ada.inputValue("#text"), "");
  await grace.keyboard.type("Hello, Ada");
  await grace.keyboard.press("Tab");
  await grace.keyboard.press("Enter");
  await ada.keyboard.type("Hello, Grace");
  await reads(ada, ["Hello,\nworld", "Hello, Ada"]);
  assert.equal(await ada.inputValue("#text"), "Hello, Grace");

  // To another room, backwards from the message.
  for (let tabs = 0; tabs < 3; tabs++) await ada.keyboard.press("Shift+Tab");
  assert.equal(await ada.evaluate(() => document.activeElement.id), "room");
  await ada.keyboard.press("ControlOrMeta+A");
  await ada.keyboard.type("ünder-stairs");
  await ada.keyboard.press("Enter");
  await ada.waitForURL(`${it.server.url}/${encodeURIComponent("ünder-stairs")}`);
  await sees(ada, "#state", "Connected");
  assert.equal(await ada.title(), "#ünder-stairs");
  assert.equal(await ada.inputValue("#name"), "Ada", "typed once");
  await ada.keyboard.type("Anybody here?");
  await ada.keyboard.press("Enter");
  await reads(ada, ["Anybody here?"]);
});

test("who comes later reads what was said before", limit, async () => {
  const before = numbered("before", 40);
  for (const text of before) await it.server.say(text, { room: "history" });
  const page = await it.enter("Ada", "history");
  await reads(page, before);
  assert.ok(await page.getByText("before 40", { exact: true }).isVisible());
  assert.ok(await page.getByText("before 40", { exact: true }).evaluate((text) => text.getBoundingClientRect().bottom < innerHeight));
  assert.equal(await page.title(), "#history", "none of it is news");
});

test("a burst arrives once and in order on every page, also on one that is opened in the middle of it", limit, async () => {
  const pages = [await it.enter("Ada", "burst"), await it.enter("Grace", "burst")];
  const burst = numbered("message", 300);
  const rest = burst.values();
  const talk = async () => {
    for (const text of rest) await it.server.say(text, { room: "burst" });
  };
  const talking = [talk(), talk(), talk(), talk()];
  pages.push(await it.enter("Linus", "burst"));
  await Promise.all(talking);
  await it.server.say("the end", { room: "burst" });

  const answer = await fetch(`${it.server.url}/rooms/burst?offset=-1`);
  const log = (await answer.json()).map((message) => message.text);
  assert.deepEqual(log.toSorted(), [...burst, "the end"].toSorted());
  for (const page of pages) await reads(page, log);
});

test("nothing is lost or doubled when waits time out while messages come", limit, async () => {
  const page = await (await it.somebody("Ada")).newPage();
  let timedOut = 0;
  let delivered = 0;
  page.on("response", (answer) => {
    if (!answer.url().includes("long-poll")) return;
    if (answer.status() === 204) timedOut++;
    else delivered++;
  });
  await page.route(/live=long-poll/, (route) => route.continue({ url: `${route.request().url()}&timeout=0.02` }));
  await page.goto(`${it.server.url}/hurry`);
  await sees(page, "#state", "Connected");

  // For as long as it takes: a race has been run when both have won it often.
  const messages = [];
  while (timedOut < 20 || delivered < 20) {
    messages.push(`message ${messages.length + 1}`);
    await it.server.say(messages.at(-1), { room: "hurry" });
    await page.waitForTimeout(60 * Math.random());
  }
  await reads(page, messages);
});

test("a message that looks like markup is text, and the policy stands behind it", limit, async () => {
  const page = await it.enter("Ada", "markup");
  const violations = [];
  page.on("console", (message) => violations.push(message.text()));
  const messages = [
    "<script>window.ran = true</script>",
    "<img src=x onerror='window.ran = true'>",
    "<svg onload='window.ran = true'>",
    "</textarea></li><style>body { display: none }</style>",
    "&lt;b&gt; &amp; <b>",
  ];
  for (const text of messages) {
    await it.server.say(text, { name: "<i onclick=alert(1)>'\"&amp;", room: "markup" });
  }
  await reads(page, messages);
  assert.equal(await page.locator("#log .name").first().textContent(), "<i onclick=alert(1)>'\"&amp;");
  assert.deepEqual(violations, [], "nothing of it was even tried");

  await page.evaluate(() => {
    const script = document.createElement("script");
    script.textContent = "window.ran = true";
    document.head.append(script);
    document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='window.ran = true'>");
  });
  await until(() => violations.length, 2);
  assert.ok(violations.every((text) => text.includes("Content Security Policy")), violations.join("\n"));
  assert.equal(await page.evaluate(() => window.ran), undefined);
});

test("the page shows how many wait, curl among them", limit, async () => {
  const [ada, grace] = [await it.enter("Ada", "count"), await it.enter("Grace", "count")];
  await sees(ada, "#waiting", "2 waiting");
  const gone = new AbortController();
  const curl = fetch(`${it.server.url}/rooms/count`, { signal: gone.signal }).catch(() => "gone");
  for (const page of [ada, grace]) await sees(page, "#waiting", "3 waiting");
  gone.abort();
  assert.equal(await curl, "gone");
  await grace.context().close();
  await sees(ada, "#waiting", "1 waiting");
});

test("what the server does not take stays in the box, with the reason", limit, async () => {
  const page = await it.enter("Ada", "refused");
  // Past the limits of the fields, as no keyboard would.
  await page.evaluate(() => document.querySelector("#name").removeAttribute("maxlength"));
  await page.fill("#name", "A".repeat(41));
  await page.fill("#text", "hello");
  await page.press("#text", "Enter");
  await sees(page, "#problem", "Not sent: a name has 1 to 40 characters. Your message is still here.");
  assert.equal(await page.inputValue("#text"), "hello");
  await page.fill("#name", "Ada");
  await page.press("#text", "Enter");
  await reads(page, ["hello"]);
  await sees(page, "#problem", "");

  for (const text of ["", " \n "]) {
    await page.fill("#text", text);
    await page.press("#text", "Enter");
  }
  await page.fill("#text", "after");
  await page.press("#text", "Enter");
  await reads(page, ["hello", "after"]);

  for (const [room, name, text, status] of [
    ["refused", "", "x", 422],
    ["refused", "a\nb", "x", 422],
    ["refused", "a", "x".repeat(4_001), 422],
    ["refused", "a", "x".repeat(100_000), 413],
    ["a%2Fb", "a", "x", 404],
    ["%2e%2e%2f", "a", "x", 404],
    ["x".repeat(41), "a", "x", 404],
  ]) {
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ name, text });
    const answer = await fetch(`${it.server.url}/rooms/${room}`, { method: "POST", headers, body });
    assert.equal(answer.status, status, `${room} ${name}`);
  }
  // A form of another site cannot send JSON without asking first.
  const form = await fetch(`${it.server.url}/rooms/refused`, { method: "POST", body: '{"name":"a","text":"x"}' });
  assert.equal(form.status, 415);
  assert.deepEqual(await said(page), ["hello", "after"]);
});
