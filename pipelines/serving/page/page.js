// The page: events in, state changed, everything drawn anew.

import * as api from "./api.js";
import { Clip } from "./frames.js";
import { startLabels } from "./labelling.js";
import { dragHeight, followPointer } from "./plot.js";
import { byId, draw, drawMoment, showModel, titleOf } from "./render.js";
import { ask, compare, forget } from "./runs.js";
import { compareCommand, fingerprint, readLink, scoreCommand, writeLink } from "./share.js";
import { activeSlot, moments, state } from "./state.js";
import { VIEWS } from "./views.js";

let link = readLink(location.hash.slice(1)); // what is still to be reproduced of the link that was opened

const say = (sentence) => {
  byId("error").textContent = "";
  byId("notice").textContent = sentence;
};
const fail = (error) => {
  byId("notice").textContent = ""; // it told what has failed now
  byId("error").textContent = error.message;
  if (error.status !== 401) return;
  if (!api.token.get()) byId("error").textContent = "A bearer token is required. Type it into the field above.";
  askToken();
};

// Questions wait for each other, so that clicks in a row all count.
let queue = Promise.resolve();
const enqueue = (job) => (queue = queue.then(job).catch(fail).finally(refresh));

function refresh() {
  draw();
  share();
}

function askToken() {
  byId("token-form").classList.add("wanted");
  byId("token").focus();
}

async function learnModel() {
  [state.model, state.models] = await Promise.all([api.model(), api.models()]);
  state.most = state.model.max_frames ?? 0;
  showModel();
}

async function connect() {
  await learnModel();
  byId("token-form").classList.remove("wanted");
  if (link.model && link.model !== state.model.name) say(`The link was made with the model ${link.model}; this endpoint has ${state.model.name}, so the curves will differ.`);
  else if (link.clips.A || link.clips.B) say(`This link shows ${[link.clips.A, link.clips.B].filter(Boolean).map((clip) => clip.name).join(" and ")}. Drop the same file to see the view.`);
}

async function load(slot, file) {
  say(`Reading ${file.name} …`);
  const reading = api.frames(file).catch((error) => {
    error.message = `${file.name}: ${error.message}`;
    throw error;
  });
  const [read, hash] = await Promise.all([reading, file.arrayBuffer().then(fingerprint)]);
  state.clips[slot] = new Clip(file, hash, read);
  for (const run of state.runs.filter((other) => other.slot === slot)) forget(run);
  state.preference = null;
  if (!Object.values(state.clips).every(Boolean)) state.moment = 0;
  const card = document.querySelector(`.clip[data-slot=${slot}]`);
  card.classList.add("loaded");
  card.querySelector(".screen").hidden = false;
  Object.assign(card.querySelector(".name"), { textContent: file.name, title: file.name });
  for (const button of document.querySelectorAll("[data-label]")) button.disabled = false;
  const size = `${state.clips[slot].width} × ${state.clips[slot].height}`;
  say(`${file.name}: ${state.clips[slot].count} frames of ${size} pixels.`);
  refresh();
  await reproduce(slot);
}

async function question(slot, view, task, mode) {
  if (!slot) throw new Error("Drop a video first.");
  if (!task) throw new Error("Type the task first: what should the robot do?");
  byId("progress").setAttribute("aria-busy", "true");
  say(`Asking the model: ${task} …`);
  try {
    const remark = await ask({ slot, view, task, mode }, (run) => {
      state.moment = Math.max(0, run.progress.length - 1);
      draw();
    });
    const run = state.followed;
    const before = state.model?.name;
    if (run.model !== before) await learnModel(); // it was updated while the page was open
    const news = !before || state.model.name === before ? "" : ` The endpoint has another model now: ${state.model.name} in place of ${before}.`;
    say(`${titleOf(run)}: progress ${run.progress.at(-1).toFixed(3)} and success ${run.success.at(-1).toFixed(3)} at the last of ${run.positions.length} frames.${remark}${news}`);
  } finally {
    byId("progress").removeAttribute("aria-busy");
  }
}

async function comparison(task) {
  if (!task) throw new Error("Type the task first: better at what?");
  await compare(task);
  const percent = 100 * state.preference.probability;
  say(`${percent >= 50 ? "A" : "B"} did better, with probability ${(Math.max(percent, 100 - percent) / 100).toFixed(3)}.`);
}

// The part of the link that a dropped file makes possible.
async function reproduce(slot) {
  const wanted = link.clips[slot];
  if (!wanted) return;
  const { name, size, hash } = state.clips[slot];
  link.clips[slot] = null;
  const isOther = wanted.hash !== hash || wanted.size !== size;
  for (const run of link.runs.filter((other) => other.slot === slot && other.view in VIEWS)) await question(slot, run.view, run.task, run.mode === "whole" ? "whole" : "prefix");
  if (link.clips.A || link.clips.B) return;
  if (link.compare && state.clips.A && state.clips.B) await comparison(link.compare);
  state.runs.sort((a, b) => orderOf(a) - orderOf(b));
  state.followed = state.runs[link.follow ?? state.runs.length - 1] ?? state.followed;
  state.moment = link.at ?? state.moment;
  link = readLink("");
  if (isOther) say(`${name} is not the file that the link was made with, so the curves may differ.`);
}

const orderOf = (run) => link.runs.findIndex((other) => ["slot", "view", "mode", "task"].every((field) => other[field] === run[field]));

const task = () => byId("task").value.trim();
const mode = () => document.querySelector("[name=mode]:checked").value;

let renaming = 0;

function share() {
  if (link.clips.A || link.clips.B) return; // keep the link until it is reproduced
  const { clips, runs, followed, moment: at, threshold, hold, preference } = state;
  const fields = writeLink({ task: task(), mode: mode(), clips, runs, compare: preference?.task, follow: followed && runs.indexOf(followed), at, threshold, hold, model: state.model?.name });
  const address = new URL(`#${fields}`, location.href).href;
  byId("link").value = address;
  clearTimeout(renaming); // a browser allows few changes of the address a second
  renaming = setTimeout(() => history.replaceState(null, "", address), 200);
  const route = (path) => (state.models.length > 1 ? api.url(path).href : new URL(path, document.baseURI).href);
  const hasToken = Boolean(api.token.get());
  const lines = followed ? [scoreCommand(route, hasToken, clips[followed.slot], followed)] : [];
  if (preference) lines.push(compareCommand(route, hasToken, clips.A, clips.B, preference.task));
  byId("curl").value = lines.join("\n");
}

function go(moment) {
  state.moment = Math.min(Math.max(moment, 0), moments() - 1);
  drawMoment();
}

let playing = 0;

function play() {
  clearInterval(playing);
  const clip = state.clips[activeSlot()];
  const start = playing === 0 && clip;
  byId("play").setAttribute("aria-pressed", String(Boolean(start)));
  byId("play").textContent = start ? "Pause" : "Play";
  playing = 0;
  if (!start) return;
  const apart = clip.fps && clip.count > 1 ? (clip.frameIndex.at(-1) - clip.frameIndex[0]) / (clip.count - 1) / clip.fps : 0.1;
  if (state.moment >= moments() - 1) go(0);
  playing = setInterval(() => (state.moment < moments() - 1 ? go(state.moment + 1) : play()), 1000 * Math.max(apart, 0.03));
}

function startClips() {
  for (const card of document.querySelectorAll(".clip")) {
    const take = (file) => file && enqueue(() => load(card.dataset.slot, file));
    const input = card.querySelector("input");
    input.addEventListener("change", () => {
      take(input.files[0]);
      input.value = ""; // the same file may be chosen again
    });
    for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
      card.addEventListener(kind, (event) => {
        event.preventDefault();
        event.stopPropagation();
        card.classList.toggle("over", kind === "dragenter" || kind === "dragover");
        if (kind === "drop") take(event.dataTransfer.files[0]);
      });
    }
  }
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    const file = event.dataTransfer.files[0];
    if (file) enqueue(() => load(state.clips.A && !state.clips.B ? "B" : "A", file));
  });
}

function startPlots() {
  const plot = byId("progress");
  for (const each of [plot, byId("success")]) followPointer(each, moments, go);
  const moved = (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -1e6, End: 1e6 }[event.key];
    if (event.key === " ") play();
    else if (step) go(state.moment + step);
    else return;
    event.preventDefault();
  };
  plot.addEventListener("keydown", moved);
  for (const kind of ["keyup", "pointerup", "pointerleave"]) plot.addEventListener(kind, share);
  byId("strip").addEventListener("click", (event) => {
    const item = event.target.closest("li");
    if (item) (go(Number(item.dataset.moment)), share());
  });
  byId("play").addEventListener("click", play);
  const set = (name, value) => {
    state[name] = value;
    refresh();
  };
  byId("threshold").addEventListener("input", (event) => set("threshold", Number(event.target.value)));
  byId("hold").addEventListener("input", (event) => set("hold", Number(event.target.value)));
  dragHeight(byId("threshold-line"), byId("success"), (value) => set("threshold", Math.round(100 * value) / 100));
}

function startRuns() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const [asked, how] = [task(), mode()];
    enqueue(async () => {
      const slots = ["A", "B"].filter((slot) => state.clips[slot]);
      for (const slot of slots.length ? slots : [null]) await question(slot, "forward", asked, how);
    });
  });
  byId("compare").addEventListener("click", () => enqueue(() => comparison(task())));
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => enqueue(() => question(activeSlot(), button.dataset.view, task() || state.followed?.task, mode())));
  }
  byId("runs").addEventListener("change", ({ target }) => {
    if (target.dataset.show !== undefined) state.runs[target.dataset.show].visible = target.checked;
    if (target.dataset.follow !== undefined) state.followed = state.runs[target.dataset.follow];
    refocus(refresh);
  });
  byId("runs").addEventListener("click", ({ target }) => {
    if (target.dataset.remove === undefined) return;
    forget(state.runs[target.dataset.remove]);
    refresh();
    byId("progress").focus();
  });
}

// Draw the list of curves anew without losing the keyboard's place in it.
function refocus(redraw) {
  const { show, follow } = document.activeElement.dataset;
  redraw();
  if (show !== undefined) document.querySelector(`[data-show="${show}"]`).focus();
  if (follow !== undefined) document.querySelector(`[data-follow="${follow}"]`).focus();
}

function startShare() {
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const field = byId(button.dataset.copy);
      field.select();
      try {
        await navigator.clipboard.writeText(field.value);
        say("Copied.");
      } catch {
        say("Press Ctrl+C to copy what is selected."); // over plain HTTP a browser gives no clipboard
      }
    });
  }
  window.addEventListener("hashchange", () => location.reload());
}

byId("model-choice").addEventListener("change", (event) => {
  const address = new URL(byId("link").value);
  address.searchParams.set("model", event.target.value);
  const fields = new URLSearchParams(address.hash.slice(1));
  fields.delete("model"); // another one is what was asked for
  address.hash = fields;
  location.assign(address);
});

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.token.set(byId("token").value.trim());
  enqueue(async () => {
    await connect();
    say(`Connected to ${state.model.name}.`);
  });
});

if (link.threshold !== null) state.threshold = link.threshold;
if (link.hold !== null) state.hold = link.hold;
byId("task").value = link.task;
document.querySelector(`[name=mode][value=${link.mode}]`).checked = true;
byId("token").value = api.token.get();
startClips();
startPlots();
startRuns();
startShare();
startLabels(say, fail);
enqueue(connect);
