// The newest frames of an observation broadcast, only while somebody looks at them.

import { byId, getJson, keyed, make, setText } from "./dom.js";

const EVERY_MS = 200;
const SLOW_MS = 2000;
let chosen = null;
let services = [];
let isInView = false;
let isAway = false;
let timer = null;

export function start() {
  new IntersectionObserver(([entry]) => {
    isInView = entry.isIntersecting;
    wake();
  }, { rootMargin: "400px" }).observe(byId("cameras"));
  document.addEventListener("visibilitychange", wake);
}

export function show(state) {
  services = state.cameras;
  isAway = Boolean(state.away);
  byId("cameras").hidden = services.length === 0;
  if (!services.includes(chosen)) chosen = services[0] ?? null;
  const list = byId("camera-services");
  list.hidden = services.length < 2;
  keyed(list, services, (service) => service, (service) => {
    const button = make("button", "", service);
    button.type = "button";
    button.addEventListener("click", () => {
      chosen = service;
      show({ cameras: services, away: isAway });
    });
    return button;
  }, (button, service) => button.setAttribute("aria-pressed", String(service === chosen)));
  wake();
}

function isWatched() {
  return chosen && isInView && !isAway && !document.hidden;
}

function wake() {
  if (timer === null && isWatched()) timer = setTimeout(look, 0);
}

async function look() {
  const began = performance.now();
  let next = EVERY_MS;
  try {
    const service = chosen;
    const shot = await getJson(`/api/cameras/${encodeURIComponent(service)}`);
    await showShot(service, shot);
    setText(byId("camera-note"), shot.frames.length ? service : `${service} has broadcast no camera frame in the last ten seconds.`);
    if (!shot.frames.length) next = SLOW_MS;
  } catch (error) {
    setText(byId("camera-note"), `No frames: ${error.message}`);
    next = SLOW_MS;
  }
  timer = null;
  if (isWatched()) timer = setTimeout(look, Math.max(next - (performance.now() - began), 20));
}

async function showShot(service, shot) {
  const frames = shot.frames.map((frame, i) => ({ ...frame, url: `/api/cameras/${encodeURIComponent(service)}/${i}?n=${encodeURIComponent(shot.number)}` }));
  const fresh = new Map(await Promise.all(frames.map(async (frame) => {
    const image = new Image();
    image.src = frame.url;
    await image.decode();
    return [frame.name, image];
  })));
  keyed(byId("frames"), frames, (frame) => `${service} ${frame.name}`, () => {
    const figure = make("figure");
    figure.append(make("img"), make("figcaption"));
    return figure;
  }, (figure, frame) => {
    const [image, caption] = figure.children;
    if (image.dataset.url !== frame.url) {
      const next = fresh.get(frame.name);
      next.alt = `Newest frame of ${frame.name}`;
      next.dataset.url = frame.url;
      next.width = frame.width;
      next.height = frame.height;
      image.replaceWith(next);
    }
    setText(caption, `${frame.name} · ${frame.width} × ${frame.height}`);
  });
}
