// The console. It asks for everything with POST, every two seconds for the figures; a room is followed by server-sent events.
const INTERVAL = 2000;
const EVENTS = 200;

const at = (id) => document.getElementById(id);
let timer = 0;
let before = null;  // the figures of the last time, and when that was
let source = null;  // the room that is followed

async function ask(what, fields = {}) {
  const response = await fetch(`admin/api/${what}`, { method: "POST", body: JSON.stringify(fields) });
  const answer = await response.json();
  if (response.status === 401 && what !== "login") show(false);
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// --- figures

const bytes = (count) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) [count, unit] = [count / 1024, unit + 1];
  return `${count.toFixed(unit && count < 10 ? 1 : 0)} ${units[unit]}`;
};
const number = (count) => Math.round(count).toLocaleString("en");

/** A small graph of values, from the oldest to the newest. */
function graph(values) {
  const most = Math.max(...values, 1e-9);
  const points = values.map((value, i) => `${(100 * i) / Math.max(1, values.length - 1)},${30 - (28 * value) / most}`);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 32");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
  svg.append(path);
  return svg;
}

function figure(name, value, values) {
  const made = element("div", undefined, { class: "figure" });
  made.append(element("span", name, { class: "soft" }), element("b", value));
  if (values) made.append(graph(values));
  return made;
}

function fill(table, rows) {
  at(table).tBodies[0].replaceChildren(...rows.map((cells) => {
    const row = element("tr");
    row.append(...cells.map((cell) => {
      const made = element("td", cell instanceof Node ? undefined : cell);
      if (cell instanceof Node) made.append(cell);
      return made;
    }));
    return row;
  }));
}

function roomButton(name) {
  const button = element("button", name, { class: "quiet", type: "button" });
  button.onclick = () => { at("room").value = name; follow(name); };
  return button;
}

function showFigures(answer) {
  const now = performance.now();
  const rate = (key) => before ? Math.max(0, (answer[key] - before.answer[key]) / ((now - before.now) / 1000)) : 0;
  const samples = answer.samples;
  const of = (key) => samples.map((sample) => sample[key]);
  const newest = samples.at(-1) ?? { memory: 0, cpu: 0, lag: 0, open_files: 0 };
  at("figures").replaceChildren(
    figure("Connections", number(answer.connections), of("connections")),
    figure("Users", number(answer.users)),
    figure("Rooms", number(answer.rooms)),
    figure("Sent / s", number(rate("sent"))),
    figure("Received / s", number(rate("received"))),
    figure("Dropped", number(answer.dropped), of("error_rate")),
    figure("Waiting", bytes(answer.pending_bytes), of("pending_bytes")),
    figure("Memory", bytes(newest.memory), of("memory")),
    figure("CPU", `${Math.round(100 * newest.cpu)} %`, of("cpu")),
    figure("Event loop lag", `${(1000 * newest.lag).toFixed(1)} ms`, of("lag")),
    figure("Refused", number(answer.refused)),
    figure("Nodes", number(answer.nodes.length || 1)),
  );
  fill("rooms", answer.busiest.map((room) => [roomButton(room.name), number(room.members), number(room.published), number(room.dropped)]));
  fill("slow", answer.slowest.map((slow) => [slow.user, bytes(slow.bytes), `${slow.age.toFixed(1)} s`, number(slow.dropped)]));
  at("problems").replaceChildren(...answer.problems.map((problem) => element("li", problem)));
  at("state").textContent = answer.draining ? "draining" : "live";
  before = { answer, now };
}

async function refresh() {
  clearTimeout(timer);
  try {
    showFigures(await ask("overview"));
    show(true);
  } catch (error) {
    at("state").textContent = at("console").hidden ? "" : `no answer: ${error.message}`;
  }
  if (!at("console").hidden) timer = setTimeout(refresh, INTERVAL);
}

// --- search

at("search-form").onsubmit = async (event) => {
  event.preventDefault();
  const answer = await ask("search", { text: at("search").value });
  const rooms = Object.entries(answer.rooms).map(([name, members]) => [roomButton(name), `${number(members)} members`]);
  const connections = answer.connections.map((connection) => {
    const button = element("button", "Disconnect", { class: "quiet", type: "button" });
    button.onclick = async () => {
      if (!confirm(`Disconnect ${connection.user}? Its client does not come back by itself.`)) return;
      const { closed } = await ask("disconnect", { connection: connection.id });
      button.replaceWith(closed ? "disconnected" : "was gone already");
    };
    const what = `${connection.user} · ${connection.id} · ${connection.remote}`;
    return [what, connection.rooms.join(", "), bytes(connection.pending_bytes), button];
  });
  const table = element("table");
  table.id = "results";
  table.append(element("tbody"));
  at("found").replaceChildren(rooms.length + connections.length ? table : element("p", "Nothing was found.", { class: "soft" }));
  if (table.isConnected) fill("results", [...rooms, ...connections]);
};

// --- following a room, and publishing to it

function unfollow() {
  source?.close();
  source = null;
  at("stop").hidden = true;
}

function follow(room) {
  unfollow();
  at("events").replaceChildren();
  at("stop").hidden = false;
  source = new EventSource(`admin/api/follow?room=${encodeURIComponent(room)}`);
  source.onmessage = ({ data }) => {
    at("events").prepend(element("li", data));
    while (at("events").childElementCount > EVENTS) at("events").lastElementChild.remove();
  };
}

at("follow-form").onsubmit = (event) => {
  event.preventDefault();
  follow(at("room").value);
};
at("stop").onclick = unfollow;

at("publish-form").onsubmit = async (event) => {
  event.preventDefault();
  let data = at("data").value;
  try { data = JSON.parse(data); } catch { /* it is text */ }
  try {
    const { delivered, queued, dropped } = await ask("publish", { room: at("room").value, data });
    at("published").textContent = `delivered ${delivered}, queued ${queued}, dropped ${dropped}`;
    at("data").value = "";
  } catch (error) {
    at("published").textContent = error.message;
  }
};

// --- login

function show(loggedIn) {
  at("login").hidden = loggedIn;
  at("console").hidden = at("logout").hidden = !loggedIn;
  if (!loggedIn) unfollow();
}

at("login-form").onsubmit = async (event) => {
  event.preventDefault();
  try {
    await ask("login", { password: at("password").value });
    at("password").value = at("login-error").textContent = "";
    await refresh();
  } catch (error) {
    at("login-error").textContent = error.message;
  }
};
at("logout").onclick = async () => {
  await ask("logout").catch(() => {});
  show(false);
};

const { logged_in } = await (await fetch("admin/api/session")).json();
if (logged_in) refresh();
else show(false);
