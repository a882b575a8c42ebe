// The graph: a lane per service; boxes are HTML, the edges between them SVG.

import { byId, keyed, make, setClass, setText } from "./dom.js";
import { bytes, number, plural, rate, seconds } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const STATES = ["gone", "late", "waits", "paused", "idle", "ok"];
const NAMES = { ok: "at work", idle: "idle", waits: "waiting", paused: "paused", late: "silent", gone: "gone" };
const IS_MADE_UP = /^[0-9a-f]{12}$/;
let lanes = [];
let onPick = () => {};

export function start(pick) {
  onPick = pick;
  new ResizeObserver(draw).observe(byId("graph"));
}

export function show(state) {
  const nodes = new Map(state.nodes.map((node) => [node.id, node]));
  lanes = state.lanes;
  keyed(byId("graph"), lanes, (lane) => lane.service, makeLane, (element, lane) => {
    for (const side of ["left", "middle", "right"]) {
      const column = element.columns[side];
      keyed(column, lane[side], (box) => box.id, makeBox, (box, told) => updateBox(box, told, nodes));
      column.hidden = lane[side].length === 0 && side !== "left";
    }
  });
  setText(byId("legend"), legend(state.nodes));
  draw();
}

function legend(nodes) {
  const told = STATES.slice().reverse().map((name) => [name, nodes.filter((node) => node.state === name).length]);
  const counts = told.filter(([, count]) => count).map(([name, count]) => `${count} ${NAMES[name]}`);
  return `${plural(nodes.length, "node")}${counts.length ? ": " : ""}${counts.join(" · ")}`;
}

function makeLane(lane) {
  const element = make("div", "lane");
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", lane.service);
  element.columns = {};
  for (const side of ["left", "middle", "right"]) {
    element.columns[side] = make("div", `side ${side}`);
    element.append(element.columns[side]);
  }
  element.svg = document.createElementNS(SVG, "svg");
  element.svg.setAttribute("role", "img");
  element.append(element.svg);
  element.edges = new Map();
  return element;
}

function makeBox() {
  const box = make("div", "box");
  box.dot = make("span", "dot");
  box.name = make("span");
  box.dots = make("div", "dots");
  box.lines = [make("div", "line"), make("div", "line")];
  box.meter = make("div", "meter", make("div"));
  box.append(make("div", "title", box.dot, box.name), box.dots, ...box.lines, box.meter);
  return box;
}

function updateBox(box, told, nodes) {
  const mine = told.nodes ? told.nodes.map((id) => nodes.get(id)).filter(Boolean) : [];
  const one = mine.length === 1 ? mine[0] : null;
  const worst = STATES.find((name) => mine.some((node) => node.state === name)) ?? "";
  const isMissing = told.kind === "server" && !mine.length;
  setClass(box, `box ${told.kind} ${isMissing ? "gone" : one || worst === "late" ? worst : ""}`);
  const hasDots = told.kind === "group" && mine.length > 1;
  box.dot.hidden = !(one || isMissing);
  setClass(box.dot, `dot ${isMissing ? "gone" : worst}`);
  box.dots.hidden = !hasDots;
  if (hasDots) keyed(box.dots, mine, (node) => node.id, makeDot, updateDot);
  const [title, ...lines] = words(told, mine, one);
  setText(box.name, title);
  box.title = [title, ...lines].join("\n");
  box.lines.forEach((line, i) => {
    line.hidden = lines[i] === undefined;
    setText(line, lines[i] ?? "");
  });
  box.meter.hidden = told.kind !== "store";
  if (told.kind === "store") {
    const share = told.budget_bytes ? Math.min(told.nbytes / told.budget_bytes, 1) : 0;
    box.meter.firstChild.style.width = `${(100 * share).toFixed(1)}%`;
    setClass(box.meter, `meter ${share > 0.8 ? "full" : ""}`);
  }
}

function words(told, mine, one) {
  if (told.kind === "store") {
    return [`store ${told.title}`, `${bytes(told.nbytes)} of ${bytes(told.budget_bytes)} in ${plural(told.streams, "stream")}`, `${number(told.behind)} not yet taken`];
  }
  if (told.kind === "pill") return told.version ? [told.title, `newest: ${told.version}`] : [told.title];
  if (one) {
    const where = `${one.host} · pid ${one.pid}`;
    const doing = one.state === "gone" ? `gone for ${seconds(one.beat_s)}` : one.state === "late" ? `silent for ${seconds(one.beat_s)}` : one.waits[0] ?? (one.policy_age_s !== null ? `policy ${number(one.policy)}, ${seconds(one.policy_age_s)} old` : where);
    const name = IS_MADE_UP.test(one.name) ? "" : ` ${one.name}`;
    return [one.name === told.title ? told.title : `${told.title}${name}`, where, doing === where ? undefined : doing].filter((line) => line !== undefined);
  }
  if (told.kind === "server") return [told.title, "not there"];
  const ages = mine.map((node) => node.policy_age_s).filter((age) => age !== null);
  const counts = STATES.map((name) => [name, mine.filter((node) => node.state === name).length]).filter(([, count]) => count);
  const lines = [counts.map(([name, count]) => `${count} ${NAMES[name]}`).join(" · ")];
  if (ages.length) lines.push(`policy up to ${seconds(Math.max(...ages))} old`);
  return [`${mine.length} ${told.title}`, ...lines];
}

function makeDot(node) {
  const dot = make("button", "dot");
  dot.type = "button";
  dot.tabIndex = -1; // the table below is for the keyboard
  dot.addEventListener("click", () => onPick(node.name));
  return dot;
}

function updateDot(dot, node) {
  setClass(dot, `dot ${node.state}`);
  const told = `${node.name}: ${NAMES[node.state]}, ${rate(node.rate)}`;
  if (dot.title !== told) {
    dot.title = told;
    dot.setAttribute("aria-label", told);
  }
}

// -- edges ---------------------------------------------------------------------------------------

function draw() {
  for (const lane of lanes) {
    const element = byId("graph").keyedElements?.get(lane.service);
    if (element) drawLane(element, lane);
  }
}

function drawLane(element, lane) {
  const frame = element.getBoundingClientRect();
  const boxes = new Map();
  for (const side of ["left", "middle", "right"]) {
    for (const [id, box] of element.columns[side].keyedElements ?? []) {
      const at = box.getBoundingClientRect();
      boxes.set(id, { x: at.left - frame.left, y: at.top - frame.top, w: at.width, h: at.height, side });
    }
  }
  const isUpright = getComputedStyle(element).gridTemplateColumns.split(" ").length === 1;
  const edges = lane.edges.filter((edge) => boxes.has(edge.from) && boxes.has(edge.to));
  const ports = portsOf(edges, boxes, isUpright);
  const wanted = new Set();
  edges.forEach((edge, i) => {
    const key = `${edge.from}→${edge.to}`;
    wanted.add(key);
    drawEdge(element, key, edge, ports[i], isUpright, gapOf(element, boxes.get(edge.from), boxes.get(edge.to), isUpright));
  });
  for (const [key, parts] of element.edges) {
    if (!wanted.has(key)) {
      Object.values(parts).forEach((part) => part.remove());
      element.edges.delete(key);
    }
  }
  element.svg.setAttribute("aria-label", edges.map((edge) => `${edge.what}: ${rate(edge.rate)}`).join("; ") || "nothing flows");
}

// Where each edge leaves and arrives: spread over the side of its box, in the order of the others.
function portsOf(edges, boxes, isUpright) {
  const order = { left: 0, middle: 1, right: 2 };
  const uses = new Map();
  const ends = edges.map((edge) => {
    const start = boxes.get(edge.from);
    const end = boxes.get(edge.to);
    const isForward = order[start.side] < order[end.side];
    return [[edge.from, isForward, start, end], [edge.to, !isForward, end, start]].map(([id, isFar, box, other]) => {
      const key = `${id} ${isFar}`;
      const use = { box, isFar, other: isUpright ? other.x + other.w / 2 : other.y + other.h / 2 };
      uses.set(key, [...(uses.get(key) ?? []), use]);
      return use;
    });
  });
  for (const list of uses.values()) {
    list.sort((a, b) => a.other - b.other).forEach((use, i) => {
      const share = (i + 1) / (list.length + 1);
      const { x, y, w, h } = use.box;
      use.at = isUpright ? [x + w * share, use.isFar ? y + h : y] : [use.isFar ? x + w : x, y + h * share];
    });
  }
  return ends.map(([start, end]) => [start.at, end.at]);
}

// Between which coordinates an edge crosses the empty space between two columns: its label is there.
function gapOf(element, start, end, isUpright) {
  const frame = element.getBoundingClientRect();
  const outer = element.columns[start.side === "middle" ? end.side : start.side].getBoundingClientRect();
  const band = element.columns.middle.getBoundingClientRect();
  const [a, b] = outer.top + outer.left < band.top + band.left ? [outer, band] : [band, outer];
  return isUpright ? (a.bottom + b.top) / 2 - frame.top : (a.right + b.left) / 2 - frame.left;
}

// The point of a cubic curve whose control points lie half way, where it crosses the gap's middle.
function crossing(from, to, across, goal) {
  let point = [(from + to) / 2, (across[0] + across[1]) / 2];
  let best = Infinity;
  for (let t = 0.05; t < 1; t += 0.025) {
    const u = 1 - t;
    const middle = (from + to) / 2;
    const along = u * u * u * from + 3 * u * u * t * middle + 3 * u * t * t * middle + t * t * t * to;
    if (Math.abs(along - goal) < best) {
      best = Math.abs(along - goal);
      point = [along, (u * u * u + 3 * u * u * t) * across[0] + (3 * u * t * t + t * t * t) * across[1]];
    }
  }
  return point;
}

function drawEdge(element, key, edge, [[x1, y1], [x2, y2]], isUpright, gap) {
  const parts = element.edges.get(key) ?? makeEdge(element, key);
  const isLive = edge.rate > 0;
  const tip = 9;
  let path, mid, turn;
  if (isUpright) {
    const sign = Math.sign(y2 - y1) || 1;
    const end = y2 - sign * tip;
    path = `M${x1} ${y1}C${x1} ${(y1 + end) / 2} ${x2} ${(y1 + end) / 2} ${x2} ${end}`;
    turn = sign > 0 ? 90 : -90;
    const [y, x] = crossing(y1, end, [x1, x2], gap);
    mid = [x, y + 4];
  } else {
    const sign = Math.sign(x2 - x1) || 1;
    const end = x2 - sign * tip;
    path = `M${x1} ${y1}C${(x1 + end) / 2} ${y1} ${(x1 + end) / 2} ${y2} ${end} ${y2}`;
    turn = sign > 0 ? 0 : 180;
    const [x, y] = crossing(x1, end, [y1, y2], gap);
    mid = [x, y + 4];
  }
  parts.line.setAttribute("d", path);
  parts.line.setAttribute("class", `edge ${isLive ? "live" : ""}`);
  parts.line.style.strokeWidth = isLive ? `${Math.min(1.5 + Math.log10(1 + edge.rate) * 0.7, 4.5)}px` : "";
  parts.arrow.setAttribute("transform", `translate(${x2} ${y2}) rotate(${turn})`);
  parts.arrow.setAttribute("class", `arrow ${isLive ? "live" : ""}`);
  parts.label.setAttribute("x", mid[0]);
  parts.label.setAttribute("y", mid[1]);
  setText(parts.label, edge.rate === null ? "" : rate(edge.rate));
  setText(parts.title, `${edge.what}: ${rate(edge.rate)}`);
}

function makeEdge(element, key) {
  const part = (tag) => element.svg.appendChild(document.createElementNS(SVG, tag));
  const parts = { line: part("path"), arrow: part("path"), label: part("text"), title: document.createElementNS(SVG, "title") };
  parts.line.append(parts.title);
  parts.arrow.setAttribute("d", "M0 0L-11 -5.5L-11 5.5Z");
  parts.label.setAttribute("class", "rate");
  element.edges.set(key, parts);
  return parts;
}
