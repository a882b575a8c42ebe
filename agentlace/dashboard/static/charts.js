// The plots: a card per chart, drawn by uPlot.

import { byId, getJson, keyed, make, setText } from "./dom.js";
import { clock, number, rate, seconds } from "./format.js";

const POINTS = 1800;
const CHARTS_MAX = 30;
const FIRST = ["transitions", "lag", "policy_age", "requests", "observations"];
const REPORTED = "reported:";
const TITLES = {
  transitions: ["Transitions", "per second"],
  lag: ["Not yet taken", "transitions"],
  policy_age: ["Policy age", "seconds since it was published"],
  requests: ["Requests answered", "per second"],
  observations: ["Observations broadcast", "per second"],
};
const FORMATS = { transitions: rate, requests: rate, observations: rate, policy_age: seconds };
const IS_RETURN = /return|reward|success/i;
const HEIGHT = 170;

let at = [];
const charts = new Map();
let span = 600;
let isStale = true;

export function start() {
  for (const button of byId("spans").querySelectorAll("button")) {
    button.addEventListener("click", () => {
      span = Number(button.dataset.span);
      for (const each of byId("spans").querySelectorAll("button")) each.setAttribute("aria-pressed", String(each === button));
      drawAll();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const chart of charts.values()) forget(chart);
    drawAll();
  });
  new ResizeObserver(() => {
    for (const chart of charts.values()) chart.plot?.setSize(sizeOf(chart));
  }).observe(byId("charts"));
}

export function forgetHistory() {
  isStale = true;
}

// Add the newest points, after the history where that is not known yet.
export async function add(state) {
  if (isStale) {
    isStale = false;
    const told = await getJson("/api/history");
    at = told.at;
    charts.clear();
    byId("charts").keyedElements?.clear();
    byId("charts").replaceChildren();
    for (const [name, series] of Object.entries(told.charts)) charts.set(name, { name, series: new Map(Object.entries(series)) });
  }
  if (!state.away && state.at_s > (at.at(-1) ?? 0)) push(state);
  drawAll();
}

function push(state) {
  at.push(state.at_s);
  for (const [name, values] of Object.entries(state.points)) {
    if (!charts.has(name)) charts.set(name, { name, series: new Map() });
    const { series } = charts.get(name);
    for (const label of Object.keys(values)) {
      if (!series.has(label)) series.set(label, new Array(at.length - 1).fill(null));
    }
  }
  const extra = Math.max(at.length - POINTS, 0);
  at.splice(0, extra);
  for (const [name, chart] of charts) {
    for (const [label, values] of chart.series) {
      values.push(state.points[name]?.[label] ?? null);
      values.splice(0, extra);
      if (values.every((value) => value === null)) chart.series.delete(label);
    }
    if (!chart.series.size) charts.delete(name);
  }
}

function drawAll() {
  const ordered = [...charts.values()].sort((a, b) => rank(a.name) - rank(b.name) || (a.name < b.name ? -1 : 1));
  keyed(byId("charts"), ordered.slice(0, CHARTS_MAX), (chart) => chart.name, makeCard, draw);
}

function rank(name) {
  const place = FIRST.indexOf(name);
  if (place >= 0) return place;
  return FIRST.length + (IS_RETURN.test(name) ? 0 : 1);
}

function makeCard(chart) {
  const [title, unit] = TITLES[chart.name] ?? [chart.name.slice(REPORTED.length), "reported"];
  const head = make("h3", "", `${title} `, make("span", "", unit));
  const card = make("div", "card chart", head);
  card.plot = card.appendChild(make("div", "plot"));
  card.list = card.appendChild(make("ul", "series"));
  card.head = title;
  return card;
}

function draw(card, chart) {
  chart.card = card;
  const from = Math.max(at.findIndex((time) => time >= at.at(-1) - span), 0);
  const labels = [...chart.series.keys()].filter((label) => chart.series.get(label).some((value, i) => i >= from && value !== null));
  const data = [at.slice(from), ...labels.map((label) => chart.series.get(label).slice(from))];
  if (chart.labels?.join("\n") !== labels.join("\n")) forget(chart);
  if (!chart.plot) {
    chart.labels = labels;
    chart.colors = getComputedStyle(document.documentElement).getPropertyValue("--series").trim().split(/\s+/);
    chart.plot = new uPlot(options(chart), data, card.plot);
    card.plot.setAttribute("role", "img");
  } else {
    chart.plot.setData(data);
  }
  showValues(chart, null);
}

function showValues(chart, index) {
  const format = FORMATS[chart.name] ?? number;
  const data = chart.plot.data;
  const items = chart.labels.map((label, i) => [label, index === null ? latest(data[i + 1]) : data[i + 1][index], i]);
  keyed(chart.card.list, items, ([label]) => label, makeSeries, (item, [label, value, i]) => {
    item.swatch.style.background = chart.colors[i % chart.colors.length];
    setText(item.label, label);
    setText(item.number, format(value));
  });
  chart.card.plot.setAttribute("aria-label", `${chart.card.head}: ${items.map(([label, value]) => `${label} ${format(value)}`).join(", ")}`);
}

function latest(values) {
  for (let i = values.length - 1; i >= Math.max(values.length - 5, 0); i--) if (values[i] !== null) return values[i];
  return null;
}

function makeSeries([label]) {
  const item = make("li");
  item.title = label;
  item.swatch = item.appendChild(make("span", "swatch"));
  item.label = item.appendChild(make("span", "name"));
  item.number = item.appendChild(make("span"));
  return item;
}

function forget(chart) {
  chart.plot?.destroy();
  chart.plot = null;
}

function sizeOf(chart) {
  return { width: Math.max(chart.card.plot.clientWidth, 100), height: HEIGHT };
}

function options(chart) {
  const style = getComputedStyle(document.documentElement);
  const soft = style.getPropertyValue("--soft").trim();
  const grid = { stroke: style.getPropertyValue("--faint").trim(), width: 1 };
  const format = chart.name === "policy_age" ? seconds : number;
  const axis = { stroke: soft, grid, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  return {
    ...sizeOf(chart),
    padding: [6, 24, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: "time" }, drag: { x: false, y: false }, points: { size: 6 } },
    scales: { x: { range: (_, low, high) => [Math.max(high - span, low ?? high - span), high] }, y: { range: yRange } },
    axes: [
      { ...axis, size: 26, space: 80, values: (_, times, __, ___, step) => times.map((time) => (step < 60 ? clock(time) : clock(time).slice(0, 5))) },
      { ...axis, size: 52, space: 34, values: (_, values) => values.map(format) },
    ],
    series: [{}, ...chart.labels.map((label, i) => ({ label, stroke: chart.colors[i % chart.colors.length], width: 1.75, points: { show: false }, spanGaps: false }))],
    hooks: { setCursor: [(plot) => showValues({ ...chart, plot }, plot.cursor.idx ?? null)] },
  };
}

function yRange(_, low, high) {
  if (low === null || high === null || (low === 0 && high === 0)) return [0, 1];
  const bottom = low >= 0 && low < 0.7 * high ? 0 : low;
  const room = (high - bottom || Math.abs(high) || 1) * 0.08;
  return [bottom === 0 ? 0 : bottom - room, high + room];
}
