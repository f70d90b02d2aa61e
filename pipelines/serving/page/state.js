// What the page knows, and what follows from it.

import { VIEWS, seenAt } from "./views.js";

export const state = {
  model: null, // the answer of /v1/model
  models: [], // names of all models
  most: 0, // frames that the model takes of a clip, at most; 0 for any number
  clips: { A: null, B: null },
  runs: [], // {slot, view, mode, task, positions, progress, success, model, colour, visible, done}
  followed: null,
  moment: 0,
  threshold: 0.5,
  hold: 2,
  preference: null, // {task, probability}
  labels: [],
};

export const positionsOf = (slot, view) => VIEWS[view](state.clips[slot].count);

export const visibleRuns = () => state.runs.filter((run) => run.visible);

// Moments of the longest view on the page.
export function moments() {
  const lengths = visibleRuns().map((run) => run.positions.length);
  const clips = Object.values(state.clips).filter(Boolean).map((clip) => clip.count);
  return Math.max(1, ...(lengths.length ? lengths : clips));
}

// What a slot shows: the order of the followed run, or of the last run of the slot, or of the file.
export function shown(slot) {
  if (state.followed?.slot === slot) return state.followed.positions;
  const last = visibleRuns().findLast((run) => run.slot === slot);
  return last ? last.positions : positionsOf(slot, "forward");
}

export const at = (positions, moment) => positions[Math.min(moment, positions.length - 1)];

// The slot that edits and labels go to.
export const activeSlot = () => state.followed?.slot ?? (state.clips.A ? "A" : state.clips.B ? "B" : null);

export const seenNow = (run, moment) => seenAt(Math.min(moment, run.positions.length - 1), run.positions.length, run.mode, state.most);

// Where a frame is: its number in the source and, where the rate is known, its time.
export function place(clip, position) {
  const seconds = clip.seconds(position);
  return `source frame ${clip.frameIndex[position]}${seconds === null ? "" : `, ${seconds.toFixed(2)} s`}`;
}
