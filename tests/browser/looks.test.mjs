// It looks like something one would ship. With UPDATE_SCREENSHOTS=1 the pictures of the README are taken anew.
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { numbered, reads, said, sees, setUp, until } from "./support.mjs";

const it = setUp();
const limit = { timeout: 60_000 };

const CONVERSATION = [
  ["Grace", "Morning! Is the new build out?"],
  ["Ada", "Since nine. No complaints so far."],
  ["Ada", "Well, one: a laptop that went through a tunnel in the middle of a deploy."],
  ["Grace", "And?"],
  ["Ada", "It came back with everything it had missed. Once, and in order."],
  ["Linus", "I killed the server on purpose. The page said so, and started over."],
  ["Linus", "Took it about a second."],
  ["Grace", "Good. Please stop doing that :)"],
];

test("pictures are taken: light, dark, and on a phone", limit, async () => {
  const keep = process.env.UPDATE_SCREENSHOTS === "1";
  const folder = keep ? fileURLToPath(new URL("../../docs", import.meta.url)) : await mkdtemp(join(tmpdir(), "chat-"));
  for (const [name, text] of CONVERSATION) await it.server.say(text, { name });
  const guest = await it.enter("Linus");

  const pictures = [];
  for (const [file, colorScheme, viewport, deviceScaleFactor, background] of [
    ["chat-light.png", "light", { width: 900, height: 700 }, 1.7, "rgb(255, 255, 255)"],
    ["chat-dark.png", "dark", { width: 900, height: 700 }, 1.7, "rgb(22, 24, 31)"],
    ["chat-phone.png", "light", { width: 390, height: 844 }, 1.5, "rgb(255, 255, 255)"],
  ]) {
    const page = await it.enter("Ada", "lobby", { colorScheme, viewport, deviceScaleFactor });
    await until(async () => (await said(page)).length, CONVERSATION.length);
    await sees(page, "#waiting", "2 waiting");
    assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), background);
    pictures.push(await page.screenshot({ path: join(folder, file), animations: "disabled" }));
    await page.context().close();
  }
  assert.ok(pictures.every((picture) => picture.length > 20_000), "there is something on them");
  await guest.context().close();
  if (!keep) await rm(folder, { recursive: true });
});

for (const width of [320, 390, 1280]) {
  test(`at ${width} pixels nothing hangs out and everything can be reached`, limit, async () => {
    const room = `w${width}-${"long".repeat(8)}`;
    await it.server.say("x".repeat(400), { name: "N".repeat(40), room });
    await it.server.say("https://example.com/" + "path/".repeat(60), { name: "Ada", room });
    await it.server.say(numbered("line", 30).join("\n"), { name: "Ada", room });
    const page = await it.enter("Ada", room, { viewport: { width, height: 640 } });
    await until(async () => (await said(page)).length, 3);
    await sees(page, "#waiting", "1 waiting");

    const outside = await page.evaluate(() => {
      const root = document.documentElement;
      const wide = [root, document.querySelector("#scroll")].filter((box) => box.scrollWidth > box.clientWidth);
      const parts = [...document.querySelectorAll("input, textarea, button:not([hidden]), #state, #waiting, .text, .name, time")];
      const hang = parts.filter((part) => {
        const box = part.getBoundingClientRect();
        return box.left < 0 || box.right > innerWidth || (!part.closest("li") && (box.top < 0 || box.bottom > innerHeight));
      });
      return [...wide, ...hang].map((part) => part.id || part.className);
    });
    assert.deepEqual(outside, []);
    assert.ok(await page.evaluate(() => document.documentElement.scrollHeight <= innerHeight), "the page itself stays");
  });
}

test("who reads further up stays there and is told of news; who is at the end follows", limit, async () => {
  const before = numbered("before", 60);
  for (const text of before) await it.server.say(text, { room: "scroll" });
  const page = await it.enter("Ada", "scroll");
  await reads(page, before);
  const top = (text) => page.getByText(text, { exact: true }).evaluate((item) => Math.round(item.getBoundingClientRect().top));

  await page.focus("#scroll");
  for (let pages = 0; pages < 2; pages++) await page.keyboard.press("PageUp");
  await until(() => page.evaluate(() => document.querySelector("#scroll").scrollTop < -400), true);
  const still = async () => {
    const was = await top("before 30");
    await page.waitForTimeout(100);
    return was === (await top("before 30"));
  };
  await until(still, true);
  const was = await top("before 30");
  await it.server.say("news", { room: "scroll" });
  await reads(page, [...before, "news"]);
  assert.equal(await top("before 30"), was, "what one reads stays where it is");

  await page.getByRole("button", { name: "New messages" }).click();
  await until(() => page.evaluate(() => document.querySelector("#scroll").scrollTop), 0);
  await until(() => page.locator("#newest").isVisible(), false);
  assert.equal(await page.evaluate(() => document.activeElement.id), "text");

  await it.server.say("more\n".repeat(10) + "news", { room: "scroll" });
  await until(async () => (await said(page)).length, 62);
  await until(() => page.evaluate(() => document.querySelector("#scroll").scrollTop), 0);
  assert.equal(await page.locator("#newest").isVisible(), false);
});

test("everything that can be worked has a name, and shows when it has the focus", limit, async () => {
  const page = await it.enter("Ada", "focus");
  await page.focus("#room");
  const stops = [];
  for (let stop = 0; stop < 5; stop++) {
    stops.push(
      await page.evaluate(() => {
        const { id, tagName, labels, ariaLabel, textContent } = document.activeElement;
        const shown = getComputedStyle(document.activeElement).outlineStyle === "solid";
        return [id || tagName, labels?.[0]?.textContent ?? ariaLabel ?? textContent, shown];
      }),
    );
    await page.keyboard.press("Tab");
  }
  assert.deepEqual(stops, [
    ["room", "#Room", true],
    ["scroll", "Messages", true],
    ["name", "Your name", true],
    ["text", "Message", true],
    ["BUTTON", "Send", true],
  ]);
  assert.equal(await page.getAttribute("#log", "role"), "log");
  await until(() => page.getAttribute("#log", "aria-live"), "polite");
});
