// A site of another origin than the servers, and pages of it that have the JavaScript of the documentation.
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { chromium } from "playwright-core";
import { snippet } from "./support.mjs";

const CLIENT = new URL("node_modules/@durable-streams/client/dist/index.js", import.meta.url);
const ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];

export class Site {
  /** What was thrown in any page. */
  thrown = [];
  browsers = [];
  #server;

  static async start(browsers = 1) {
    const site = new Site();
    const exported = async (file, name, ...more) =>
      `${await snippet(file, "js", `function ${name}(`)}\nexport { ${[name, ...more].join(", ")} };\n`;
    const files = {
      "/client.js": await readFile(CLIENT, "utf8"),
      "/listen.js": await exported("README.md", "listen"),
      "/next.js": await exported("docs/clients.md", "next"),
      "/follow.js": await exported("docs/clients.md", "follow", "whole"),
      "/watch.js": await exported("docs/clients.md", "watch"),
      "/produce.js": await exported("docs/clients.md", "produce"),
    };
    const page = `<!doctype html><title>quiet</title><link rel="icon" href="data:,">
      <script type="importmap">{ "imports": { "@durable-streams/client": "/client.js" } }</script>
      <script type="module">
        import { stream, DurableStream, IdempotentProducer } from "@durable-streams/client";
        import { listen } from "/listen.js";
        import { next } from "/next.js";
        import { follow, whole } from "/follow.js";
        import { watch } from "/watch.js";
        import { produce } from "/produce.js";
        const read = [];
        Object.assign(window, { stream, DurableStream, IdempotentProducer, listen, next, follow, whole, watch, produce });
        Object.assign(window, { read, startedOver: 0 });
        window.take = (message) => read.push(message);
        window.startOver = () => window.startedOver++;
        window.ready = true;
      </script>`;
    site.#server = createServer(({ url }, answer) => {
      answer.setHeader("Content-Type", url in files ? "text/javascript" : "text/html");
      answer.end(files[url] ?? page);
    });
    site.#server.listen(0, "127.0.0.1");
    await once(site.#server, "listening");
    site.url = `http://127.0.0.1:${site.#server.address().port}`;
    const launch = () => chromium.launch({ executablePath: process.env.CHROMIUM, args: ARGS });
    site.browsers = await Promise.all(Array.from({ length: browsers }, launch));
    return site;
  }

  /** A page, in a browser or in a context of one. */
  async open(browser = this.browsers[0]) {
    const page = await browser.newPage();
    page.on("pageerror", (error) => this.thrown.push(error));
    await page.goto(this.url);
    await page.waitForFunction("window.ready");
    return page;
  }

  async stop() {
    for (const browser of this.browsers) await browser.close();
    this.#server.close();
  }
}
