// nginx and HAProxy as docs/deploying.md configures them, on free ports, in front of a server.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { snippet, until } from "./support.mjs";

/** A free port. Another process may take it before the proxy does: then the proxy ends, and the test with it. */
async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** The block of the documentation with other addresses than those in it. */
async function configured(language, words, ...addresses) {
  let block = await snippet("docs/deploying.md", language, words);
  for (const [documented, here] of addresses) {
    assert.equal(block.split(documented).length, 2, `the block of ${language} has ${documented} once`);
    block = block.replace(documented, here);
  }
  return block;
}

export class ReverseProxy {
  #process;
  #directory;

  /** Starts `command` with the file that `config` returns, and waits until it listens. */
  static async #start(config, command, ...flags) {
    const proxy = new ReverseProxy();
    proxy.#directory = await mkdtemp(join(tmpdir(), "proxy-"));
    const port = await freePort();
    proxy.url = `http://127.0.0.1:${port}`;
    const file = join(proxy.#directory, "config");
    await writeFile(file, await config(port, proxy.#directory));
    proxy.#process = spawn(command, [...flags, file], { stdio: ["ignore", "inherit", "inherit"] });
    const listens = () =>
      new Promise((resolve) => {
        assert.equal(proxy.#process.exitCode, null, `${command} has ended`);
        const socket = connect(port, "127.0.0.1", () => resolve(true)).on("error", () => resolve(false));
        socket.on("connect", () => socket.destroy());
      });
    await until(listens, true);
    return proxy;
  }

  static nginx(to) {
    const config = async (port, directory) => {
      const block = await configured("nginx", "upstream", ["127.0.0.1:3000", to.host], ["listen 80;", `listen 127.0.0.1:${port};`]);
      const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${directory}/${name};`);
      const user = process.getuid() === 0 ? "user root;" : "";
      return `daemon off; worker_processes 2; pid ${directory}/pid; error_log stderr crit; ${user}
        events { worker_connections 1024; }
        http { access_log off; ${paths.join(" ")}\n${block}}`;
    };
    return ReverseProxy.#start(config, "nginx", "-e", "stderr", "-c");
  }

  static haproxy(to) {
    const config = (port) => configured("haproxy", "backend", ["127.0.0.1:3000", to.host], ["bind :80", `bind 127.0.0.1:${port}`]);
    return ReverseProxy.#start(config, "haproxy", "-q", "-db", "-f");
  }

  async stop() {
    if (this.#process.exitCode === null) {
      const ended = once(this.#process, "exit");
      this.#process.kill("SIGTERM"); // nginx ends its workers only on a signal that it can handle.
      await ended;
    }
    await rm(this.#directory, { recursive: true, force: true });
  }
}
