/* The landing page: a room to try, and all messages that this page sends and receives. */

import { connect } from "./trioswitch.js";

const $ = (id) => document.getElementById(id);
const LINES = 200;  // shown at most, in the room and on the wire
const WORDS = { connecting: "connecting", connected: "connected", waiting: "reconnecting", ended: "closed" };

const client = connect("ws");
let room = null;  // the room that we are in, or will be again once we are connected

client.on("state", showState);
client.on("frame", showFrame);
client.on("error", ({ message }) => showProblem(message));
$("url").textContent = client.url;
$("socket").textContent = client.url;
$("module").textContent = new URL("trioswitch.js", location.href).href;
$("name").value = `guest-${100 + Math.floor(Math.random() * 900)}`;

function showState({ state, seconds, code, reason }) {
  const connected = state === "connected";
  if (!connected && room !== null && $("state").dataset.state === "connected") addLine("note", "connection lost");
  $("state").dataset.state = state;
  $("word").textContent = WORDS[state];
  $("countdown").textContent = state === "waiting" ? ` in ${seconds} s` : "";
  if (state === "connecting") showProblem("");
  if (state === "ended") {
    showProblem(`The server closed the connection: ${reason} (${code}). This page does not reconnect by itself.`);
  }
  $("again").hidden = state !== "ended";
  $("join").disabled = $("send").disabled = !connected;
  if (!connected) $("online").textContent = "";
}

function showProblem(text) {
  $("problem").textContent = text;
}

function join(name) {
  client.userId = $("name").value.trim();
  const joined = client.join(name);
  showInside(joined);
  joined.on("joined", ({ online_count }) => showOnline(online_count));
  joined.on("message", ({ user_id, content, data, timestamp }) => {
    addLine("", `${user_id ?? "server"}: ${content ?? JSON.stringify(data)}`, timestamp);
  });
  joined.on("announcement", ({ action, user_id, online_count, timestamp }) => {
    showOnline(online_count);
    const what = { user_joined: "joined", user_left: "left" }[action];
    if (what) addLine("note", `${user_id} ${what}`, timestamp);
  });
  joined.on("gap", ({ dropped }) => {
    const missed = dropped === null ? "messages may be missing" : `${dropped} ${dropped === 1 ? "message" : "messages"} missed`;
    addLine("note", missed);
  });
  joined.on("refused", ({ message }) => {
    leave();
    showProblem(message);
  });
}

function leave() {
  room.leave();
  showInside(null);
}

function showInside(joined) {
  room = joined;
  $("join-form").hidden = room !== null;
  $("inside").hidden = $("leave").hidden = room === null;
  $("try-title").textContent = room === null ? "Try a room" : room.name;
  $("online").textContent = "";
}

function showOnline(count) {
  $("online").textContent = `${count} online`;
}

function append(list, line) {
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(line);
  while (list.childElementCount > LINES) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function addLine(kind, text, timestamp = Date.now()) {
  const line = document.createElement("p"), time = document.createElement("time"), at = new Date(timestamp);
  time.dateTime = at.toISOString();
  time.textContent = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  line.className = kind;
  line.append(time, text);
  append($("log"), line);
}

function showFrame({ direction, text }) {
  const { type, ...rest } = JSON.parse(text);
  const fields = Object.entries({ type, ...rest }).map(([name, value]) => `"${name}": ${JSON.stringify(value)}`);
  const line = document.createElement("div");
  line.className = direction;
  line.textContent = `{${fields.join(", ")}}`;
  append($("wire"), line);
}

$("join-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const name = $("room").value.trim();
  if (client.state !== "connected" || !name || !$("name").value.trim()) return;
  showProblem("");
  $("log").replaceChildren();
  join(name);
  $("text").focus();
});

$("say-form").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  if (client.state !== "connected") return;
  const text = $("text").value;
  showProblem($("text").value = "");
  try {
    await room.chat(text);
  } catch (error) {
    if (error.code !== "left") showProblem(error.message);
  }
});

$("leave").addEventListener("click", () => {
  leave();
  $("room").focus();
});

$("connect").addEventListener("click", () => client.connect());
