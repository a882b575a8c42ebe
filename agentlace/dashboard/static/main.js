// Connects the page to the dashboard's stream of states.

import * as cameras from "./cameras.js";
import * as charts from "./charts.js";
import * as controls from "./controls.js";
import { byId, getJson, keyed, make, setClass, setText } from "./dom.js";
import * as events from "./events.js";
import { bytes, clock, plural, seconds } from "./format.js";
import * as graph from "./graph.js";
import * as table from "./table.js";

const RETRY_MS = 2000;
const PROBLEMS_MAX = 8;
let me = { role: "viewer" };
let stream = null;
let isFirst = true;
let lostSince = null;

async function start() {
  charts.start();
  table.start();
  cameras.start();
  graph.start(table.filterBy);
  me = await getJson("/api/me");
  setText(byId("role"), me.role);
  byId("log-in").hidden = me.role === "admin" || !me.has_admin;
  byId("log-out").hidden = !me.has_session;
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : connect()));
  connect();
}

function close() {
  stream?.close();
  stream = null;
}

function connect() {
  if (stream || document.hidden) return;
  isFirst = true;
  stream = new EventSource("/api/stream");
  stream.addEventListener("message", (message) => show(JSON.parse(message.data)));
  stream.addEventListener("error", lose);
}

// The stream ended: the dashboard is gone, or it wants a new login.
async function lose() {
  close();
  lostSince ??= Date.now() / 1000;
  banner("No answer from the dashboard", `since ${clock(lostSince)}: is it still running? This page goes on trying.`);
  setTimeout(connect, RETRY_MS);
  try {
    await getJson("/api/me");
  } catch {
    // It does not answer: the next attempt will tell.
  }
}

async function show(state) {
  if (isFirst) {
    isFirst = false;
    events.clear();
    charts.forgetHistory();
  }
  lostSince = null;
  events.add(state.events);
  if (state.away) banner("The broker is away", `since ${clock(state.away.since_s)}: ${state.away.text}. What is shown is how it was; this page goes on by itself when it is back.`);
  else banner();
  setText(byId("namespace"), state.namespace === "default" ? "" : state.namespace);
  if (state.nodes) {
    facts(state);
    problems(state);
    controls.show(state, me.role === "admin");
    graph.show(state);
    table.show(state);
    cameras.show(state);
  }
  await charts.add(state);
}

function banner(title = "", text = "") {
  const element = byId("banner");
  element.hidden = !title;
  document.body.classList.toggle("stale", Boolean(title));
  setText(element.children[0], title);
  setText(element.children[1], text);
}

function facts(state) {
  const { broker } = state;
  const memory = broker.max_bytes ? `${bytes(broker.used_bytes)} of ${bytes(broker.max_bytes)}` : bytes(broker.used_bytes);
  setText(byId("broker"), [broker.url, broker.version, memory, plural(broker.clients, "connection"), `${seconds(broker.round_trip_s)} away`, `up ${seconds(broker.uptime_s)}`].filter(Boolean).join(" · "));
  setText(byId("taken"), `as of ${clock(state.at_s)}, read in ${seconds(state.took_ms / 1000)}`);
  const bad = state.problems.filter((problem) => problem.level === "bad").length;
  const title = `${bad ? `(${bad}) ` : ""}agentlace${state.namespace === "default" ? "" : ` ${state.namespace}`}`;
  if (document.title !== title) document.title = title;
}

function problems(state) {
  const shown = state.problems.slice(0, PROBLEMS_MAX);
  const hidden = state.problems.length - shown.length;
  if (hidden) shown.push({ level: "warning", who: "", text: `${hidden} more like these` });
  if (!shown.length) shown.push({ level: "well", who: "", text: state.nodes.length ? "All is well." : "Nobody is here yet: start a trainer, an actor or a robot at this broker." });
  byId("problems").querySelector(":scope > .well:not([data-keyed])")?.remove();
  const seen = new Map();
  for (const problem of shown) {
    const kind = `${problem.level} ${problem.who} ${problem.text.replace(/[\d.,]+/g, "#")}`;
    seen.set(kind, (seen.get(kind) ?? 0) + 1);
    problem.key = `${kind} ${seen.get(kind)}`;
  }
  keyed(byId("problems"), shown, (problem) => problem.key, () => {
    const line = make("p", "", make("strong"), make("span"));
    line.dataset.keyed = "";
    return line;
  }, (line, problem) => {
    setClass(line, problem.level);
    setText(line.children[0], problem.who ? `${problem.who} ` : "");
    setText(line.children[1], problem.text);
  });
}

start();
