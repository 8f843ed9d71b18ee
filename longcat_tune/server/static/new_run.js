// The form of a run: keeps form and text the same, has every change checked, and lets only what passed start.
// What a key means, and what is wrong with it, only the server knows.

import { notify } from "/static/app.js";

const PAUSE = { form: 250, text: 500, preset: 0, flavour: 0 };

const form = document.getElementById("new-run");
const fieldset = form.querySelector("[data-fields]");
const text = document.getElementById("text");
const named = document.getElementById("run-name");
const flavour = document.getElementById("flavour");
const preset = document.getElementById("preset");
const state = document.getElementById("check-state");
const result = document.getElementById("check-result");
const start = document.getElementById("start");
const save = document.getElementById("save");
const locked = "locked" in form.dataset;
const query = new URLSearchParams(location.search);
const dataset = document.getElementById("key-data_backend_config");
const memory = `longcat-tune ${location.pathname} ${query.get("like") ?? ""}`;

let newest = 0; // counts changes: an answer to an older one is of no use
let timer = 0;
let asked = new AbortController();

const fields = () => [...fieldset.querySelectorAll("[name]")];
const holder = (key) => fieldset.querySelector(`[data-key="${CSS.escape(key)}"]`);

async function post(address, body, signal) {
  const headers = { "Content-Type": "application/json", Accept: "application/json" };
  const reply = await fetch(address, { method: "POST", headers, body: JSON.stringify(body), signal });
  const answer = await reply.json();
  if (!reply.ok) throw new Refused(answer.error);
  return answer;
}

class Refused extends Error {}

function tell(error) {
  if (error.name === "AbortError") return;
  notify(error instanceof Refused ? error.message : document.body.dataset.noConnection);
}

/** Something was changed by hand. */
function changed(source, choice = "") {
  remember();
  look(source, choice);
}

/** Nothing may start until what is there now has been looked at. */
function look(source, choice = "") {
  newest += 1;
  asked.abort();
  asked = new AbortController();
  start.disabled = true;
  show("waiting");
  clearTimeout(timer);
  timer = setTimeout(() => edit(source, choice, newest), PAUSE[source]);
}

async function edit(source, choice, number) {
  const values = Object.fromEntries(fields().map((field) => [field.name, field.value]));
  try {
    const answer = await post(form.dataset.edit, { source, choice, fields: values, text: text.value }, asked.signal);
    if (number !== newest) return;
    apply(answer, source);
    if (sessionStorage.getItem(memory)) remember();
    if (locked) show("locked");
    else if (answer.problems.length) correct();
    else await check(number);
  } catch (error) {
    if (number === newest) show("failed", "bad");
    tell(error);
  }
}

/** Show an answer of the server; what is being typed in is left alone. */
function apply(answer, source) {
  if (answer.text !== undefined) text.value = answer.text;
  fieldset.disabled = !answer.readable;
  if (answer.readable) {
    if (source !== "form") for (const field of fields()) setField(field, answer.fields[field.name] ?? "");
    fieldset.querySelector("[name=model_flavour]").value = answer.fields.model_flavour ?? "";
    flavour.value = answer.flavour;
    if (!answer.presets.includes(preset.value)) preset.value = answer.presets[0] ?? "";
  }
  preset.disabled = answer.flavour === "tiny";
  complain(answer);
  count();
}

function setField(field, value) {
  if (field.tagName === "SELECT" && value && ![...field.options].some((option) => option.value === value)) {
    field.add(new Option(value, value));
  }
  if (field.value !== value) field.value = value;
}

/** Put each problem at its field, and all of them under the text. */
function complain({ problems, notices }) {
  const byKey = new Map();
  for (const { key, text: words } of problems) byKey.set(key, [...(byKey.get(key) ?? []), words]);
  for (const field of fieldset.querySelectorAll("[data-key]")) {
    const words = (byKey.get(field.dataset.key) ?? []).join(" ");
    field.classList.toggle("bad", Boolean(words));
    field.querySelector(".error").textContent = words;
    const input = field.querySelector("input:not([type=hidden]), select, textarea");
    if (words) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  }
  text.toggleAttribute("aria-invalid", problems.length > 0);
  const all = [...problems.map((one) => ["bad", one.text]), ...notices.map((one) => ["warn", one])];
  document.getElementById("text-problems").replaceChildren(...all.map(([kind, words]) => {
    const item = document.createElement("li");
    item.className = `notice ${kind}`;
    const span = document.createElement("span");
    span.textContent = words;
    item.append(span);
    return item;
  }));
}

/** How many keys each section sets, and whether one of them is wrong. */
function count() {
  for (const section of fieldset.querySelectorAll("[data-section]")) {
    let set = 0;
    for (const field of section.querySelectorAll("[data-key]")) {
      const filled = Boolean(field.querySelector("[name]").value.trim());
      field.classList.toggle("changed", filled);
      set += filled;
    }
    const badge = section.querySelector("[data-count]");
    badge.hidden = !set;
    badge.textContent = form.dataset.textChanged.replace("{count}", set);
    badge.classList.toggle("bad", Boolean(section.querySelector(".field.bad")));
  }
  const about = preset.selectedOptions[0];
  document.getElementById("preset-about").textContent = about ? about.dataset.about : "";
}

async function check(number) {
  show("checking", "live");
  result.setAttribute("aria-busy", "true");
  try {
    const body = { draft: form.dataset.draft, text: text.value, run: form.dataset.run || null };
    const answer = await post(form.dataset.check, body, asked.signal);
    if (number !== newest || answer.superseded) return;
    const page = new DOMParser().parseFromString(answer.html, "text/html");
    result.replaceChildren(...page.body.childNodes);
    result.setAttribute("aria-busy", "false");
    start.disabled = locked || !answer.passed;
    if (answer.passed) show("passed", "ok");
    else show("failed", "bad");
  } finally {
    if (number === newest) result.setAttribute("aria-busy", "false");
  }
}

function correct() {
  result.setAttribute("aria-busy", "true"); // what it shows is of an older config
  show("correct", "bad");
}

function show(word, kind = "") {
  const words = form.dataset[`text${word[0].toUpperCase()}${word.slice(1)}`];
  if (state.textContent !== words) state.textContent = words;
  state.className = `badge end ${kind}`;
}

async function keep(starting) {
  const buttons = [start, save].map((button) => [button, button.disabled]);
  for (const [button] of buttons) button.disabled = true;
  const body = { draft: form.dataset.draft, text: text.value, start: starting, name: named ? named.value : "" };
  try {
    const answer = await post(form.dataset.save, body);
    forget();
    location.assign(answer.location);
  } catch (error) {
    for (const [button, was] of buttons) button.disabled = was;
    tell(error);
  }
}

// What was not saved outlives a change of the language, or a look at another page.

function remember() {
  sessionStorage.setItem(memory, JSON.stringify({ text: text.value, name: named ? named.value : "", dataset: dataset.value }));
}

function forget() {
  sessionStorage.removeItem(memory);
}

function restore() {
  const kept = JSON.parse(sessionStorage.getItem(memory) ?? "null");
  if (!kept) return;
  // Somebody who comes from a dataset means that one: what was begun with another stays where it is.
  if (query.has("dataset") && kept.dataset !== dataset.value) return;
  if (kept.text !== text.value) notify(form.dataset.textRestored, "ok");
  text.value = kept.text;
  if (named) named.value = kept.name;
}

// Finding a key among ninety

function find(words) {
  const wanted = words.trim().toLowerCase();
  let found = 0;
  for (const section of fieldset.querySelectorAll("[data-section]")) {
    let here = 0;
    for (const field of section.querySelectorAll("[data-key]")) {
      field.hidden = Boolean(wanted) && !matches(field, wanted);
      here += !field.hidden;
    }
    section.hidden = !here;
    if (wanted) section.open = here > 0;
    found += here;
  }
  document.getElementById("found-none").hidden = found > 0;
}

function matches(field, wanted) {
  return `${field.dataset.key} ${field.dataset.key.replaceAll("_", " ")} ${field.textContent}`.toLowerCase().includes(wanted);
}

function go(key) {
  const field = holder(key);
  if (!field) return;
  field.closest("details")?.setAttribute("open", "");
  field.hidden = false;
  field.querySelector("input:not([type=hidden]), select, textarea").focus();
}

fieldset.addEventListener("input", (event) => {
  if (event.target.id === "find") find(event.target.value);
  else if (event.target === named) remember();
  else if (event.target === flavour) changed("flavour", flavour.value);
  else if (event.target === preset) changed("preset", preset.value);
  else changed("form");
});
text.addEventListener("input", () => changed("text"));
form.addEventListener("submit", (event) => event.preventDefault());
start.addEventListener("click", () => keep(true));
save.addEventListener("click", () => keep(false));
document.getElementById("again").addEventListener("click", () => {
  forget();
  location.reload();
});
result.addEventListener("click", (event) => {
  const link = event.target.closest("[data-goto]");
  if (!link) return;
  event.preventDefault();
  go(link.dataset.goto);
});
// A dataset that was mended in another tab may be right now.
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") look("text");
});

restore();
look("text");
