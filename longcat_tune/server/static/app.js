// What every page does: notices that can be closed, a word when the server does not answer, lists of tabs.
// Knows nothing of runs, datasets or previews.

/** Tell something at the foot of the page; kind is ok, warn or bad. */
export function notify(text, kind = "bad") {
  const notice = document.createElement("div");
  notice.className = `notice ${kind}`;
  notice.setAttribute("role", kind === "bad" ? "alert" : "status");
  const words = document.createElement("p");
  words.textContent = text;
  const close = document.createElement("button");
  close.className = "close";
  close.type = "button";
  close.dataset.dismiss = "";
  close.setAttribute("aria-label", document.body.dataset.close);
  close.textContent = "×";
  notice.append(words, close);
  document.getElementById("notices").replaceChildren(notice);
}

function dismiss() {
  document.getElementById("notices").replaceChildren();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-dismiss]");
  if (button) button.closest(".notice").remove();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") dismiss();
  if (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End") moveTab(event);
});

document.addEventListener("htmx:sendError", () => notify(document.body.dataset.noConnection));
document.addEventListener("htmx:timeout", () => notify(document.body.dataset.noConnection));
// What was wrong is past once something works.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.detail.requestConfig.verb !== "get") dismiss();
});

// A second press of a button that is already at work does nothing.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.method === "get") return;
  const button = event.submitter;
  if (button) setTimeout(() => { button.disabled = true; });
});
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

/** In a [role=tablist], the arrows go from tab to tab, as everywhere. */
function moveTab(event) {
  const tab = event.target.closest("[role=tab]");
  if (!tab) return;
  const tabs = [...tab.closest("[role=tablist]").querySelectorAll("[role=tab]")];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const ends = { Home: 0, End: tabs.length - 1 };
  const next = step ? (tabs.indexOf(tab) + step + tabs.length) % tabs.length : ends[event.key];
  if (next === undefined) return;
  event.preventDefault();
  tabs[next].focus();
  tabs[next].click();
}

/** Make a [role=tablist] work: each tab shows the panel that its aria-controls names. */
export function tabs(list) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const choose = (chosen) => {
    for (const tab of all) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
  };
  for (const tab of all) tab.addEventListener("click", () => choose(tab));
  choose(all.find((tab) => tab.getAttribute("aria-selected") === "true") ?? all[0]);
}

for (const list of document.querySelectorAll("[role=tablist]")) tabs(list);
