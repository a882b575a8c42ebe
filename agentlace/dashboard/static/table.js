// All nodes: sorted and filtered as the reader likes.

import { byId, keyed, make, setClass, setText } from "./dom.js";
import { number, plural, rate, seconds } from "./format.js";

const ORDER = ["gone", "late", "waits", "paused", "idle", "ok"];
const NAMES = { ok: "at work", idle: "idle", waits: "waits", paused: "paused", late: "silent", gone: "gone" };
const COLUMNS = [
  { title: "Node", value: (node) => node.name, isText: true },
  { title: "State", value: (node) => ORDER.indexOf(node.state), className: "state", text: (node) => NAMES[node.state] },
  { title: "Rate", value: (node) => node.rate, text: (node) => rate(node.rate), hint: "What it counts, per second: transitions sent or taken, requests made or answered" },
  { title: "Unsent", value: (node) => node.pending, text: (node) => number(node.pending), className: "wide", hint: "Transitions taken and not confirmed by the broker" },
  { title: "Policy", value: (node) => node.policy, text: (node) => number(node.policy), className: "wide", hint: "Number of the newest network that it has" },
  { title: "Age", value: (node) => node.policy_age_s, text: (node) => seconds(node.policy_age_s), hint: "Since that network was published" },
  { title: "Lost", value: (node) => node.lost, text: (node) => number(node.lost), className: "wide lost", hint: "Transitions lost, dropped, refused or missing" },
  { title: "Beat", value: (node) => node.beat_s, text: (node) => seconds(node.beat_s), className: "wide", hint: "Since its last heartbeat" },
];
let sorted = { column: 1, isDescending: false };
let nodes = [];

export function start() {
  COLUMNS.forEach((column, i) => {
    const button = make("button", "", column.title);
    button.type = "button";
    if (column.hint) button.title = column.hint;
    button.addEventListener("click", () => {
      const isSame = sorted.column === i;
      sorted = { column: i, isDescending: isSame ? !sorted.isDescending : !column.isText && i !== 1 };
      draw();
    });
    const head = make("th", column.className ?? "", button);
    head.scope = "col";
    byId("columns").append(head);
  });
  byId("filter").addEventListener("input", draw);
}

export function filterBy(text) {
  byId("filter").value = text;
  draw();
  byId("nodes").scrollIntoView({ block: "nearest" });
}

export function show(state) {
  nodes = state.nodes;
  draw();
}

function draw() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = nodes.filter((node) => {
    const text = `${node.name} ${node.does} ${node.service} ${node.host} ${NAMES[node.state]} ${node.state}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  setText(byId("node-count"), shown.length === nodes.length ? String(nodes.length) : `${shown.length} of ${plural(nodes.length, "node")}`);
  const heads = byId("columns").children;
  COLUMNS.forEach((_, i) => {
    if (i === sorted.column) heads[i].setAttribute("aria-sort", sorted.isDescending ? "descending" : "ascending");
    else heads[i].removeAttribute("aria-sort");
  });
  keyed(byId("rows"), shown.sort(compare), (node) => node.id, makeRow, updateRow);
}

function compare(a, b) {
  const { value } = COLUMNS[sorted.column];
  const [one, other] = [value(a), value(b)];
  const isMissing = (x) => x === null || x === undefined;
  if (isMissing(one) !== isMissing(other)) return isMissing(one) ? 1 : -1;
  const order = typeof one === "string" ? one.localeCompare(other, undefined, { numeric: true }) : (one ?? 0) - (other ?? 0);
  return (sorted.isDescending ? -order : order) || a.name.localeCompare(b.name, undefined, { numeric: true });
}

function makeRow() {
  const row = make("tr");
  row.dot = make("span", "dot");
  row.name = make("span");
  row.sub = make("span", "sub");
  row.append(make("td", "", make("span", "node", row.dot, row.name), row.sub));
  row.cells_ = COLUMNS.slice(1).map((column) => row.appendChild(make("td", column.className ?? "")));
  return row;
}

function updateRow(row, node) {
  setClass(row.dot, `dot ${node.state}`);
  setText(row.name, node.name);
  const where = `${node.does} · ${node.host} · pid ${node.pid}`;
  const waits = node.state === "waits" ? `waits: ${node.waits[0]}` : "";
  setText(row.sub, waits || where);
  setClass(row.sub, `sub ${waits ? "waits" : ""}`);
  row.firstChild.title = [node.name, where, node.version && `agentlace ${node.version}`, ...node.waits].filter(Boolean).join("\n");
  COLUMNS.slice(1).forEach((column, i) => setText(row.cells_[i], column.text(node)));
  setClass(row.cells_[0], `state state-${node.state}`);
  setClass(row.cells_[5], `wide lost ${node.lost ? "nonzero" : ""}`);
}
