// The log of events, the newest first.

import { byId, make } from "./dom.js";
import { clock } from "./format.js";

const KEPT = 500;
const LEVELS = { loss: "bad", drop: "bad", late: "bad", reconnect: "warning", restart: "warning", leave: "warning", broker: "warning", pause: "warning", join: "good", back: "good", resume: "good" };
const NAMES = { join: "joined", leave: "left", loss: "lost", late: "silent", drop: "dropped", restart: "restarted", reconnect: "reconnect", pause: "paused", resume: "resumed" };
let newest = 0;

export function clear() {
  newest = 0;
  byId("log").replaceChildren();
}

export function add(events) {
  const list = byId("log");
  for (const event of events) {
    if (event.id <= newest) continue;
    newest = event.id;
    const time = make("time", "", clock(event.at_s));
    time.dateTime = new Date(1000 * event.at_s).toISOString();
    const who = make("strong", "", event.who);
    list.prepend(make("li", LEVELS[event.kind] ?? "", time, make("span", "kind", NAMES[event.kind] ?? event.kind), make("span", "what", who, ` ${event.text}`)));
  }
  while (list.childElementCount > KEPT) list.lastElementChild.remove();
  byId("no-events").hidden = list.childElementCount > 0;
}
