// What the tests share: the example as a process that can be killed, people with browsers, and a way to wait for what is to be seen.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { after, before } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { chromium } from "playwright-core";

/** Longer than anything here takes, and shorter than a wait: what comes only with its time-out comes too late. */
export const SOON = 15_000;

/** The example, in a process of its own, that can be killed and started again on the same port. */
export class Server {
  #listen = "127.0.0.1:0";
  #process;

  async start() {
    this.#process = spawn(process.env.CHAT, { env: { ...process.env, LISTEN: this.#listen }, stdio: ["ignore", "pipe", "inherit"] });
    const [line] = await once(createInterface(this.#process.stdout), "line", { signal: AbortSignal.timeout(SOON) });
    this.url = line.replace("listening on ", "");
    this.#listen = new URL(this.url).host;
    return this;
  }

  /** Without a word to anybody: SIGKILL. */
  async kill() {
    const gone = once(this.#process, "exit");
    this.#process.kill("SIGKILL");
    await gone;
  }

  /** Says something in a room, as curl would. */
  async say(text, { name = "curl", room = "lobby" } = {}) {
    const answer = await fetch(`${this.url}/rooms/${room}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ name, text }),
    });
    assert.equal(answer.status, 204, await answer.text());
  }

  async waiting(room = "lobby") {
    return (await fetch(`${this.url}/rooms/${room}/waiting`)).json();
  }
}

/** A server and a browser for the tests of a file. What throws in a page fails them. */
export function setUp() {
  const it = { server: new Server() };
  const thrown = [];
  before(async () => {
    await it.server.start();
    it.browser = await chromium.launch({
      executablePath: process.env.CHROMIUM,
      args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"].concat(
        ["--disable-background-networking", "--disable-component-update", "--disable-sync"],
      ),
    });
  });
  after(async () => {
    await it.browser?.close();
    await it.server.kill();
    assert.deepEqual(thrown, []);
  });

  /** Somebody with a browser of their own. Without a name they have not been here before. */
  it.somebody = async (name, options = {}) => {
    const localStorage = name ? [{ name: "name", value: name }] : [];
    const storageState = { cookies: [], origins: [{ origin: it.server.url, localStorage }] };
    const context = await it.browser.newContext({ locale: "en-GB", storageState, ...options });
    context.setDefaultTimeout(SOON);
    context.on("page", (page) => page.on("pageerror", (error) => thrown.push(error)));
    return context;
  };
  /** Somebody in a room, who has read what there is and waits. */
  it.enter = async (name, room = "lobby", options = {}) => {
    const page = await (await it.somebody(name, options)).newPage();
    await page.goto(`${it.server.url}/${room}`);
    await sees(page, "#state", "Connected");
    return page;
  };
  return it;
}

/** What the page shows of the messages, in its order. */
export const said = (page) => page.locator("#log .text").allTextContents();

/** Waits until a look at something finds what is expected, and fails with the difference if it does not. */
export async function until(look, expected) {
  const deadline = Date.now() + SOON;
  for (;;) {
    const found = await look();
    try {
      return assert.deepEqual(found, expected);
    } catch (difference) {
      if (Date.now() > deadline) throw difference;
    }
    await sleep(20);
  }
}

export const sees = (page, selector, text) => until(() => page.locator(selector).textContent(), text);

/** Waits until the page shows these messages, each once and in this order. */
export const reads = (page, messages) => until(() => said(page), messages);

export const numbered = (what, count) => Array.from({ length: count }, (_, n) => `${what} ${n + 1}`);
