// What the page shows, and what its keys do. How messages go and come is in room.js.

import { listen, send } from "/room.js";

const byId = (id) => document.getElementById(id);
const [log, scroll, state, waiting, name, text, problem, newest] =
  ["log", "scroll", "state", "waiting", "name", "text", "problem", "newest"].map(byId);
const room = decodeURIComponent(location.pathname.slice(1));
const time = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const date = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });

let last; // The message before.
let history = true; // What comes first was said before we came: no news.
let unread = 0;

listen(room, {
  onMessages(messages) {
    const reading = scroll.scrollTop < -40; // Further up: the scroll is upside down.
    messages.forEach(show);
    while (log.children.length > 2_000) log.firstChild.remove();
    if (!history && messages.length > 0) {
      newest.hidden = !reading;
      if (document.hidden) unread += messages.length;
      title();
    }
    history = false;
    log.ariaLive = "polite";
  },
  onConnected(connected) {
    state.textContent = connected ? "Connected" : "Reconnecting…";
    document.body.classList.toggle("away", !connected);
  },
  onStartOver() {
    log.replaceChildren();
    last = undefined;
    history = true;
    note("Starting over: the server was restarted, or this page was away for too long.");
  },
});

/** Shows a message. It is the text of strangers: `textContent`, and nothing that would read it as markup. */
function show(message) {
  const at = new Date(message.at);
  const day = date.format(at);
  if (day !== last?.day) note(day);

  const item = byId("message").content.cloneNode(true).firstElementChild;
  const [avatar, who, what, when] = item.children;
  avatar.textContent = [...message.name][0].toUpperCase();
  who.textContent = message.name;
  what.textContent = message.text;
  when.textContent = time.format(at);
  when.dateTime = at.toISOString();
  item.classList.toggle("mine", message.name === name.value.trim());
  item.classList.toggle("more", message.name === last?.name && day === last.day && message.at - last.at < 300_000);
  item.style.setProperty("--hue", [...message.name].reduce((hue, c) => (hue * 31 + c.codePointAt(0)) % 360, 0));
  log.append(item);
  last = { ...message, day };
}

function note(words) {
  const item = document.createElement("li");
  item.className = "note";
  item.textContent = words;
  log.append(item);
}

byId("say").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.currentTarget;
  const said = text.value;
  if (form.ariaBusy || !said.trim()) return;
  form.ariaBusy = "true";
  try {
    await send(room, { name: name.value, text: said });
    if (text.value.startsWith(said)) text.value = text.value.slice(said.length); // What was typed meanwhile stays.
    problem.textContent = "";
    scroll.scrollTop = 0;
  } catch (error) {
    const why = error instanceof TypeError ? "the server cannot be reached" : error.message;
    problem.textContent = `Not sent: ${why}. Your message is still here.`;
  }
  form.ariaBusy = null;
});

text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  text.form.requestSubmit();
});

byId("rooms").addEventListener("submit", (event) => {
  event.preventDefault();
  location.assign(`/${encodeURIComponent(byId("room").value)}`);
});

newest.addEventListener("click", () => {
  scroll.scrollTop = 0;
  text.focus();
});
scroll.addEventListener("scroll", () => (newest.hidden ||= scroll.scrollTop > -40));

/** How many wait in this room just now. */
async function count() {
  try {
    const answer = await fetch(`/rooms/${encodeURIComponent(room)}/waiting`, { signal: AbortSignal.timeout(2000) });
    waiting.textContent = `${await answer.json()} waiting`;
  } catch {
    waiting.textContent = "";
  }
}
setInterval(() => document.hidden || count(), 2000);

function title() {
  document.title = (unread > 0 ? `(${unread}) ` : "") + `#${room}`;
}
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) unread = 0;
  title();
});
title();

byId("room").value = room;
// Last, as it throws where the browser keeps nothing for us.
name.addEventListener("change", () => localStorage.setItem("name", name.value.trim()));
name.value = localStorage.getItem("name") ?? "";
// On a phone, focus would bring up the keyboard over what one came to read.
if (matchMedia("(pointer: fine)").matches) (name.value ? text : name).focus();
