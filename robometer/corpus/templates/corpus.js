"use strict";
const FRAME_MS = 125;
const HOLD = 5; // ticks for which the last frame stays before a clip starts again
const form = document.querySelector(".filters");
const fields = [...form.elements].filter((element) => element.name);
const playAll = document.getElementById("play-all");
const still = matchMedia("(prefers-reduced-motion: reduce)");
const clips = [...document.querySelectorAll(".card")].map(makeClip);

// One clip: its frame, chart cursor and caption move together.
function makeClip(card) {
  const captions = card.dataset.captions.split("|");
  const at = card.dataset.at.split(" ");
  const last = at.length - 1;
  const [view, range] = [card.querySelector(".view"), card.querySelector("input")];
  const caption = card.querySelector(".caption");
  const clip = { card, playing: false, visible: false, held: 0, frame: last };
  clip.words = { ...card.dataset, task: card.dataset.task.toLowerCase() };
  clip.go = (index) => {
    clip.frame = Math.min(Math.max(index, 0), last);
    card.style.setProperty("--column", clip.frame % card.dataset.across);
    card.style.setProperty("--row", Math.floor(clip.frame / card.dataset.across));
    card.style.setProperty("--at", `${at[clip.frame]}%`);
    range.value = clip.frame;
    range.setAttribute("aria-valuetext", captions[clip.frame]);
    caption.textContent = captions[clip.frame];
  };
  clip.play = (playing) => {
    clip.playing = playing;
    if (playing && clip.frame === last) clip.held = HOLD; // start at once
    card.classList.toggle("playing", playing);
    view.setAttribute("aria-pressed", playing);
  };
  clip.tick = () => {
    if (clip.frame < last) clip.go(clip.frame + 1);
    else if (++clip.held > HOLD) (clip.held = 0), clip.go(0);
  };
  const scrub = (event) => {
    const box = range.parentElement.getBoundingClientRect();
    clip.play(false);
    clip.go(nearest(at, (100 * (event.clientX - box.left)) / box.width));
  };
  // The range is the chart's cursor. A mouse moves it by pointing; a finger and the keyboard move it as a slider.
  range.addEventListener("pointermove", (event) => (event.pointerType === "mouse" || event.buttons) && scrub(event));
  range.addEventListener("pointerdown", scrub);
  range.addEventListener("input", () => (clip.play(false), clip.go(Number(range.value))));
  range.addEventListener("keydown", (event) => {
    if (event.key !== " ") return;
    event.preventDefault();
    clip.play(!clip.playing);
  });
  view.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && !still.matches && clip.play(true));
  view.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && clip.play(allPlay()));
  view.addEventListener("click", () => clip.play(!clip.playing));
  return clip;
}

function nearest(at, x) {
  const distances = at.map((place) => Math.abs(place - x));
  return distances.indexOf(Math.min(...distances));
}

function allPlay() {
  return playAll.getAttribute("aria-pressed") === "true";
}

// Clips outside the window do not play.
const clipOf = new Map(clips.map((clip) => [clip.card, clip]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) clipOf.get(entry.target).visible = entry.isIntersecting;
});
for (const clip of clips) seen.observe(clip.card);
setInterval(() => clips.forEach((clip) => clip.playing && clip.visible && clip.tick()), FRAME_MS);

playAll.addEventListener("click", () => {
  const playing = !allPlay();
  playAll.setAttribute("aria-pressed", playing);
  playAll.textContent = playing ? "Pause all" : "Play all";
  clips.forEach((clip) => clip.play(playing));
});

// Filters: the form, the address and the visible clips always agree.
function filter() {
  const chosen = fields.filter((field) => field.value.trim());
  const tests = chosen.map((field) => {
    if (field.name !== "task") return (words) => words[field.name] === field.value;
    const parts = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    return (words) => parts.every((part) => words.task.includes(part));
  });
  let matching = 0;
  for (const clip of clips) {
    clip.card.hidden = !tests.every((test) => test(clip.words));
    matching += !clip.card.hidden;
  }
  for (const field of fields) field.classList.toggle("set", chosen.includes(field));
  document.querySelector(".none").hidden = matching > 0 || clips.length === 0;
  document.getElementById("matching").textContent =
    chosen.length ? `${matching} of ${clips.length} match` : `${clips.length} clips`;
}

let pending = 0;
function remember() {
  const filters = new URLSearchParams(fields.filter((f) => f.value.trim()).map((f) => [f.name, f.value.trim()]));
  history.replaceState(null, "", `#${filters}`);
}

function recall() {
  const filters = new URLSearchParams(location.hash.slice(1));
  for (const field of fields) {
    const value = filters.get(field.name) || "";
    field.value = value;
    // A link may name a value that no clip on the page has: show that nothing matches instead of everything.
    if (field.value !== value) field.add(new Option(`${value} (0)`, value, false, true));
  }
  filter();
}

form.addEventListener("input", () => {
  filter();
  clearTimeout(pending); // browsers refuse to write the address for every key
  pending = setTimeout(remember, 200);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => (filter(), remember())));
document.getElementById("clear").addEventListener("click", () => form.reset());
addEventListener("hashchange", recall);
recall();
