// A room, over plain HTTP: one function sends, one waits. Nothing in here knows the page.

const path = (room) => `/rooms/${encodeURIComponent(room)}`;

/** Sends a message. Throws if it was not taken, and says why. */
export async function send(room, message) {
  const answer = await fetch(path(room), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(message),
    signal: AbortSignal.timeout(10_000),
  });
  if (!answer.ok) throw new Error(await answer.text());
}

/**
 * Reads a room from its start and then waits for what comes, for ever. Gives each message to `onMessages`, once and in
 * order. Tells `onConnected` whether the server is there, and `onStartOver` that it has lost the place where we were:
 * what was shown is to be forgotten, for all that is left is read again.
 */
export async function listen(room, { onMessages, onConnected, onStartOver }) {
  let offset = "-1"; // Where to go on from: the start, and then where the last answer has ended.
  let live = ""; // First read what there is. Then wait.
  let failures = 0;
  let gone = 0; // How many 410s came in a row. Reading from the start does not end the row.
  let turn; // What is under way: a request, or the pause before the next.

  // The network has come or gone, the page is shown or hidden, the lid is open again: see at once where we are.
  const interrupt = () => turn.abort();
  for (const event of ["online", "offline"]) addEventListener(event, interrupt);
  document.addEventListener("visibilitychange", interrupt);

  for (;;) {
    turn = new AbortController();
    // A wait is answered within 25 s, a read at once. What takes much longer is a connection that has died unnoticed.
    const deadline = AbortSignal.timeout(live ? 35_000 : 10_000 * (1 + failures));
    const signal = AbortSignal.any([turn.signal, deadline]);
    let answer;
    let messages = [];
    try {
      // Past the browser's cache, where one of two tabs that ask for the same would wait for the other's answer.
      answer = await fetch(`${path(room)}?offset=${offset}${live}`, { cache: "no-store", signal });
      if (answer.status === 200) messages = await answer.json();
      else if (answer.status !== 204 && answer.status !== 410) throw new Error(answer.statusText);
    } catch {
      live = ""; // A read without a wait is what tells soonest that the server is back.
      if (turn.signal.aborted) continue;
      onConnected(false);
      const asked = 1000 * (answer?.headers.get("Retry-After") ?? 0);
      const backoff = Math.min(5000, 500 * 2 ** failures++) * (0.5 + Math.random() / 2); // Not all at once.
      await sleep(asked || backoff, turn.signal);
      continue;
    }
    failures = 0;
    onConnected(true);
    if (answer.status === 410) {
      offset = "-1";
      live = "";
      onStartOver();
      // Behind two nodes that do not share their logs, each start ends in the next 410.
      if (gone++) await sleep(1000 + 2000 * Math.random(), turn.signal);
      continue;
    }
    if (offset !== "-1") gone = 0;
    // Only with the whole answer in hand do we move on: whatever breaks before this is asked for again.
    // A 204 that was cut in its head may have none: Chromium takes it for a whole one.
    offset = answer.headers.get("Stream-Next-Offset") ?? (answer.status === 204 && offset);
    if (!offset) throw new Error("Stream-Next-Offset cannot be read: is it exposed to this origin?");
    const caughtUp = answer.headers.has("Stream-Up-To-Date");
    onMessages(messages);
    // A browser has six connections to a server over HTTP/1.1. A page that nobody sees holds none of them.
    live = caughtUp && !document.hidden ? "&live=long-poll" : "";
    if (caughtUp && document.hidden) await sleep(15_000, turn.signal);
  }
}

function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", resolve);
    setTimeout(resolve, milliseconds);
  });
}
