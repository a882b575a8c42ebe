// An admin's buttons: pause, resume, checkpoint, per trainer.

import { byId, keyed, make, setClass, setText } from "./dom.js";

const BUTTONS = [
  ["pause", "Pause actors"],
  ["resume", "Resume"],
  ["save", "Save checkpoint"],
];

export function show(state, isAdmin) {
  byId("controls").hidden = !isAdmin || state.trainers.length === 0;
  if (!isAdmin) return;
  keyed(byId("controls"), state.trainers, (trainer) => trainer.service, makeControl, (control, trainer) => {
    control.buttons.pause.disabled = control.isBusy || trainer.is_paused;
    control.buttons.resume.disabled = control.isBusy || !trainer.is_paused;
    control.buttons.save.disabled = control.isBusy;
    setText(control.state, trainer.is_paused ? "paused" : "");
  });
}

function makeControl({ service }) {
  const control = make("div", "control", make("strong", "", service));
  control.buttons = {};
  control.told = make("output");
  for (const [what, title] of BUTTONS) {
    const button = make("button", what === "pause" ? "primary" : "", title);
    button.type = "button";
    button.addEventListener("click", () => order(control, service, what));
    control.buttons[what] = button;
    control.append(button);
  }
  control.state = make("span", "state-paused");
  control.append(control.state, control.told);
  return control;
}

async function order(control, service, what) {
  control.isBusy = true;
  for (const button of Object.values(control.buttons)) button.disabled = true;
  setClass(control.told, "");
  setText(control.told, `${what}…`);
  try {
    const response = await fetch("/api/command", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ service, what }) });
    const told = await response.json();
    if (!response.ok) throw new Error(told.error);
    setText(control.told, told.done);
  } catch (error) {
    setClass(control.told, "failed");
    setText(control.told, error.message);
  }
  control.isBusy = false;
}
