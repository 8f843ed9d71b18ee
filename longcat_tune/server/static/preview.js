// The form of a preview: values that come with a base model, rows of LoRAs, and the start frame,
// which is sent as soon as it is dropped, pasted or chosen, so that a picture that will not do is told of at once.

import { notify } from "/static/app.js";

const form = document.getElementById("preview-form");
const field = (name) => form.elements.namedItem(name);
const part = (id) => document.getElementById(id);

// Base model: its values replace those that came with the former one, not what somebody has written.

const base = part("base");
const valuesOf = (option) => JSON.parse(option.dataset.values);
let former = valuesOf(base.selectedOptions[0]);

base.addEventListener("change", () => {
  const values = valuesOf(base.selectedOptions[0]);
  for (const [name, value] of Object.entries(values)) {
    if (field(name).value === former[name]) field(name).value = value;
  }
  former = values;
  part("model-field").hidden = base.value !== "model";
});

// LoRAs

part("add-lora").addEventListener("click", () => {
  const rows = [...form.querySelectorAll(".lora")];
  const row = rows[0].cloneNode(true);
  row.querySelector("[name=lora]").value = "";
  row.querySelector("[name=strength]").value = "1";
  rows.at(-1).after(row);
  row.querySelector("[name=lora]").focus();
});

part("swap").addEventListener("click", () => {
  const [width, height] = [field("width"), field("height")];
  [width.value, height.value] = [height.value, width.value];
});

// Start frame

const drop = part("drop");
const picture = part("start-picture");
const place = part("start-frame");
let sending = 0;

function showStart(name, address) {
  field("start").value = name;
  picture.hidden = part("start-remove").hidden = !name;
  part("start-words").hidden = Boolean(name);
  part("start-size").textContent = "";
  if (name) picture.src = address;
  else picture.removeAttribute("src");
}

picture.addEventListener("load", () => {
  part("start-size").textContent = `${picture.naturalWidth} × ${picture.naturalHeight}`;
});

async function send(file) {
  if (!file) return;
  if (file.size > Number(place.dataset.limit) * 1e6) {
    notify(place.dataset.tooLarge);
    return;
  }
  const mine = ++sending;
  part("start-busy").hidden = false;
  part("submit").disabled = true;
  try {
    const reply = await fetch(place.dataset.upload, { method: "POST", body: file, headers: { Accept: "application/json" } });
    const told = await reply.json();
    if (mine !== sending) return;
    if (reply.ok) showStart(told.name, told.address);
    else notify(told.error);
  } catch {
    notify(document.body.dataset.noConnection);
  } finally {
    if (mine === sending) {
      part("start-busy").hidden = true;
      part("submit").disabled = false;
      part("start-file").value = "";
    }
  }
}

part("start-file").addEventListener("change", (event) => send(event.target.files[0]));
part("start-remove").addEventListener("click", () => {
  showStart("", "");
  part("start-file").focus();
});

// Anywhere on the page: a file that misses the frame must not replace the page.
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  drop.classList.remove("over");
  send(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) send(file);
});

// Commands

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(text.textContent);
    notify(part("previews").dataset.copied, "ok");
  } catch {
    // Without https a browser gives no clipboard: what is selected can be copied by hand.
    getSelection().selectAllChildren(text);
  }
});
