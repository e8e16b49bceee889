// What each client of the documentation does where a careless one is wrong: two nodes that do not share their logs, a response
// whose headers cannot be read, two tabs of one page, half a head.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { Agent, createServer, request } from "node:http";
import { createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { Site } from "./site.mjs";
import { Server, run, snippet, until } from "./support.mjs";

const limit = { timeout: 60_000 };
let directory;
let site;
let listen;
let follow;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), "rules-"));
  site = await Site.start();
  ({ listen } = await run(await snippet("README.md", "js", "function listen("), "listen"));
  ({ follow } = await run(await snippet("docs/clients.md", "js", "function follow("), "follow"));
});
after(async () => {
  await site?.stop();
  await rm(directory, { recursive: true });
});

/** An HTTP server on a port of its own. */
async function serve(handler) {
  const server = createServer(handler).listen(0, "127.0.0.1");
  await once(server, "listening");
  server.url = `http://127.0.0.1:${server.address().port}`;
  return server;
}

const ignore = () => {};
const python = async (url) => {
  const code = await snippet("docs/clients.md", "python", "def follow(");
  return [process.env.PYTHON, ["-c", `${code}\nimport sys\nfor _ in follow(sys.argv[1], lambda: None): pass`, url]];
};
let files = 0;
const curl = async (url) => {
  const code = await snippet("docs/clients.md", "sh", "follow()");
  return ["sh", ["-c", `${code}\nfollow "$0" "$1"`, url, join(directory, `answer-${files++}`)]];
};

/** A page of the chat, whose room is at `url`. */
async function room(url) {
  const code = (await readFile(new URL("../../examples/chat/room.js", import.meta.url), "utf8"))
    .replace("const path = (room) => `/rooms/${encodeURIComponent(room)}`;", "const path = (room) => room;");
  assert.match(code, /const path = \(room\) => room;/);
  const page = await site.browsers[0].newPage();
  await page.goto(site.url);
  await page.evaluate(async ([code, url]) => {
    const { listen } = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
    const ignore = () => {};
    window.failed = listen(url, { onMessages: ignore, onConnected: ignore, onStartOver: ignore }).catch((error) => error.message);
  }, [code, url]);
  return page;
}

test("behind two nodes that do not share their logs, every client pauses from the second 410 in a row on", limit, async () => {
  const nodes = await Promise.all([Server.start(process.env.SERVER), Server.start(process.env.SERVER)]);
  const names = ["listen", "follow-poll", "follow-sse", "python", "curl", "room"];
  for (const node of nodes) for (const name of names) await node.create(name, "application/json", '["a message"]');
  // Each request for a channel goes to the other node than the last one.
  const asked = Object.fromEntries(names.map((name) => [name, 0]));
  const agent = new Agent();
  const balancer = await serve((near, answer) => {
    const name = new URL(near.url, "http://balancer").pathname.split("/").pop();
    const { hostname, port } = new URL(nodes[asked[name]++ % 2].url);
    const far = request({ hostname, port, path: near.url, method: near.method, headers: near.headers, agent }, (from) => {
      answer.writeHead(from.statusCode, from.headers);
      from.pipe(answer);
    });
    far.on("error", () => answer.destroy());
    answer.on("close", () => far.destroy());
    far.end();
  });
  const at = (name) => `${balancer.url}/v1/stream/${name}`;
  listen(at("listen"), ignore);
  follow(at("follow-poll"), ignore, ignore, "long-poll").catch(ignore);
  follow(at("follow-sse"), ignore, ignore, "sse").catch(ignore);
  const children = [];
  for (const [start, name] of [[python, "python"], [curl, "curl"]]) {
    children.push(spawn(...(await start(at(name))), { stdio: "ignore" }));
  }
  const page = await room(at("room"));
  // Each has started over, and is watched for some time.
  await until(() => names.filter((name) => asked[name] < 4), []);
  const before = { ...asked };
  await sleep(3000);
  // A round is a read and a 410, perhaps a plain read between them, and a pause of a second at least.
  for (const name of names) assert.ok(asked[name] - before[name] <= 9, `${name}: ${asked[name] - before[name]} requests in 3 s`);
  for (const child of children) child.kill();
  await page.close();
  balancer.closeAllConnections();
  balancer.close();
  for (const node of nodes) await node.kill();
});

test("every client stops with an error if it cannot read `Stream-Next-Offset`", limit, async () => {
  let requests = 0;
  // A page of another origin may read this answer, but not its headers.
  const careless = await serve((_, answer) => {
    requests++;
    answer.writeHead(200, {
      "Content-Type": "application/json", "Access-Control-Allow-Origin": "*", "Stream-Up-To-Date": "true",
    });
    answer.end('["a message"]');
  });
  const unreadable = /Stream-Next-Offset/;
  const taken = [];
  const alone = async (what, stops) => {
    requests = 0;
    await stops;
    assert.equal(requests, 1, what);
  };
  await alone("listen", assert.rejects(listen(careless.url, (message) => taken.push(message)), unreadable));
  for (const live of ["long-poll", "sse"]) {
    await alone(`follow by ${live}`, assert.rejects(follow(careless.url, (message) => taken.push(message), ignore, live), unreadable));
  }
  const process = async (start) => promisify(execFile)(...(await start(careless.url)), { timeout: 20_000 });
  await alone("Python", assert.rejects(process(python), { killed: false, code: 1, stderr: unreadable }));
  await alone("curl", assert.rejects(process(curl), { killed: false, code: 1, stdout: "", stderr: unreadable }));
  const chat = room(careless.url);
  await alone("the chat's room.js", chat.then((page) => page.evaluate("failed")).then((message) => assert.match(message, unreadable)));
  const page = await site.open();
  for (const reader of ["listen", "follow"]) {
    const failed = page.evaluate(([reader, url]) => window[reader](url, take, startOver).catch((error) => error.message), [reader, careless.url]);
    await alone(`${reader} in Chromium`, failed.then((message) => assert.match(message, unreadable)));
  }
  assert.deepEqual([taken, await page.evaluate("read")], [[], []]);
  await page.close();
  await (await chat).close();
  careless.close();
});

for (const reader of ["next", "listen"]) {
  test(`two tabs that wait with \`${reader}\` wait at the server both, and read each message both`, limit, async () => {
    const server = await Server.start(process.env.SERVER);
    const url = `${server.url}/events/tabs`;
    const context = await site.browsers[0].newContext();
    const tabs = await Promise.all([site.open(context), site.open(context)]);
    for (const tab of tabs) {
      await tab.evaluate(([reader, url]) => {
        if (reader === "next") next(url).then((messages) => messages.forEach(take));
        else listen(url, take);
      }, [reader, url]);
    }
    // Chromium lets a request wait for the answer to another one for 20 s at most.
    await until(async () => (await fetch(`${server.url}/waiters`)).text(), "2", 10_000);
    const answer = await fetch(url, { method: "POST", headers: { "Content-Type": "application/json" }, body: '["a message"]' });
    assert.ok(answer.ok);
    for (const tab of tabs) await until(() => tab.evaluate("read"), ["a message"]);
    await context.close();
    await server.kill();
  });
}

test("in Chromium, `listen` goes on where it was after a 204 that was cut in its head", limit, async () => {
  const head = (status, offset) =>
    `HTTP/1.1 ${status}\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: *\r\n` +
    `Content-Type: application/json\r\nStream-Next-Offset: ${offset}\r\nStream-Up-To-Date: true\r\n`;
  const cut = head("204 No Content", "first").replace(/Stream-Next-Offset.*/s, "");
  const answers = [
    `${head("200 OK", "first")}Content-Length: 9\r\nConnection: close\r\n\r\n["first"]`,
    cut,
    `${head("200 OK", "second")}Content-Length: 10\r\nStream-Closed: true\r\nConnection: close\r\n\r\n["second"]`,
  ];
  const asked = [];
  const server = createTcpServer((socket) => {
    socket.on("error", ignore);
    socket.once("data", (data) => {
      asked.push(data.toString("latin1").split(" ")[1]);
      socket.end(answers[asked.length - 1]);
    });
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const page = await site.open();
  await page.evaluate((url) => listen(url, take), `http://127.0.0.1:${server.address().port}/`);
  assert.deepEqual(await page.evaluate("read"), ["first", "second"]);
  assert.deepEqual(asked, ["/?offset=-1", "/?offset=first&live=long-poll", "/?offset=first"]);
  await page.close();
  server.close();
});

test("an `EventSource` that a proxy has refused twice goes on where it was", limit, async () => {
  const server = await Server.start(process.env.SERVER);
  await server.create("refused", "application/json", '["first"]');
  // Refuses, once the page has read the first message and is cut, as a proxy does without a server.
  let refusals;
  const answers = new Set();
  const proxy = await serve((near, answer) => {
    if (refusals > 0) {
      refusals--;
      return answer.writeHead(502).end();
    }
    answers.add(answer);
    const { hostname, port } = new URL(server.url);
    const far = request({ hostname, port, path: near.url, headers: near.headers }, (from) => {
      answer.writeHead(from.statusCode, from.headers);
      from.pipe(answer);
    });
    far.on("error", ignore);
    answer.on("close", () => far.destroy());
    far.end();
  });
  const page = await site.open();
  await page.evaluate((url) => watch(url, take, startOver), `${proxy.url}/v1/stream/refused`);
  await until(() => page.evaluate("read"), ["first"]);
  refusals = 4;
  for (const answer of answers) answer.destroy();
  await server.append("refused", "second");
  await until(() => page.evaluate("read"), ["first", "second"]);
  assert.deepEqual([refusals, await page.evaluate("startedOver")], [0, 0]);
  await page.close();
  proxy.closeAllConnections();
  proxy.close();
  await server.kill();
});
