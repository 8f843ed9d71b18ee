// The pages of datasets: clips that play where they stand, and captions that no refresh takes away.
// What is said comes from the templates; requests are htmx's.

const texts = (root) => [...root.querySelectorAll(".caption textarea")];
const isUnsaved = (text) => text.value !== text.defaultValue || text.dataset.unsaved !== undefined;

/** Whether a list of clips must stay as it is: somebody writes in it, or watches. */
function isInUse(clips) {
  const watched = [...clips.querySelectorAll("video")].some((video) => !video.ended);
  return watched || texts(clips).some((text) => isUnsaved(text) || text === document.activeElement);
}

document.addEventListener("htmx:beforeRequest", (event) => {
  const source = event.detail.elt;
  // Refreshes come from the list itself; what a person asks for comes from a button in it.
  if (source.matches(".clips") && isInUse(source)) event.preventDefault();
});

document.addEventListener("input", (event) => {
  const text = event.target;
  if (!text.matches(".caption textarea")) return;
  if (text.value === text.defaultValue) delete text.dataset.unsaved;
  else text.dataset.unsaved = "";
});

document.addEventListener("keydown", (event) => {
  const text = event.target;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && text.matches(".caption textarea")) {
    event.preventDefault();
    text.form.requestSubmit();
  }
});

// The caret stays where it was when a caption comes back saved.
document.addEventListener("htmx:afterSwap", (event) => {
  const saved = event.detail.elt.querySelector?.(".saved");
  if (saved && document.activeElement === document.body) saved.closest("form").querySelector("textarea").focus();
});

window.addEventListener("beforeunload", (event) => {
  if (texts(document).some(isUnsaved)) event.preventDefault();
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-play]");
  if (button) play(button);
});

function play(button) {
  const video = document.createElement("video");
  video.src = button.dataset.play;
  video.controls = video.autoplay = video.loop = video.muted = video.playsInline = true;
  video.setAttribute("aria-label", button.getAttribute("aria-label"));
  video.addEventListener("error", () => {
    const words = document.createElement("span");
    words.className = "muted small";
    words.setAttribute("role", "alert");
    words.textContent = button.dataset.broken;
    video.replaceWith(words);
  });
  button.replaceWith(video);
  video.focus();
}
