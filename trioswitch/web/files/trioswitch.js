/**
 * trioswitch.js: the client for web pages, an ES module without dependencies. Each trioswitch server serves it at /trioswitch.js.
 *
 *   import { connect } from "./trioswitch.js";
 *
 *   const client = connect("ws", { userId: "ada" });
 *   const room = client.join("lobby", { history: 20 });
 *   room.on("message", ({ user_id, content }) => console.log(user_id, content));
 *   await room.chat("Hello!");
 *
 * The client reconnects by itself, resumes its session, fetches the messages that it missed, drops duplicates, and sends a
 * message again until the server has acknowledged it. docs/browser.md describes the interface, docs/protocol.md the messages.
 */

const FIRST_CEILING = 0.5, LAST_CEILING = 20;  // seconds: the random delay before a reconnect is below a ceiling that doubles
const GREETING_TIMEOUT = 15;  // seconds in which a connection must be open and the server must have sent `connected`
const RETRY_DELAY = 3;  // seconds before a command is repeated that the server could not carry out at the moment
const RETRIED = new Set(["not_stored", "unavailable"]);  // the codes of such answers
const PAGE_SIZE = 1000;  // messages in one answer to `history`: the greatest number that the server allows
const TAKEN_OVER = 4002;  // the close code for a session that another connection has resumed
const UNAUTHORISED = 4500;  // the close code for a token that is wrong, or has run out
const RENEW_AT = 0.8;  // the share of a token's time after which a new one is sent
const MIN_RENEWAL = 1;  // seconds
const LONGEST_TIMER = 2 ** 31 - 1;  // milliseconds: browsers run a timer with a longer delay at once

/**
 * Why a command failed. `code` is a code of the server (docs/protocol.md, "Error codes"), or one of these: `connection_lost`
 * where the answer was lost, `left` where the room was left first, `closed` where the client was closed first.
 */
export class TrioswitchError extends Error {
  name = "TrioswitchError";

  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** Open a connection, and keep it open. `url` is relative to the page; http and https become ws and wss. */
export function connect(url = "ws", options = {}) {
  return new Client(url, options);
}

const emit = Symbol("emit");  // calls the callbacks for an event; a symbol, because only this module may do it
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

class Emitter {
  #callbacks;

  constructor(events) {
    this.#callbacks = new Map(events.map((event) => [event, new Set()]));
  }

  /** Call `callback` with the details of each event of this kind. Returns a function that ends this. */
  on(event, callback) {
    const callbacks = this.#callbacks.get(event);
    if (callbacks === undefined) throw new TypeError(`"${event}" is not one of ${[...this.#callbacks.keys()].join(", ")}`);
    callbacks.add(callback);
    return () => callbacks.delete(callback);
  }

  [emit](event, details) {
    for (const callback of [...this.#callbacks.get(event)]) {
      try {
        callback(details);
      } catch (error) {
        reportError(error);  // as for a listener of the DOM: the other callbacks are called all the same
      }
    }
  }
}

/** A WebSocket that is opened again whenever it is lost, unless the server's close code forbids it. */
class Link {
  #url; #onState; #onEvent; #onFrame; #renews;
  #socket = null;
  #abandoned = [];  // dead sockets that have not been closed: see `#lose`
  #attempt = 0; #advice = null;  // the next delay: the number of the attempt, or the seconds that the server gave
  #greetedAt = Infinity;
  #heard = false;
  #timer = 0; #heartbeat = 0;
  #hurry = () => this.#socket ?? this.connect();  // the browser says that the network is back

  /** `renews()`: whether a connection that ends as unauthorised may be opened again, with another token. */
  constructor(url, { onState, onEvent, onFrame, renews }) {
    [this.#url, this.#onState, this.#onEvent, this.#onFrame, this.#renews] = [url, onState, onEvent, onFrame, renews];
  }

  connect() {
    if (this.#socket !== null) return;
    clearTimeout(this.#timer);
    globalThis.removeEventListener("online", this.#hurry);
    this.#greetedAt = Infinity;
    const socket = this.#socket = new WebSocket(this.#url);
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#lose(code, reason);
    this.#timer = setTimeout(() => this.#lose(1006, "the server did not answer"), GREETING_TIMEOUT * 1000);
    this.#onState({ state: "connecting" });
  }

  /** Close for good, with 1000: the server ends the session at once. (A browser closes with 1001 when its tab is closed.) */
  close() {
    this.#stop();
    this.#socket?.close(1000);
    this.#socket = null;
    this.closeAbandoned();
    this.#onState({ state: "closed" });
  }

  /** Returns whether the connection was open. */
  send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    const text = JSON.stringify(message);
    this.#socket.send(text);
    this.#onFrame("out", text);
    return true;
  }

  /** The session is in use on this connection, or is over: closing the dead sockets does not end it any more. */
  closeAbandoned() {
    for (const socket of this.#abandoned.splice(0)) socket.close(1000);
  }

  /** Give this connection up before it has a session, and try again later. */
  giveUp(reason) {
    this.#greetedAt = Infinity;
    this.#lose(1006, reason);
  }

  #receive(text) {
    this.#heard = true;
    this.#onFrame("in", text);
    const event = JSON.parse(text);
    if (event.type === "connected") {
      clearTimeout(this.#timer);
      this.#greetedAt = performance.now();
      this.#heartbeat = setInterval(() => this.#beat(), Math.min(event.heartbeat * 1000, LONGEST_TIMER));
    }
    if (event.type === "reconnect") this.#advice = event.after;
    this.#onEvent(event);
  }

  /** When nothing came for a whole interval, not even the answer to a heartbeat, the connection is dead. */
  #beat() {
    if (!this.#heard) return this.#lose(1006, "the server did not answer a heartbeat");
    this.#heard = false;
    this.send({ type: "heartbeat" });
  }

  #stop() {
    clearTimeout(this.#timer);
    clearInterval(this.#heartbeat);
    globalThis.removeEventListener("online", this.#hurry);
    if (this.#socket !== null) this.#socket.onmessage = this.#socket.onclose = null;
  }

  /**
   * The connection is lost. A socket that went silent stays open until the session is resumed: `close` would send a close frame,
   * and if that reached the server after all, the server would end the session.
   */
  #lose(code, reason) {
    this.#stop();
    if (this.#greetedAt === Infinity) this.#socket.close();
    else if (this.#socket.readyState === WebSocket.OPEN) this.#abandoned.push(this.#socket);
    this.#socket = null;
    const isFinal = code >= 4500 && code <= 4999 && !(code === UNAUTHORISED && this.#renews());
    if (isFinal) return this.#onState({ state: "ended", code, reason });
    if (performance.now() - this.#greetedAt > LAST_CEILING * 1000) this.#attempt = 0;
    const ceiling = Math.min(LAST_CEILING, FIRST_CEILING * 2 ** this.#attempt++);
    const delay = this.#advice ?? Math.random() * ceiling;
    this.#advice = null;
    globalThis.addEventListener("online", this.#hurry);
    this.#wait(performance.now() + delay * 1000, { code, reason });
  }

  #wait(until, cause) {
    const left = Math.max(0, until - performance.now());
    const next = () => until - performance.now() < 1 ? this.connect() : this.#wait(until, cause);  // a timer may run a little early
    this.#timer = setTimeout(next, left < 1000 ? left : left % 1000 || 1000);
    this.#onState({ state: "waiting", seconds: Math.ceil(left / 1000), ...cause });
  }
}

/**
 * What the client knows of one room: whether it is a member on the present connection, and its position.
 *
 * `position` is the last message that was given to the page. A message at or below it is a duplicate. The room is *behind*
 * while messages above it are missing: then messages that arrive are thrown away, and `history` is asked for everything since
 * the position, page by page. A gap is fetched from the position and not from the gap's own beginning, because messages below
 * that may still be on their way. A message of another epoch may be older or newer than the present one, so the room is behind
 * then, too: the answer to `history` tells which epoch is the present one.
 */
class Membership {
  joined = false;  // on the present connection
  known = false;  // has been a member before
  asking = false;  // a join is not answered yet
  #name; #room; #history; #ask;
  #left = false;
  #connection = 0;  // counts the connections, so that a reply on an earlier one is recognised
  #epoch = null;  // null: the room has no history, or nothing is known yet; empty: its history has no message yet
  #offset = 0;
  #base = 0;  // stands for the offset as long as no message has come of the history that the first join asked for
  #asked = 0;  // the offset that the last join named
  #behind = false; #fetching = false;
  #thrown = new Map();  // the greatest offset that was thrown away since the last request, by epoch

  constructor(name, history, room, ask) {
    [this.#name, this.#history, this.#room, this.#ask] = [name, history, room, ask];
  }

  get position() {
    return this.#epoch === null ? null : { epoch: this.#epoch, offset: this.#offset || this.#base };
  }

  /** The position to name in `resume` and `join_room`; what is after it comes again. */
  since() {
    const since = this.position;
    this.#asked = since?.offset ?? 0;
    return since;
  }

  /** Ask the server for membership. Returns its answer, or null when the connection was lost or the room was left first. */
  async join(userId) {
    const connection = this.#connection, since = this.since();
    const fields = { room: this.#name };
    if (userId !== null) fields.user_id = userId;
    if (since !== null) fields.since = since;
    else if (!this.known && this.#history > 0) fields.history = this.#history;
    for (;;) {
      this.asking = true;
      const answer = await this.#ask({ type: "join_room", ...fields });
      if (answer === null || this.#left || connection !== this.#connection) return null;
      this.asking = false;
      if (answer.code !== "unavailable") return answer;
      await sleep(RETRY_DELAY);
      if (this.#left || connection !== this.#connection) return null;
    }
  }

  /** The connection is lost: the next join names the position, so what had to be fetched comes then. */
  lose() {
    this.#connection += 1;
    this.joined = this.asking = this.#behind = this.#fetching = false;
    this.#thrown.clear();
  }

  /** Returns whether the server has to be told. */
  leave() {
    const told = this.joined || this.asking;
    this.#left = true;
    this.lose();
    return told;
  }

  /** The client is a member: again with the session (`resumed`), or by a join. */
  enter(ack, resumed) {
    const again = this.known, { epoch, offset = 0, recovered } = ack;
    this.known = this.joined = true;
    this.#room[emit]("joined", { ...ack, again, resumed });
    if (epoch === undefined) {
      if (this.#epoch !== null) this.#behind = true;  // the server could not read the history now, or has none any more
      else if (again && !recovered) this.#gap(null);
    } else if (this.#epoch === null) {
      this.#epoch = epoch;
      if (again) this.#gap(null);  // the room had no history when the connection was lost
      if (this.#history > 0 && !again) this.#base = Math.max(0, offset - this.#history);
      else this.#offset = Math.max(this.#offset, offset);
    } else if (!this.#enterEpoch(epoch) && recovered === false && offset < this.#asked) {
      this.#gap(null);  // the history has become shorter than what came of it
      this.#offset = offset;
    }
    this.#fetch();
  }

  /** A `chat_message` or `message` of the room, or the `error` that stands in the place of one. */
  take(event) {
    const { epoch, offset } = event;
    if (offset === undefined) return this.#give(event);
    if (!this.#epoch) this.#epoch = epoch;
    if (epoch === this.#epoch && offset <= this.#offset) return;
    if (epoch === this.#epoch && !this.#behind) {
      this.#offset = offset;
      return this.#give(event);
    }
    this.#fallBehind(epoch, offset);
  }

  missed({ epoch, from, to, dropped, lost }) {
    if (epoch === undefined) return this.#gap(dropped ?? null);
    if (from === undefined || to === undefined) return void this.#enterEpoch(epoch);
    if (epoch === this.#epoch) {
      const place = this.#offset || this.#base;
      if (to <= place) return;
      if (lost && from <= place + 1) {
        this.#offset = to;
        return this.#gap(to - place);
      }
    }
    this.#fallBehind(epoch, to);
  }

  #fallBehind(epoch, offset) {
    this.#behind = true;
    this.#thrown.set(epoch, Math.max(offset, this.#thrown.get(epoch) ?? 0));
    this.#fetch();
  }

  async #fetch() {
    if (this.#fetching) return;
    const connection = this.#connection;
    this.#fetching = true;
    while (this.#behind && this.#epoch !== null) {
      this.#thrown.clear();  // the answer comes after all of it
      const request = { type: "history", room: this.#name, since: this.position, limit: PAGE_SIZE };
      const answer = await this.#ask(request);
      if (answer === null || connection !== this.#connection) return;
      if (answer.type === "ack") {
        this.#takePage(answer);
      } else if (RETRIED.has(answer.code)) {
        await sleep(RETRY_DELAY);
        if (connection !== this.#connection) return;
      } else {
        this.#abandon();
      }
    }
    this.#fetching = false;
  }

  #takePage({ epoch, offset: end, messages, more, recovered }) {
    let before = this.#offset || this.#base;
    if (this.#enterEpoch(epoch)) {
      before = 0;
    } else if (!recovered) {
      const missing = (messages.length ? messages[0].offset - 1 : end) - before;
      this.#gap(missing > 0 ? missing : null);
      this.#offset = Math.min(before, end);
    }
    for (const event of messages) {
      if (event.offset <= this.#offset) continue;
      this.#offset = event.offset;
      this.#give(event);
    }
    if (!more) {
      this.#offset = Math.max(this.#offset, end);
      this.#behind = [...this.#thrown].some(([thrown, offset]) => thrown !== this.#epoch || offset > this.#offset);
    } else if (this.#offset <= before) {
      this.#abandon();  // an empty page with more behind it: the next answer would be the same
    }
  }

  /** What is missing cannot be fetched. */
  #abandon() {
    this.#behind = false;
    this.#gap(null);
  }

  /** Returns whether an earlier epoch is over: what did not come of that is lost. */
  #enterEpoch(epoch) {
    const over = this.#epoch;
    this.#epoch = epoch;
    if (!over || over === epoch) return false;
    this.#offset = this.#base = this.#asked = 0;
    this.#gap(null);
    return true;
  }

  #give(event) {
    if (event.type === "error") this.#gap(1);
    else this.#room[emit]("message", event);
  }

  #gap(dropped) {
    this.#room[emit]("gap", { dropped });
  }
}

/** A room that the client has joined with `client.join`. */
export class Room extends Emitter {
  /** Users in the room, as far as the server has told; null before the first answer. */
  onlineCount = null;
  #client; #membership;

  /** For `Client.join` only. */
  constructor(client, name, attach) {
    super(["joined", "message", "gap", "announcement", "refused"]);
    this.name = name;
    this.#client = client;
    this.#membership = attach(this);
    for (const event of ["joined", "announcement"]) {
      this.on(event, ({ online_count }) => { this.onlineCount = online_count ?? this.onlineCount; });
    }
  }

  /** Whether the server counts the client among the members now. */
  get joined() {
    return this.#membership.joined;
  }

  /** `{ epoch, offset }` of the last message that came; null in a room without history. */
  get position() {
    return this.#membership.position;
  }

  /** Publish a line of text. Resolves to the receipt. */
  chat(content, fields = {}) {
    return this.#client.publish({ ...fields, type: "chat_message", room: this.name, content });
  }

  /** Publish data. `fields` are other fields of the command, such as `key` or `expires`. Resolves to the receipt. */
  publish(data, fields = {}) {
    return this.#client.publish({ ...fields, type: "message", room: this.name, data });
  }

  /** Ask who is here. Resolves to an object with `users`, `count`, `online_count` and `connections`. */
  presence() {
    return this.#client.request("presence", { room: this.name }, { repeat: true });
  }

  /** Ask for messages of the history: the newest, or those after `since`. Resolves to an object with `messages` and `more`. */
  history(fields = {}) {
    return this.#client.request("history", { ...fields, room: this.name }, { repeat: true });
  }

  leave() {
    this.#client.leave(this.name);
  }
}

/** A connection to a server that is kept open; made by `connect`. */
export class Client extends Emitter {
  /** The name under which the client joins rooms, where the server asks for no token. */
  userId;
  /** `connecting`, `connected`, `waiting` (for the next attempt), `ended` (by the server, for good) or `closed` (by `close`). */
  state = "connecting";
  /** The user, as the server calls it; null before the first connection. */
  user = null;
  #link; #token;
  #signedIn = false;  // with a token, on the present connection
  #renewal = 0;  // the timer of the next token
  #session = null;
  #connection = null;  // the id of the present connection
  #rooms = new Map();  // by name: { room, membership }
  #lastId = 0;
  #asked = new Map();  // what to call with the answer, by the id of the command
  #commands = new Set();  // commands that are not answered yet, in their order
  #seq = 0;  // the last direct message that was given to the page
  #reads = false;  // the page reads direct messages, so the client acknowledges them
  #aside = null;  // direct messages that came before it is known whether the session goes on

  constructor(url, { userId = null, token = null } = {}) {
    super(["state", "direct", "group", "message", "gap", "error", "frame"]);
    this.userId = userId;
    this.#token = token;
    const renews = () => this.#signedIn && typeof this.#token === "function";
    const address = new URL(url, globalThis.location?.href);
    address.protocol = address.protocol.replace(/^http/, "ws");
    this.url = address.href;
    this.#link = new Link(this.url, {
      renews,
      onState: (change) => this.#change(change),
      onEvent: (event) => this.#receive(event),
      onFrame: (direction, text) => this[emit]("frame", { direction, text }),
    });
    queueMicrotask(() => this.state !== "closed" && this.#link.connect());  // callbacks can be registered before
  }

  /** Connect now, without waiting for the next attempt, or although the server has ended the connection. */
  connect() {
    if (this.state === "closed") throw new TrioswitchError("closed", "the client has been closed");
    this.#link.connect();
  }

  /** Leave all rooms, end the session and disconnect, for good. Commands that have no answer yet fail with `closed`. */
  close() {
    if (this.state === "closed") return;
    this.#rooms.clear();
    this.#session = null;
    this.#link.close();
    this.#giveUp(() => true, "closed", "the client has been closed");
  }

  on(event, callback) {
    const end = super.on(event, callback);
    if (event === "direct" && !this.#reads) {
      this.#reads = true;
      if (this.state === "connected") this.#acknowledge();
    }
    return end;
  }

  /** The names of the rooms that the client is in, or wants to be in. */
  get rooms() {
    return [...this.#rooms.keys()];
  }

  /**
   * Join a room, and join it again on each connection until it is left. Returns the Room at once. `history` is the number of its
   * newest messages that come first.
   */
  join(name, { history = 0 } = {}) {
    if (this.state === "closed") throw new TrioswitchError("closed", "the client has been closed");
    const present = this.#rooms.get(name);
    if (present !== undefined) return present.room;
    let membership;
    const room = new Room(this, name, (made) => (membership = new Membership(name, history, made, (m) => this.#ask(m))));
    this.#rooms.set(name, { room, membership });
    if (this.state === "connected") this.#join(room, membership);
    return room;
  }

  /** Leave a room. What was published to it and is not acknowledged fails with `left`: it may have been published. */
  leave(name) {
    const entry = this.#rooms.get(name);
    if (entry === undefined) return;
    this.#rooms.delete(name);
    if (entry.membership.leave()) this.#link.send({ type: "leave_room", room: name });
    this.#giveUp(({ message }) => message.room === name, "left", `the room "${name}" has been left`);
  }

  /** Send to all connections of a user: text as `{ content }`, or `{ data }`. Resolves to the receipt. */
  send(to, fields) {
    return this.publish({ ...fields, type: "direct_message", to });
  }

  /** Send to a group: text as `{ content }`, or `{ data }`. It is not repeated: a lost answer fails with `connection_lost`. */
  sendGroup(group, fields) {
    return this.request("group_message", { ...fields, group });
  }

  /**
   * Send a command, and resolve to its `ack`; a message type of the application's own, for example. It is sent once: where
   * the connection is lost before the answer it fails with `connection_lost`. With `repeat` it waits for a connection, and is
   * sent again on the next one, so it must do no harm to carry it out twice.
   */
  request(type, fields = {}, { repeat = false } = {}) {
    return this.#submit({ ...fields, type }, repeat);
  }

  /** Send a publishing command until it is acknowledged, under one idempotency key. Resolves to the receipt. */
  publish(command) {
    return this.#submit({ ...command, idempotency_key: command.idempotency_key ?? newKey() }, true);
  }

  // --- commands

  #submit({ type, ...fields }, repeat) {
    return new Promise((resolve, reject) => {
      if (this.state === "closed") return reject(new TrioswitchError("closed", "the client has been closed"));
      if (this.state !== "connected" && !repeat) return reject(new TrioswitchError("connection_lost", "there is no connection"));
      this.#commands.add({ message: { type, ...fields }, repeat, resolve, reject, underWay: false });
      this.#flush();
    });
  }

  /** Send the commands that can be sent now. Those for a room wait until it is joined. */
  #flush() {
    if (this.state !== "connected") return;
    for (const command of this.#commands) {
      const entry = this.#rooms.get(command.message.room);
      if (!command.underWay && (entry === undefined || entry.membership.joined)) this.#transmit(command);
    }
  }

  async #transmit(command) {
    command.underWay = true;
    const answer = await this.#ask(command.message);
    if (command.repeat && RETRIED.has(answer?.code)) await sleep(RETRY_DELAY);
    command.underWay = false;
    if (!this.#commands.has(command)) return;  // the client has given it up
    if (command.repeat && answer === null) return;  // it is sent again on the next connection
    if (command.repeat && RETRIED.has(answer.code)) return this.#flush();
    this.#commands.delete(command);
    if (answer === null) command.reject(new TrioswitchError("connection_lost", "the connection was lost before the answer came"));
    else if (answer.type === "error") command.reject(new TrioswitchError(answer.code, answer.message));
    else command.resolve(answer);
  }

  #giveUp(concerned, code, message) {
    for (const command of [...this.#commands].filter(concerned)) {
      this.#commands.delete(command);
      command.reject(new TrioswitchError(code, message));
    }
  }

  /** Resolves to the `ack` or the `error`, or to null when the connection was lost before either came. */
  #ask({ type, ...fields }) {
    return new Promise((resolve) => {
      const id = ++this.#lastId;
      if (this.#link.send({ type, ...fields, id })) this.#asked.set(id, resolve);
      else resolve(null);
    });
  }

  // --- the connection

  #change(change) {
    if (change.state === "waiting" || change.state === "ended" || change.state === "closed") this.#lose(change);
    this.state = change.state;
    this[emit]("state", change);
  }

  #lose({ code }) {
    if (this.#connection === null) return;
    this.#connection = null;
    this.#signedIn = false;
    clearTimeout(this.#renewal);
    if (code === TAKEN_OVER) this.#session = null;  // to resume it would take it away from the other connection
    for (const { membership } of this.#rooms.values()) membership.lose();
    const asked = [...this.#asked.values()];
    this.#asked.clear();
    for (const resolve of asked) resolve(null);
  }

  /** The server has greeted: identify, resume the session, join the rooms, and send what is not acknowledged. */
  async #begin({ connection_id, user_id, session }) {
    this.#connection = connection_id;
    this.#aside = [];
    this.user = user_id;
    if (this.#token !== null && !(await this.#authenticate(connection_id))) return;
    let resumed = {};
    if (this.#session !== null) {
      const known = [...this.#rooms].map(([name, { membership }]) => [name, membership.known ? membership.since() : null]);
      const positions = Object.fromEntries(known.filter(([, since]) => since !== null));
      const answer = await this.#ask({ type: "resume", session: this.#session, rooms: positions });
      if (answer === null || this.#connection !== connection_id) return;
      if (answer.type === "ack") {
        [resumed, session, this.user] = [answer.rooms ?? {}, this.#session, answer.user_id ?? this.user];
      } else {
        this.#seq = 0;  // the server may be another one, which counts from 1
      }
    }
    this.#session = session;
    this.#link.closeAbandoned();
    this.#change({ state: "connected" });
    for (const [name, { room, membership }] of this.#rooms) {
      if (membership.known && Object.hasOwn(resumed, name)) membership.enter(resumed[name], true);
      else if (!membership.asking) this.#join(room, membership);
    }
    for (const name of Object.keys(resumed)) {
      if (!this.#rooms.has(name)) this.#link.send({ type: "leave_room", room: name });  // it was left meanwhile
    }
    if (this.#reads) this.#acknowledge();
    const aside = this.#aside;
    this.#aside = null;
    aside.forEach((event) => this.#direct(event));
    this.#flush();
  }

  /** Returns whether to go on: the server closes the connection where the token is wrong. */
  async #authenticate(connection) {
    let token;
    try {
      token = typeof this.#token === "function" ? await this.#token() : this.#token;
    } catch (error) {
      if (this.#connection === connection) this.#link.giveUp(`there is no token: ${error.message}`);
      return false;
    }
    if (this.#connection !== connection) return false;
    const answer = await this.#ask({ type: "authenticate", token });
    if (answer === null || this.#connection !== connection) return false;
    this.user = answer.user_id ?? this.user;
    this.#signedIn = answer.type === "ack";
    if (this.#signedIn) this.#renewLater(connection, answer.expires);
    if (this.#signedIn || answer.code === "not_available") return true;  // not available: the server takes no tokens
    if (answer.code !== "unauthorised") this.#link.giveUp(`the server could not check the token: ${answer.message}`);
    return false;
  }

  /** Send a new token before the present one runs out, where there is a function that gets one. */
  #renewLater(connection, expires) {
    clearTimeout(this.#renewal);
    if (typeof this.#token !== "function" || expires === undefined) return;
    const delay = Math.max(RENEW_AT * expires, MIN_RENEWAL) * 1000;
    this.#renewal = setTimeout(() => this.#renew(connection), Math.min(delay, LONGEST_TIMER));
  }

  async #renew(connection) {
    if (this.#connection !== connection) return;
    try {
      const token = await this.#token();
      if (this.#connection !== connection) return;
      const answer = await this.#ask({ type: "authenticate", token });
      if (answer?.type === "ack") this.#renewLater(connection, answer.expires);
    } catch {
      this.#renewLater(connection, 0);  // it is tried again soon
    }
  }

  async #join(room, membership) {
    const answer = await membership.join(this.userId);
    if (answer === null) return;
    if (answer.type === "error") return room[emit]("refused", { code: answer.code, message: answer.message });
    const renamed = answer.user_id !== undefined && answer.user_id !== this.user;
    if (renamed) this.user = answer.user_id;
    membership.enter(answer, false);
    if (renamed && this.#reads) this.#acknowledge();  // the inbox is that of the name
    this.#flush();
  }

  // --- what the server sends

  #receive(event) {
    const resolve = this.#asked.get(event.id);
    if (resolve !== undefined) {
      this.#asked.delete(event.id);
      return resolve(event);
    }
    const { room, membership } = this.#rooms.get(event.room) ?? {};
    switch (event.type) {
      case "connected":
        this.#begin(event);
        break;
      case "chat_message":
      case "message":
        if (event.room === undefined) this[emit]("message", event);
        else membership?.take(event);
        break;
      case "direct_message":
        this.#direct(event);
        break;
      case "group_message":
        this[emit]("group", event);
        break;
      case "system":
        room?.[emit]("announcement", event);
        break;
      case "gap":
        if (event.room === undefined) this[emit]("gap", { dropped: event.dropped ?? null });
        else membership?.missed(event);
        break;
      case "error":
        if (event.code === "unencodable" && membership !== undefined) membership.take(event);
        else this[emit]("error", event);
        break;
    }
  }

  /** A direct message. One that is in the inbox has a `seq`, and comes again on each connection until it is acknowledged. */
  #direct(event) {
    if (this.#aside !== null) return void this.#aside.push(event);
    if (!this.#reads || event.seq <= this.#seq) return;
    if (event.seq !== undefined) this.#seq = event.seq;
    this[emit]("direct", event);
    if (event.seq !== undefined) this.#acknowledge();
  }

  #acknowledge() {
    this.#link.send({ type: "inbox_ack", upto: this.#seq });
  }
}

/** A key that no other message has. (`crypto.randomUUID` is missing on pages that come without TLS.) */
function newKey() {
  return [...crypto.getRandomValues(new Uint32Array(4))].map((number) => number.toString(36)).join("-");
}
