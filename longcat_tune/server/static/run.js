// The live page of a run: draws its history, then what the stream of events brings.
/* global htmx */

import { Chart, short } from "./run_charts.js";
import { RunData, smoothed } from "./run_data.js";

const RETRY = 5000;
const LOG_LINES = 2000;

const live = document.getElementById("live");
const words = live.dataset;
const address = `/runs/${words.run}`;
const element = (name) => document.getElementById(name);

let data = null;
let place = { offset: 0, identity: "" };
let source = null;
let retry = null;
let lines = element("log").textContent.split("\n");
let drawn = false;
let charts = null;

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

function duration(seconds) {
  const whole = Math.round(seconds);
  const minutes = Math.floor(whole / 60);
  if (whole >= 3600) return fill(words.hours, { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
  return whole >= 60 ? fill(words.minutes, { minutes, seconds: whole % 60 }) : fill(words.seconds, { seconds: whole });
}

// What comes in one go is drawn once, however much it is.
function draw() {
  if (drawn) return;
  drawn = true;
  requestAnimationFrame(() => {
    drawn = false;
    if (data) drawAll();
  });
}

function drawAll() {
  drawNumbers();
  drawPicture();
  drawNotes();
  const begun = data.columns.step.length > 0 || data.evaluations.length > 0;
  element("no-curves").hidden = begun;
  element("charts").hidden = !begun;
  if (begun) drawCharts();
}

function drawNumbers() {
  const { last } = data;
  const say = (name, value, unit = "") => {
    if (value !== null && value !== undefined) element(name).textContent = `${value}${unit}`;
  };
  element("progress").value = data.progress;
  const step = fill(data.maxSteps ? words.stepsOf : words.atStep, { step: data.step, max: data.maxSteps });
  if (data.started.time) say("now-step", step);
  const running = element("run-head").dataset.state === "running" && !data.ended;
  const left = running ? data.secondsLeft : null;
  element("now-left").textContent = left === null ? "–" : duration(left);
  say("now-loss", last.loss?.toFixed(4));
  say("now-rate", last.learning_rate?.toExponential(1));
  say("now-seconds", last.seconds?.toFixed(2), " s");
  say("now-memory", last.memory_gib?.toFixed(1), " GiB");
  const saved = data.checkpoints.at(-1);
  if (saved) say("now-saved", fill(words.atStep, { step: saved.step }));
}

function drawPicture() {
  const { picture } = data;
  const figure = element("picture");
  figure.hidden = !picture;
  if (!picture) return;
  const image = figure.querySelector("img");
  const path = picture.file.split("/").map(encodeURIComponent).join("/");
  // The same name is written again and again: its time tells one from the next.
  const wanted = `${address}/files/${path}?v=${picture.time}`;
  if (image.getAttribute("src") !== wanted) image.src = wanted;
  const text = picture.making
    ? fill(words.pictureMaking, { name: picture.render, step: picture.denoising_step })
    : fill(words.pictureDone, { step: picture.step });
  figure.querySelector("figcaption span").textContent = image.alt = text;
}

function drawNotes() {
  const texts = { step_skipped: words.stepSkipped, render_failed: words.renderFailed, render_smaller: words.renderSmaller };
  const items = data.notices.map((event) => {
    const item = document.createElement("li");
    item.textContent = fill(texts[event.event], event);
    return item;
  });
  element("notes").hidden = !items.length;
  element("notes").querySelector("ul").replaceChildren(...items);
}

function makeCharts() {
  const at = (step) => fill(words.atStep, { step });
  const atSigma = (sigma) => fill(words.atSigma, { sigma: short(sigma) });
  const one = { colour: "--series-1" };
  const two = { colour: "--series-2" };
  const chart = (name, options) => new Chart(element(`chart-${name}`), { at, ...options });
  return {
    loss: chart("loss", { series: [{ ...one, alpha: 0.35, width: 1 }, one] }),
    eval: chart("eval", { series: [{ ...two, points: true }] }),
    bands: chart("bands", {
      series: [{ ...two, alpha: 0.45, points: false }, { ...two, points: true }],
      at: atSigma, whole: false, range: () => [0, 1],
    }),
    rate: chart("rate", { series: [{ colour: "--series-3" }] }),
    seconds: chart("seconds", { series: [{ colour: "--series-4", width: 1 }] }),
    memory: chart("memory", { series: [{ colour: "--series-5" }] }),
  };
}

function drawCharts() {
  element("chart-eval").hidden = !data.evaluations.length;
  element("chart-bands").hidden = !data.bands.first;
  charts ??= makeCharts();
  const count = Number(element("range").value);
  const begin = count ? data.columns.step.findIndex((step) => step > data.step - count) : 0;
  const cut = (column) => (begin > 0 ? column.slice(begin) : column);
  const steps = cut(data.columns.step);
  const { loss } = data.columns;
  charts.loss.show([steps, cut(loss), cut(smoothed(loss, Number(element("smoothing").value)))]);
  charts.rate.show([steps, cut(data.columns.learning_rate)]);
  charts.seconds.show([steps, cut(data.columns.seconds)]);
  charts.memory.show([steps, cut(data.columns.memory_gib)]);
  charts.eval.show([data.evaluations.map((event) => event.step), data.evaluations.map((event) => event.loss)]);
  charts.bands.show(data.bandCurves);
}

function addLines({ text, first }) {
  const log = element("log");
  const atEnd = first || log.scrollTop + log.clientHeight >= log.scrollHeight - 24;
  const more = text.replace(/\n$/, "").split("\n");
  lines = (first ? more : [...lines, ...more]).slice(-LOG_LINES);
  log.textContent = lines.join("\n");
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function refreshHead() {
  htmx.trigger("#run-head", "refresh");
}

function connect() {
  disconnect();
  const from = new URLSearchParams({ after: place.offset, identity: place.identity });
  source = new EventSource(`${address}/events?${from}`);
  source.addEventListener("open", () => { element("live-state").textContent = ""; });
  source.addEventListener("events", (message) => {
    place.offset = Number(message.lastEventId);
    const events = JSON.parse(message.data);
    for (const event of events) data.add(event);
    if (events.some((event) => event.event === "error")) refreshHead();
    draw();
  });
  source.addEventListener("log", (message) => addLines(JSON.parse(message.data)));
  source.addEventListener("state", (message) => {
    if (JSON.parse(message.data).state !== element("run-head").dataset.state) refreshHead();
  });
  source.addEventListener("reset", begin);
  source.addEventListener("error", () => {
    // Closed for good: refused, as when too many listen. Otherwise the browser tries again by itself.
    const refused = source.readyState === EventSource.CLOSED;
    element("live-state").textContent = refused ? words.liveFull : words.liveLost;
    if (refused) retry = setTimeout(begin, RETRY);
  });
}

function disconnect() {
  source?.close();
  clearTimeout(retry);
}

/** Draw all there is, then follow. */
async function begin() {
  disconnect();
  try {
    const reply = await fetch(`${address}/history.json`, { headers: { accept: "application/json" } });
    if (!reply.ok) throw new Error(String(reply.status));
    const history = await reply.json();
    place = { offset: history.offset, identity: history.identity };
    data = new RunData(history);
    draw();
    if (!document.hidden) connect();
  } catch {
    element("live-state").textContent = words.liveLost;
    retry = setTimeout(begin, RETRY);
  }
}

// A page that nobody sees gives its place to one that somebody does.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) disconnect();
  else if (data) connect();
});
window.addEventListener("pagehide", disconnect);
document.body.addEventListener("htmx:afterSettle", () => { if (data) draw(); });
for (const name of ["smoothing", "range"]) element(name).addEventListener("input", draw);
begin();
