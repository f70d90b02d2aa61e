// Draws the state.

import { alarmAt } from "./alarm.js";
import { modelName } from "./api.js";
import { drawCurves, placeCursor } from "./plot.js";
import { activeSlot, at, moments, place, positionsOf, seenNow, shown, state, visibleRuns } from "./state.js";

export const byId = (id) => document.getElementById(id);

export const VIEW_NAMES = { forward: "", reversed: "reversed", cycle: "cycle", frozen: "frozen first frame", retry: "retry" };

const plots = () => [byId("progress"), byId("success")];
const made = (name, attributes = {}, ...children) => {
  const node = Object.assign(document.createElement(name), attributes);
  node.append(...children);
  return node;
};
const digits = (value) => (value === undefined ? "–" : value.toFixed(3));

export function showModel() {
  const { name, revision, frames } = state.model;
  const choice = byId("model-choice");
  choice.replaceChildren(...state.models.map((one) => made("option", { value: one, textContent: one, selected: one === modelName })));
  byId("model-others").hidden = state.models.length < 2;
  byId("model-name").textContent = name;
  byId("model-revision").textContent = revision || "none (no weights)";
  const size = frames.short_edge ? `short edge ${frames.short_edge} px` : "as large as they are";
  const taken = state.most ? `; the model takes ${state.most} at a time` : "";
  byId("model-frames").textContent = `${frames.max_frames ? `at most ${frames.max_frames}` : "all"} of a video, ${size}${taken}`;
}

export function draw() {
  const length = moments();
  state.moment = Math.min(state.moment, length - 1);
  drawPlots(length);
  drawRuns();
  drawStrip();
  drawPreference();
  for (const card of document.querySelectorAll(".clip")) card.classList.toggle("followed", Boolean(state.clips.B) && card.dataset.slot === activeSlot());
  const any = Boolean(state.clips.A ?? state.clips.B);
  for (const button of document.querySelectorAll("[data-view], #play")) button.disabled = !any;
  byId("compare").disabled = !(state.clips.A && state.clips.B);
  document.querySelector(".work").classList.toggle("two", Boolean(state.clips.B));
  byId("no-runs").hidden = state.runs.length > 0;
  drawMoment();
}

function drawPlots(length) {
  const [progress, success] = plots();
  const curves = (name) =>
    visibleRuns().map((run) => ({ values: run[name], colour: run.colour, followed: run === state.followed, alarm: alarmOf(run) }));
  drawCurves(progress, curves("progress"), length);
  drawCurves(success, curves("success"), length);
  progress.setAttribute("aria-valuemax", length);
  byId("last-moment").textContent = length;
  byId("threshold-line").style.top = `${100 * (1 - state.threshold)}%`;
  byId("threshold").value = state.threshold;
  byId("threshold-text").textContent = state.threshold.toFixed(2);
  byId("hold").max = Math.max(16, length);
  byId("hold").value = state.hold;
  byId("hold-text").textContent = holdText();
  byId("alarm").textContent = state.followed ? alarmSentence(state.followed) : "";
}

export const alarmOf = (run) => alarmAt(run.success, state.threshold, state.hold);

function holdText() {
  const clip = state.clips[activeSlot()];
  const frames = `${state.hold} frame${state.hold === 1 ? "" : "s"}`;
  if (!clip?.fps || clip.count < 2) return frames;
  const apart = (clip.frameIndex.at(-1) - clip.frameIndex[0]) / (clip.count - 1) / clip.fps;
  return `${frames}, about ${(apart * state.hold).toFixed(2)} s`;
}

function alarmSentence(run) {
  const moment = alarmOf(run);
  const rule = `success at or above ${state.threshold.toFixed(2)} for ${state.hold} frame${state.hold === 1 ? "" : "s"} in a row`;
  if (moment < 0) return `No alarm: never ${rule}.`;
  const clip = state.clips[run.slot];
  return `Alarm at frame ${moment + 1} of ${run.positions.length} (${place(clip, run.positions[moment])}): ${rule}.`;
}

const otherModel = (run) => (run.model && run.model !== state.model?.name ? run.model : "");

export const titleOf = (run) => [state.clips.B ? run.slot : "", run.task, VIEW_NAMES[run.view], otherModel(run)].filter(Boolean).join(" · ");

function drawRuns() {
  byId("runs").replaceChildren(...state.runs.map(runRow));
}

function runRow(run, index) {
  const show = made("input", { type: "checkbox", checked: run.visible });
  show.dataset.show = index;
  const follow = made("input", { type: "radio", name: "follow", checked: run === state.followed });
  follow.dataset.follow = index;
  const swatch = made("i", { className: `m${run.colour}` });
  const mode = made("span", { className: "soft", textContent: run.mode === "prefix" ? "as it streams" : "whole clip" });
  const moment = alarmOf(run);
  const remove = made("button", { type: "button", className: "remove", textContent: "✕" });
  remove.dataset.remove = index;
  remove.setAttribute("aria-label", `Remove the curve ${titleOf(run)}`);
  const item = made("li", {},
    made("label", {}, show, "show"), made("label", {}, follow, "follow"),
    made("span", { className: "what" }, swatch, made("span", {}, titleOf(run), " ", mode)),
    made("span", { className: "value num soft" }, "progress ", made("b", {})),
    made("span", { className: "value num soft" }, "success ", made("b", {})),
    made("span", { className: "alarm num soft", textContent: moment < 0 ? "no alarm" : `alarm at frame ${moment + 1}` }),
    remove);
  show.setAttribute("aria-label", `Show the curve ${titleOf(run)}`);
  follow.setAttribute("aria-label", `Follow the curve ${titleOf(run)}`);
  return item;
}

// The part that changes with the cursor.
export function drawMoment() {
  const { moment } = state;
  for (const plot of plots()) placeCursor(plot, moment, moments());
  for (const card of document.querySelectorAll(".clip.loaded")) {
    const clip = state.clips[card.dataset.slot];
    const positions = shown(card.dataset.slot);
    clip.draw(card.querySelector(".screen"), at(positions, moment));
    card.querySelector(".readout").textContent = `frame ${Math.min(moment, positions.length - 1) + 1} of ${positions.length} · ${place(clip, at(positions, moment))}`;
  }
  state.runs.forEach((run, i) => {
    const [progress, success] = byId("runs").children[i].querySelectorAll("b");
    progress.textContent = digits(run.progress[moment]);
    success.textContent = digits(run.success[moment]);
  });
  markStrip();
  sayMoment();
}

function sayMoment() {
  const slot = activeSlot();
  if (!slot) return;
  const run = state.followed;
  const words = [`frame ${state.moment + 1} of ${moments()}`, place(state.clips[slot], at(shown(slot), state.moment))];
  if (run?.progress[state.moment] !== undefined) words.push(`progress ${digits(run.progress[state.moment])}`, `success ${digits(run.success[state.moment])}`);
  byId("progress").setAttribute("aria-valuenow", state.moment + 1);
  byId("progress").setAttribute("aria-valuetext", words.join(", "));
}

let drawn = "";

function drawStrip() {
  const slot = activeSlot();
  if (!slot) return;
  const clip = state.clips[slot];
  const positions = shown(slot);
  const key = [clip.hash, clip.name, positions].join();
  if (key === drawn) return;
  drawn = key;
  byId("strip").replaceChildren(...positions.map((position, moment) => {
    const canvas = made("canvas", { width: 84 });
    clip.drawSmall(canvas, position);
    const item = made("li", {}, canvas, String(clip.frameIndex[position]));
    item.dataset.moment = moment;
    return item;
  }));
}

function markStrip() {
  const slot = activeSlot();
  if (!slot) return;
  const run = state.followed;
  const seen = run && seenNow(run, state.moment);
  [...byId("strip").children].forEach((item, i) => {
    item.classList.toggle("on", i === state.moment);
    item.classList.toggle("unseen", Boolean(seen) && !seen.has(i));
  });
  byId("seen").textContent = seenSentence(slot, run, seen);
}

function seenSentence(slot, run, seen) {
  const numbers = "Below each frame stands its number in the source.";
  if (!run) return `These ${positionsOf(slot, "forward").length} frames of clip ${slot} are what a score is made from. ${numbers}`;
  const total = run.mode === "prefix" ? Math.min(state.moment + 1, run.positions.length) : run.positions.length;
  const what = run.mode === "prefix" ? `the value under the cursor, the model was shown the frames up to it` : "this curve, the model was shown the whole clip";
  const count = seen.size === total ? (total === 1 ? "that one" : `all ${total} of them`) : `${seen.size} of these ${total}`;
  const rest = run.mode === "whole" && seen.size < total ? "; between them values are interpolated" : "";
  const others = seen.size < run.positions.length ? " The others are pale." : "";
  return `For ${what}, and took ${count}${rest}.${others} ${numbers}`;
}

function drawPreference() {
  const card = byId("preference");
  card.hidden = !state.preference;
  if (!state.preference) return;
  const percent = 100 * state.preference.probability;
  byId("share-a").textContent = `${percent.toFixed(1)} %`;
  byId("share-b").textContent = `${(100 - percent).toFixed(1)} %`;
  byId("share").style.width = `${percent}%`;
  byId("preference-task").textContent = `at “${state.preference.task}”`;
}

export function drawLabels() {
  byId("labels").replaceChildren(...state.labels.map((row, i) => {
    const badge = made("span", { className: `badge ${row.quality ?? "soft"}`, textContent: row.quality ?? "no quality yet" });
    const onset = row.onset === null ? "" : made("span", { className: "soft num", textContent: `done from source frame ${row.onset} on` });
    const remove = made("button", { type: "button", className: "remove", textContent: "✕" });
    remove.dataset.unlabel = i;
    remove.setAttribute("aria-label", `Remove the label of ${row.video}`);
    return made("li", {}, made("b", { textContent: row.video }), made("span", { textContent: row.task }), badge, onset, remove);
  }));
  byId("save").disabled = !state.labels.some((row) => row.quality);
}
