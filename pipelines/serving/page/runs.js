// Questions to the model: each becomes a run, a curve that is drawn.

import * as api from "./api.js";
import { stream } from "./session.js";
import { positionsOf, state } from "./state.js";

const isSame = (a, b) => ["slot", "view", "mode", "task"].every((name) => a[name] === b[name]);

// Ask about a clip; `observe(run)` is called whenever its curve has grown. Answers a sentence where no session was had.
export async function ask(question, observe) {
  const clip = state.clips[question.slot];
  const positions = positionsOf(question.slot, question.view);
  const run = { ...question, positions, progress: [], success: [], visible: true, done: false, colour: freeColour(question) };
  const place = state.runs.findIndex((other) => isSame(other, run));
  state.runs = place < 0 ? [...state.runs, run] : state.runs.with(place, run);
  state.followed = run;
  observe(run);
  try {
    const remark = run.mode === "prefix" ? await streamed(run, clip, observe) : await scored(run, clip);
    run.done = true;
    return remark;
  } catch (error) {
    forget(run);
    throw error;
  } finally {
    observe(run);
  }
}

async function streamed(run, clip, observe) {
  const observed = (i, answer) => {
    run.progress[i] = answer.progress[0];
    run.success[i] = answer.success[0];
    run.model = answer.model.name;
    observe(run);
  };
  try {
    await stream(run.task, run.positions.length, (i) => clip.frameNpy(run.positions[i]), observed);
    return "";
  } catch (error) {
    await scored(run, clip);
    return ` Scored in one request instead of frame by frame: ${error.message.replace(/\.$/, "")}.`;
  }
}

async function scored(run, clip) {
  const answer = await api.score(clip.npy(run.positions), run.task, run.mode);
  Object.assign(run, { progress: answer.progress, success: answer.success, model: answer.model.name });
  return "";
}

export function forget(run) {
  state.runs = state.runs.filter((other) => other !== run);
  if (state.followed === run) state.followed = state.runs.at(-1) ?? null;
}

function freeColour(question) {
  const same = state.runs.find((run) => isSame(run, question));
  if (same) return same.colour;
  const used = state.runs.map((run) => run.colour);
  const free = [...Array(8).keys()].find((colour) => !used.includes(colour));
  return free ?? state.runs.length % 8;
}

export async function compare(task) {
  const [a, b] = ["A", "B"].map((slot) => state.clips[slot].npy(positionsOf(slot, "forward")));
  const answer = await api.compare(a, b, task);
  state.preference = { task, probability: answer.probability_a_better };
}
