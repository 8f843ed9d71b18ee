// Videos of a gallery run together: one button or the space bar plays all, the arrows choose other weights.
// Works on whatever part of the page is there: steps are exchanged without loading the page anew.

const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const state = { playing: !still, beside: true };

const gallery = () => document.querySelector("[data-gallery]");
const players = () => [...document.querySelectorAll("[data-gallery] video")].filter((one) => one.offsetParent);

function follow() {
  const here = gallery();
  if (!here) return;
  here.classList.toggle("without-base", !state.beside);
  const box = here.querySelector("[data-beside]");
  if (box) box.checked = state.beside;
  here.querySelector("[data-play]")?.setAttribute("aria-pressed", String(state.playing));
  for (const video of document.querySelectorAll("[data-gallery] video")) {
    // A browser may refuse to play by itself; the button is there.
    if (state.playing && video.offsetParent) video.play().catch(() => {});
    else video.pause();
  }
}

function playOrPause() {
  state.playing = !state.playing;
  follow();
}

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-play]")) playOrPause();
});

document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-beside]")) return;
  state.beside = event.target.checked;
  follow();
});

// Videos of one row have the same seed: whoever jumps takes the others along.
document.addEventListener("seeked", (event) => {
  const row = event.target.closest?.("[data-gallery] .videos");
  if (!row) return;
  for (const other of row.querySelectorAll("video")) {
    const apart = Math.abs(other.currentTime - event.target.currentTime);
    if (other !== event.target && apart > 0.25) other.currentTime = event.target.currentTime;
  }
}, true);

document.addEventListener("keydown", (event) => {
  if (!players().length || event.ctrlKey || event.altKey || event.metaKey) return;
  // Controls keep their keys.
  if (event.target.closest("input, select, textarea, button, a, video, summary, [tabindex='0']")) {
    if (!event.target.matches("#earlier, #later") || event.key === " ") return;
  }
  const link = { ArrowLeft: "earlier", ArrowRight: "later" }[event.key];
  if (link && document.getElementById(link)) {
    event.preventDefault();
    document.getElementById(link).click();
  } else if (event.key === " ") {
    event.preventDefault();
    playOrPause();
  } else if (event.key === "b" && document.querySelector("[data-beside]")) {
    state.beside = !state.beside;
    follow();
  }
});

// On a narrow screen the tab of this page may be out of sight.
document.querySelector(".tabs [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
document.addEventListener("htmx:afterSettle", follow);
follow();
