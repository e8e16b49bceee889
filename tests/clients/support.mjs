// What the tests share: a server that can be killed, a proxy that treats connections badly, the snippets of the
// documentation, and a way to wait for what is to be seen.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, readFile, readdir, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

/** Longer than anything here takes, and shorter than a wait: what comes only with its time-out comes too late. */
export const SOON = 20_000;

/** An example, in a process of its own, that can be killed and started again on the same port. */
export class Server {
  #listen = "127.0.0.1:0";
  #process;

  static async start(example = process.env.STREAMS, ...flags) {
    const server = new Server();
    Object.assign(server, { example, flags });
    await server.start();
    return server;
  }

  async start() {
    this.#process = spawn(this.example, this.flags, { env: { ...process.env, LISTEN: this.#listen }, stdio: ["ignore", "pipe", "inherit"] });
    const [line] = await once(createInterface(this.#process.stdout), "line", { signal: AbortSignal.timeout(SOON) });
    this.url = line.replace("listening on ", "");
    this.#listen = new URL(this.url).host;
  }

  /** Without a word to anybody, and with everything that it knew. */
  async kill() {
    const gone = once(this.#process, "exit");
    this.#process.kill("SIGKILL");
    await gone;
  }

  /** Stops the process while `during` runs. */
  async stopped(during) {
    this.#process.kill("SIGSTOP");
    try {
      // One thread acts on the signal and stops the others, so on a busy machine they run on for a while.
      await until(() => threadStates(this.#process.pid).then((states) => states.every((state) => state === "T")), true);
      return await during();
    } finally {
      this.#process.kill("SIGCONT");
    }
  }

  /** The address of a stream, as it is from the server itself or through a proxy. */
  at = (name, { url } = this) => `${url}/v1/stream/${name}`;

  async create(name, contentType = "application/json", body) {
    const answer = await fetch(this.at(name), { method: "PUT", headers: { "Content-Type": contentType }, body });
    assert.equal(answer.status, 201, await answer.text());
  }

  async append(name, message, headers = {}) {
    const body = message === undefined ? undefined : JSON.stringify([message]);
    const json = { "Content-Type": "application/json" };
    const answer = await fetch(this.at(name), { method: "POST", headers: { ...json, ...headers }, body });
    assert.equal(answer.status, 204, await answer.text());
  }

  close = (name) => this.append(name, undefined, { "Stream-Closed": "true" });

  async messages(name) {
    return (await fetch(this.at(name))).json();
  }
}

/** The state of each thread of a process: "T" if it is stopped (proc(5)). */
async function threadStates(pid) {
  const tasks = await readdir(`/proc/${pid}/task`);
  const stats = await Promise.all(tasks.map((task) => readFile(`/proc/${pid}/task/${task}/stat`, "utf8").catch(() => "")));
  // The name in parentheses before the state may contain anything. A thread that has ended is stopped for good.
  return stats.map((stat) => (stat ? stat.slice(stat.lastIndexOf(")") + 2)[0] : "T"));
}

/** A way to the server, for as long as it pleases. */
export class Proxy {
  /** How many connections have ended in the middle of an answer, and with a request that had none. */
  midway = 0;
  unanswered = 0;
  #fate;
  #sockets = new Set();
  #port = 0;

  /** `fate` is asked for each connection: `{ bytes, life }`, so many bytes of answers and so many milliseconds. */
  static async to(url, fate = () => ({})) {
    const proxy = new Proxy();
    const { hostname, port } = new URL(url);
    proxy.#fate = fate;
    proxy.server = createServer((near) => proxy.#carry(near, connect(port, hostname)));
    await proxy.up();
    return proxy;
  }

  #carry(near, far) {
    let { bytes = Infinity, until, life } = this.#fate();
    let asked = false;
    let seen = "";
    const cut = () => {
      if (near.destroyed) return;
      if (asked) this.unanswered++;
      // Half of them with a reset, half with an end that looks like any other.
      if (Math.random() < 0.5) near.resetAndDestroy();
      else near.destroySoon();
      far.destroy();
    };
    near.on("data", (request) => {
      asked = true;
      far.write(request);
    });
    far.on("data", (answer) => {
      asked = false;
      if (until) {
        seen += answer.toString("latin1");
        const end = seen.match(until);
        if (end) bytes = Math.max(0, end.index + end[0].length - (seen.length - answer.length));
      }
      near.write(answer.subarray(0, bytes));
      if (answer.length > bytes) {
        this.midway++;
        cut();
      }
      bytes -= answer.length;
    });
    const timer = life === undefined ? undefined : setTimeout(cut, life);
    for (const [from, to] of [[near, far], [far, near]]) {
      this.#sockets.add(from);
      from.on("error", () => {});
      from.on("close", () => {
        clearTimeout(timer);
        this.#sockets.delete(from);
        to.destroy();
      });
    }
  }

  /** From now on it is a good one. */
  calm() {
    this.#fate = () => ({});
  }

  /** Whoever is connected is not any more, and nobody gets in. */
  down() {
    this.server.close();
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  async up() {
    this.server.listen(this.#port, "127.0.0.1");
    await once(this.server, "listening");
    this.#port = this.server.address().port;
    this.url = `http://127.0.0.1:${this.#port}`;
  }
}

/** Connections end at random: half of them in the middle of an answer, half soon, which is most often between two. */
export const badly = () => (Math.random() < 0.5 ? { bytes: 3000 * Math.random() } : { life: 400 * Math.random() });

const root = new URL("../../", import.meta.url);

/** The block of a Markdown file, in a language, that says `words`: what a reader would copy. */
export async function snippet(file, language, words) {
  const text = await readFile(new URL(file, root), "utf8");
  const blocks = [...text.matchAll(/^```(\w+)\n(.*?)^```$/gms)].filter(([, of, code]) => of === language && code.includes(words));
  assert.equal(blocks.length, 1, `${file} has one block of ${language} with ${words}`);
  return blocks[0][2];
}

/** The functions that a snippet makes, from a module where its imports are what they are for everybody. */
export async function run(code, ...names) {
  const folder = new URL("node_modules/.snippets/", import.meta.url);
  await mkdir(folder, { recursive: true });
  const file = new URL(`${names[0]}-${process.pid}.mjs`, folder);
  await writeFile(file, `${code}\nexport { ${names.join(", ")} };\n`);
  return import(file);
}

/** Waits until a look at something finds what is expected, and fails with the difference if it does not. */
export async function until(look, expected, milliseconds = SOON) {
  const deadline = Date.now() + milliseconds;
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

export const numbered = (what, count) => Array.from({ length: count }, (_, n) => `${what} ${n + 1}`);
