/* The chat page: rooms, direct messages and dice. What concerns the connection is in trioswitch.js, which the server has. */

import { connect } from "./trioswitch.js";

const RETURN_TIME = 25;  // seconds in which the others come back after a restart of the server, and count as present
const FIRST_LINES = 50;  // messages of a room that are shown when it is joined
const LINES = 500;  // lines of a conversation that are kept
const NAMED = 100;  // people in a room up to which they are listed
const TOGETHER = 5 * 60 * 1000;  // milliseconds within which messages of one person share a heading
const GOLDEN_ANGLE = 137.508;  // degrees
const SETTLE_TIME = 0.5;  // seconds after a change of the window's size in which a browser may still move what is scrolled
const STORAGE = "trioswitch-chat";  // the key in the session storage: it lives as long as the tab
const WORDS = { connecting: "connecting", connected: "connected", waiting: "reconnecting", ended: "closed" };
const COMMANDS = `/join ROOM: join a room
/leave: leave this room, or close this conversation
/msg NAME TEXT: send a direct message
/roll 2d6: roll dice in this room
/help: show this list
To send a message that begins with a slash, type two slashes.`;

const $ = (id) => document.getElementById(id);
const conversations = new Map();  // by title: "#lobby" is a room, "@ada" are the direct messages with one person
let client = null, me = null, current = null;

/** An element. Children that are not elements become text, never markup. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A room, or the direct messages with one person: its tab, its lines, and who is there. */
class Conversation {
  unread = 0; count = 0; people = []; told = false;
  #atEnd = true; #box = ""; #resized = -Infinity;
  #asking = false; #askAgain = false; #expected = new Set(); #expecting = 0;
  // Lines have an order: in a room the offset, counted on from epoch to epoch. `newest` is the room's, not only ours.
  #epoch = null; #base = 0; #newest = 0; #shown = new Set();
  #old = Infinity;  // the offset up to which messages were published before we joined, and are not unread

  constructor(sign, name) {
    this.name = name;
    this.title = sign + name;
    this.isRoom = sign === "#";
    this.log = el("div", { class: "log", role: "log", "aria-label": `Messages in ${this.title}`, tabindex: 0 });
    this.log.hidden = true;
    this.log.addEventListener("scroll", () => {
      // The layout may have moved it away from its end, and not the person: then it goes back.
      this.#measure();
      if (this.#atEnd && performance.now() < this.#resized + SETTLE_TIME * 1000) return this.fit();
      this.#atEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
    });
    this.badge = el("span", { class: "unread" });
    this.tab = el("button", { class: "tab", type: "button", "data-title": this.title });
    this.tab.append(el("span", {}, this.title), this.badge);
    this.tab.addEventListener("click", () => show(this));
    this.item = el("li", {}, this.tab);
    $(this.isRoom ? "rooms" : "direct-tabs").append(this.item);
    $("logs").append(this.log);
    conversations.set(this.title, this);
    if (this.isRoom) this.#join();
    else this.note("This tab keeps direct messages until you sign out or close it");
  }

  close() {
    conversations.delete(this.title);
    clearTimeout(this.#expecting);
    if (this.isRoom) this.room.leave();
    else kept.direct = kept.direct.filter((message) => message.with !== this.name);
    this.item.remove();
    this.log.remove();
  }

  // --- a room

  #join() {
    this.room = client.join(this.name, { history: FIRST_LINES });
    this.room.on("joined", (ack) => this.#joined(ack));
    this.room.on("message", (event) => this.#take(event));
    this.room.on("announcement", (event) => this.#announced(event));
    this.room.on("gap", (gap) => this.#missed(gap));
    this.room.on("refused", ({ message }) => this.problem(message));
  }

  /** We are in the room, for the first time or again. Messages up to `offset` came before this, or are on their way. */
  #joined({ online_count, epoch, offset = 0, again, resumed }) {
    this.count = online_count;
    this.told = false;
    if (epoch !== undefined) this.#enter(epoch);
    this.#newest = Math.max(this.#newest, offset);
    if (this.#old === Infinity) {
      this.#old = this.#newest;
      this.note("You joined");
    }
    if (again && !resumed) this.#expect();
    this.refresh();
  }

  /** Show a message in its place, unless it is there already. */
  #take({ type, epoch, offset, user_id, content, data, timestamp }) {
    this.#enter(epoch);
    if (!this.#isNew(offset)) return;
    const order = this.#base + offset;
    if (type === "message") {  // the dice of our server; what a client publishes has a `user_id`
      if (user_id === undefined) this.note(rollText(data), { order });
      return;
    }
    const own = user_id === me && [...this.log.querySelectorAll(".sending")].find(({ dataset }) => dataset.text === content);
    const line = own || this.#line(user_id, content);
    line.classList.remove("sending");
    stamp(line, timestamp);
    this.#insert(line, order);
    if (user_id !== me && offset > this.#old) this.#markUnread();
  }

  #isNew(offset) {
    const order = this.#base + offset;
    if (this.#shown.has(order)) return false;
    this.#shown.add(order);
    this.#newest = Math.max(this.#newest, offset);
    return true;
  }

  #enter(epoch) {
    if (epoch === this.#epoch) return;
    this.#base += this.#newest + 1;
    this.#newest = 0;
    if (this.#old !== Infinity) this.#old = 0;
    this.#epoch = epoch;
  }

  /** Messages are missing here for good. Where nobody knows how many, say so once for each connection. */
  #missed({ dropped }) {
    if (dropped === null && this.told) return;
    this.told ||= dropped === null;
    const { epoch, offset } = this.room.position ?? { epoch: this.#epoch, offset: this.#newest };
    this.#enter(epoch);
    this.note(missedText(dropped), { order: this.#base + offset + 0.5, kind: "note lost" });
  }

  // --- who is here

  /** Ask who is here, once at a time. */
  async refresh() {
    this.#askAgain = this.isRoom && this.count <= NAMED;
    if (!this.#askAgain) this.people = [];
    if (this.#asking) return;
    this.#asking = true;
    try {
      while (this.#askAgain) {
        this.#askAgain = false;
        const { users } = await this.room.presence();
        this.people = [...new Set([...users, ...this.#expected])].sort();
      }
    } catch (error) {
      if (!isOver(error)) this.problem(error.message);
    }
    this.#asking = false;
    if (this === current) showPeople();
  }

  /** The server was started again and knows nobody. Who was here counts as present until they had time to come back. */
  #expect() {
    this.#expected = new Set(this.people.filter((name) => name !== me));
    clearTimeout(this.#expecting);
    this.#expecting = setTimeout(async () => {
      const expected = this.#expected;
      this.#expected = new Set();
      await this.refresh();
      for (const name of expected) if (this.people.length && !this.people.includes(name)) this.note(`${name} left`);
    }, RETURN_TIME * 1000);
  }

  #announced({ action, user_id, online_count }) {
    this.count = online_count;
    if (action === "user_joined" && user_id !== me && !this.#expected.has(user_id)) this.note(`${user_id} joined`);
    if (action === "user_left") {
      this.note(`${user_id} left`);
      this.#expected.delete(user_id);
      this.people = this.people.filter((name) => name !== user_id);
    }
    if (this === current) this.refresh();
  }

  // --- what we send

  /** Show a message, and send it: at once, or as soon as there is a connection. */
  async say(text) {
    const line = this.#sending(text);
    try {
      if (this.isRoom) this.#published(line, await this.room.chat(text));
      else this.#sent(line, text, await client.send(this.name, { content: text }));
    } catch (error) {
      this.#failed(line, error);
    }
  }

  /** Ask the server for a roll of the dice; it publishes the result to the room. */
  async roll(dice) {
    const line = this.#sending(`/roll ${dice}`);
    try {
      await client.publish({ type: "roll", room: this.name, dice });
      line.remove();
    } catch (error) {
      this.#failed(line, error);
    }
  }

  #sending(text) {
    const line = this.#line(me, text);
    line.dataset.text = text;
    line.classList.add("sending");
    this.#insert(line, this.isRoom ? Infinity : this.#end);
    this.scroll();
    return line;
  }

  /** Our message is in the room. Our copy of it may have come already, or be on its way. */
  #published(line, { epoch, offset }) {
    delete line.dataset.text;  // it is not sent again
    if (!line.classList.contains("sending")) return;
    line.classList.remove("sending");
    if (epoch === this.#epoch && this.#isNew(offset)) this.#insert(line, this.#base + offset);
    else line.remove();
  }

  #sent(line, text, { kept, delivered, queued, duplicate }) {
    delete line.dataset.text;
    line.classList.remove("sending");
    if (kept && !delivered && !queued && !duplicate) {
      line.append(el("span", { class: "waiting" }, `Delivered when ${this.name} comes online`));
    }
    keep({ with: this.name, author: me, text, at: Number(line.dataset.at) });
  }

  #failed(line, error) {
    if (isOver(error)) return line.remove();
    line.classList.remove("sending");
    line.append(el("span", { class: "problem" }, `Not sent: ${error.message}`));
    this.#insert(line, this.#end);
  }

  // --- lines

  /** A direct message. */
  hear(author, text, timestamp) {
    const line = this.#line(author, text);
    stamp(line, timestamp);
    this.#insert(line, this.#end);
    if (author !== me) this.#markUnread();
  }

  note(text, { order = this.#end, kind = "note" } = {}) {
    this.#insert(el("p", { class: kind }, text), order);
  }

  problem(text) {
    this.note(text, { kind: "problem" });
  }

  /** The order after all messages that have come. */
  get #end() {
    return this.#base + this.#newest + 0.5;
  }

  #line(author, text) {
    const by = author === me ? el("b", {}, author) : nameButton(author, author);
    by.tabIndex = -1;  // the keyboard reaches everybody through the list of people
    const line = el("div", { class: "message", "data-author": author },
      face(author), el("span", { class: "by" }, by, el("time")), el("span", { class: "content" }, ...linked(text)));
    paint(line, author);
    stamp(line, Date.now());
    return line;
  }

  #insert(line, order) {
    const follower = line.nextElementSibling;
    line.dataset.order = order;
    let before = this.log.lastElementChild;
    while (before && (before === line || before.dataset.order > order)) before = before.previousElementSibling;
    if (before) before.after(line);
    else this.log.prepend(line);
    while (this.log.childElementCount > LINES) {
      this.#shown.delete(Number(this.log.firstElementChild.dataset.order));
      this.log.firstElementChild.remove();
    }
    for (const moved of [line, line.nextElementSibling, follower, this.log.firstElementChild]) group(moved);
    this.fit();
  }

  /** To the end. */
  scroll() {
    this.log.scrollTop = this.log.scrollHeight;
  }

  /** The log has another size: it stays at the end where it was there. */
  fit() {
    if (this.#atEnd) this.scroll();
    this.#measure();
  }

  #measure() {
    const box = `${this.log.clientWidth} x ${this.log.clientHeight}`;
    if (box === this.#box) return;
    this.#box = box;
    this.#resized = performance.now();
  }

  #markUnread() {
    if (this !== current) this.unread += 1;
    showTabs();
  }
}

function conversation(sign, name) {
  return conversations.get(sign + name) ?? new Conversation(sign, name);
}

/** Whether a command failed because we left the room or signed out: nobody wants to read about that. */
function isOver({ code }) {
  return code === "left" || code === "closed";
}

// --- what the tab keeps over a reload: our name, our rooms, and the direct messages, which the server forgets after delivery

let kept = { name: null, rooms: [], current: null, direct: [] };

function keep(message) {
  kept.direct.push(message);
  save();
}

function save() {
  kept.rooms = [...conversations.values()].filter(({ isRoom }) => isRoom).map(({ name }) => name);
  kept.current = current?.title ?? null;
  kept.direct = kept.direct.slice(-LINES);
  for (;;) {
    try {
      return sessionStorage.setItem(STORAGE, JSON.stringify(kept));
    } catch (error) {
      if (error.name !== "QuotaExceededError" || !kept.direct.length) throw error;
      kept.direct.splice(0, Math.ceil(kept.direct.length / 2));  // the older half makes room for the newer one
    }
  }
}

// --- what the server tells

function receiveDirect({ user_id = "server", content, data, timestamp }) {
  const text = content ?? JSON.stringify(data);
  conversation("@", user_id).hear(user_id, text, timestamp);
  keep({ with: user_id, author: user_id, text, at: Date.parse(timestamp) });
}

function rollText({ user_id, dice, rolled }) {
  const sum = rolled.reduce((total, value) => total + value, 0);
  return `⚄ ${user_id} rolled ${dice}: ${rolled.length > 1 ? `${rolled.join(" + ")} = ${sum}` : sum}`;
}

function missedText(dropped) {
  if (dropped === null) return "Not everything could be recovered";
  return dropped === 1 ? "1 message missed" : `${dropped} messages missed`;
}

// --- what is shown

function showState({ state, seconds, code, reason }) {
  if (state === "closed") return;  // we signed out
  if (state === "connected") $("me").textContent = me = client.user;
  if (state === "ended") {
    const closed = `The server closed the connection: ${reason} (${code}). This page does not reconnect by itself.`;
    for (const conversation of conversations.values()) conversation.problem(closed);
  }
  $("state").dataset.state = state;
  $("word").textContent = WORDS[state];
  $("countdown").textContent = state === "waiting" ? ` in ${seconds} s` : "";
  $("retry").textContent = state === "waiting" ? "Now" : "Connect";
  $("retry").hidden = state !== "waiting" && state !== "ended";
  $("pause").hidden = state === "connected";
}

function show(conversation) {
  if (current) current.log.hidden = true;
  current = conversation;
  $("nothing").hidden = current !== null;
  $("say-form").hidden = $("leave").hidden = current === null;
  $("title").textContent = current?.title ?? "";
  $("people").hidden = $("people-toggle").hidden = !current?.isRoom;
  openPeople(false);
  showHint("");
  showTabs();
  save();
  if (!current) return;
  $("leave").textContent = current.isRoom ? "Leave" : "Close";
  $("text").placeholder = `Message ${current.title}`;
  current.log.hidden = false;
  current.scroll();
  current.fit();
  scrollToTab();
  showPeople();
  current.refresh();
}

function talkTo(name) {
  show(conversation("@", name));
  $("text").focus();
}

function enterRoom(name) {
  show(conversation("#", name));
  $("text").focus();
}

function leaveCurrent() {
  current.close();
  show([...conversations.values()].at(-1) ?? null);
}

function showTabs() {
  if (current) current.unread = 0;
  let total = 0;
  for (const conversation of conversations.values()) {
    conversation.tab.setAttribute("aria-current", String(conversation === current));
    const { title, unread } = conversation;
    conversation.badge.textContent = unread || "";
    conversation.tab.setAttribute("aria-label", unread ? `${title}, ${unread} unread` : title);
    total += unread;
  }
  $("direct").hidden = !$("direct-tabs").childElementCount;
  document.title = `${total ? `(${total}) ` : ""}${current?.title ?? "Chat"}`;
}

function scrollToTab() {
  current?.tab.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function showPeople() {
  const { count, people } = current;
  $("people-title").textContent = $("people-toggle").textContent = `${people.length || count} here`;
  $("too-many").hidden = count <= NAMED;
  $("names").replaceChildren(...people.map((name) => {
    if (name === me) return el("li", {}, el("span", { class: "you" }, face(name), `${name} (you)`));
    return el("li", {}, nameButton(name, face(name), name));
  }));
}

function openPeople(open) {
  $("people").classList.toggle("open", open);
  $("people-toggle").setAttribute("aria-expanded", String(open));
}

/** Tell the person something that concerns only this page, above the field. */
function showHint(text) {
  $("hint").textContent = text;
  $("hint").hidden = !text;
}

function nameButton(name, ...children) {
  const button = el("button", { type: "button", title: `Message ${name}` }, ...children);
  button.addEventListener("click", () => talkTo(name));
  return button;
}

function face(name) {
  const circle = el("span", { class: "face", "aria-hidden": "true" }, [...name][0].toUpperCase());
  paint(circle, name);
  return circle;
}

/** Give an element a person's own colour. The style sheet sets how light it is, so that it can be read on every ground. */
function paint(element, name) {
  element.style.setProperty("--hue", hueOf(name).toFixed(1));
}

/**
 * The hue of a name, in degrees: a hash of all characters but the last (FNV-1a, then the bits are mixed as in MurmurHash3), turned
 * by the golden angle times the last one, so that guest-1 and guest-2 look different.
 */
function hueOf(name) {
  const points = [...name].map((character) => character.codePointAt(0)), last = points.pop();
  let hash = 0x811c9dc5;
  for (const point of points) hash = Math.imul(hash ^ point, 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  hash = (hash ^ (hash >>> 16)) >>> 0;
  return ((hash / 2 ** 32) * 360 + last * GOLDEN_ANGLE) % 360;
}

/** A text as nodes: what looks like a web address becomes a link, and everything else stays text. */
function linked(text) {
  const nodes = [];
  let end = 0;
  for (const { 0: found, index } of text.matchAll(/https?:\/\/[^\s<>"]+/gi)) {
    const address = trimmed(found);
    if (!URL.canParse(address)) continue;
    const link = el("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, address);
    nodes.push(text.slice(end, index), link);
    end = index + address.length;
  }
  return [...nodes, text.slice(end)];
}

/** An address without the punctuation of the sentence around it. A closing bracket belongs to it where it has the opening one. */
function trimmed(address) {
  for (;;) {
    const last = address.at(-1);
    const unmatched = last === ")" && address.split(")").length > address.split("(").length;
    if (!unmatched && !".,:;!?'*_]}".includes(last)) return address;
    address = address.slice(0, -1);
  }
}

/** Show when a line was written. */
function stamp(line, timestamp) {
  const at = new Date(timestamp), time = line.querySelector("time");
  line.dataset.at = at.getTime();
  time.dateTime = at.toISOString();
  const today = at.toDateString() === new Date().toDateString();
  const day = today ? {} : { day: "numeric", month: "short" };
  time.textContent = at.toLocaleString([], { ...day, hour: "2-digit", minute: "2-digit" });
}

/** Leave out a line's heading where the line above has the same. */
function group(line) {
  if (!line?.dataset.author) return;
  const above = line.previousElementSibling?.dataset ?? {};
  const same = above.author === line.dataset.author && line.dataset.at - above.at < TOGETHER;
  line.classList.toggle("same", same);
}

// --- what the person does

function signIn(name, { rooms = ["lobby"], current: title = null, direct = [] } = {}) {
  me = name;
  kept = { name, rooms, current: title, direct };
  client = connect(`ws?name=${encodeURIComponent(name)}`);
  client.on("state", showState);
  client.on("direct", receiveDirect);
  client.on("gap", ({ dropped }) => current?.note(missedText(dropped), { kind: "note lost" }));
  client.on("error", ({ message }) => current?.problem(message));
  showState(client);
  $("me").textContent = me;
  $("welcome").hidden = true;
  $("app").hidden = false;
  for (const room of rooms) conversation("#", room);
  for (const { with: other, author, text, at } of direct) conversation("@", other).hear(author, text, at);
  for (const conversation of conversations.values()) conversation.unread = 0;  // the direct messages had been shown
  show(conversations.get(title) ?? [...conversations.values()][0] ?? null);
  $("text").focus();
}

function signOut() {
  client.close();
  for (const conversation of [...conversations.values()]) conversation.close();
  show(null);
  sessionStorage.removeItem(STORAGE);
  $("text").value = "";
  $("app").hidden = true;
  $("welcome").hidden = false;
  $("name").focus();
}

/** Carry out a line that was typed. Returns what is wrong with it, or nothing. */
function carryOut(text) {
  const [, command, rest] = text.match(/^\/([a-z]+)(?:\s+([^]*))?$/i) ?? [];
  const argument = (rest ?? "").trim();
  switch (command?.toLowerCase()) {
    case undefined:
      current.say(text.startsWith("//") ? text.slice(1) : text);
      return "";
    case "join":
      if (!argument) return "Name the room: /join ROOM";
      enterRoom(argument.replace(/^#/, ""));
      return "";
    case "leave":
      leaveCurrent();
      return "";
    case "msg": {
      const [, name, words] = argument.match(/^@?(\S+)\s+([^]+)$/) ?? [];
      if (!name) return "Name the person, and then the text: /msg NAME TEXT";
      talkTo(name);
      current.say(words);
      return "";
    }
    case "roll":
      if (!current.isRoom) return "Dice are rolled in a room.";
      if (!argument) return "Say which dice: /roll 2d6";
      current.roll(argument);
      return "";
    case "help":
      return COMMANDS;
    default:
      return `There is no command /${command}. These are the commands:\n${COMMANDS}`;
  }
}

/** Make the field as high as its text, up to the height that the style sheet allows. */
function fitField() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight + 2}px`;  // and its border
}

$("sign-in").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const name = $("name").value.trim();
  if (name) signIn(name);
});

$("say-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const text = $("text").value.trimEnd();
  if (!text.trim()) return;
  showHint("");
  const hint = carryOut(text);
  showHint(hint);
  if (!hint || hint === COMMANDS) $("text").value = "";  // a line that was not carried out can be corrected
  fitField();
});

$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("say-form").requestSubmit();
});

$("text").addEventListener("input", () => {
  fitField();
  showHint("");
});

$("add-room").addEventListener("click", () => $("join-dialog").showModal());
$("join-cancel").addEventListener("click", () => $("join-dialog").close());
$("join-dialog").addEventListener("close", () => $("join-form").reset());
$("join-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const name = $("join-room").value.trim().replace(/^#/, "");
  if (!name) return;
  $("join-dialog").close();
  enterRoom(name);
});

$("leave").addEventListener("click", leaveCurrent);
$("sign-out").addEventListener("click", signOut);
$("retry").addEventListener("click", () => client.connect());
$("people-toggle").addEventListener("click", () => openPeople(!$("people").classList.contains("open")));
new ResizeObserver(() => current?.fit()).observe($("logs"));
new ResizeObserver(scrollToTab).observe($("tabs"));
document.addEventListener("keydown", ({ key }) => { if (key === "Escape") openPeople(false); });

const stored = sessionStorage.getItem(STORAGE);
if (stored !== null) signIn(JSON.parse(stored).name, JSON.parse(stored));
