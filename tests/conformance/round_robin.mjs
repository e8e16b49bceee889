// Hands each request to the next of several servers: node round_robin.mjs URL URL...
import http from "node:http";

const servers = process.argv.slice(2).map((url) => new URL(url));
const agent = new http.Agent({ keepAlive: true });
let next = 0;

const proxy = http.createServer((request, response) => {
  const { hostname, port } = servers[next++ % servers.length];
  const { method, url: path, headers } = request;
  const onwards = http.request({ agent, hostname, port, method, path, headers }, (answer) => {
    response.writeHead(answer.statusCode, answer.rawHeaders);
    answer.pipe(response);
    answer.on("error", () => response.destroy());
  });
  onwards.on("error", () => response.destroy());
  // Who goes takes the wait along.
  response.on("close", () => onwards.destroy());
  request.pipe(onwards);
});

proxy.listen(0, "127.0.0.1", () => console.log(`listening on http://127.0.0.1:${proxy.address().port}`));
