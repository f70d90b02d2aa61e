// The labels: buttons, keys, and the file.

import { jsonLines, labelled, ordered } from "./labels.js";
import { byId, drawLabels } from "./render.js";
import { activeSlot, at, place, shown, state } from "./state.js";

const STORED = "robometer.labels";
const KEYS = { s: "success", f: "failure", o: "onset", b: "better" };

const taskNow = () => state.followed?.task ?? byId("task").value.trim();

function keyOf(slot) {
  const clip = state.clips[slot];
  if (!clip) throw new Error("Drop a video first.");
  if (!clip.isVideo) throw new Error(`${clip.name} is an array. Labels are saved for videos only.`);
  if (!taskNow()) throw new Error("Type the task first: a label needs one.");
  return { video: clip.name, task: taskNow(), frames: clip.frameIndex.at(-1) + 1 };
}

const qualityOf = (key) => state.labels.find((row) => row.video === key.video && row.task === key.task)?.quality ?? null;

// Answers what was labelled, in a sentence. Throws where the label makes no sense.
function label(kind) {
  const slot = activeSlot();
  const key = keyOf(slot);
  if (kind === "better") return prefer(slot, key);
  if (kind === "onset") return mark(slot, key);
  const quality = kind === "success" ? "successful" : "failure";
  state.labels = labelled(state.labels, key, { quality });
  return `${key.video} is labelled ${quality}.`;
}

function mark(slot, key) {
  if ([null, "successful"].includes(qualityOf(key)) === false) throw new Error(`${key.video} is labelled ${qualityOf(key)}, so no frame of it is done. Label it a success first.`);
  const position = at(shown(slot), state.moment);
  const onset = state.clips[slot].frameIndex[position];
  state.labels = labelled(state.labels, key, { quality: "successful", onset });
  return `${key.video} is labelled successful, and done from ${place(state.clips[slot], position)} on.`;
}

function prefer(slot, better) {
  const other = slot === "A" ? "B" : "A";
  if (!state.clips[other]) throw new Error("Drop a second video first: better than what?");
  const worse = keyOf(other);
  if (worse.video === better.video) throw new Error("Both clips have the same name, so a file of labels cannot tell them apart. Rename one.");
  const [high, low] = ordered(qualityOf(better), qualityOf(worse));
  state.labels = labelled(labelled(state.labels, better, { quality: high }), worse, { quality: low });
  return `${better.video} is labelled ${high}, ${worse.video} ${low}.`;
}

function save() {
  const file = new Blob([jsonLines(state.labels)], { type: "application/jsonl" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "trajectories.jsonl" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// `say(sentence)` and `fail(error)` show what became of a label.
export function startLabels(say, fail) {
  state.labels = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
  const changed = () => {
    sessionStorage.setItem(STORED, JSON.stringify(state.labels));
    drawLabels();
  };
  const give = (kind) => {
    try {
      say(label(kind));
      changed();
    } catch (error) {
      fail(error);
    }
  };
  for (const button of document.querySelectorAll("[data-label]")) button.addEventListener("click", () => give(button.dataset.label));
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input:not([type=radio], [type=checkbox], [type=range], [type=file]), textarea");
    if (!byId("keys").checked || isTyping || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const kind = KEYS[event.key.toLowerCase()];
    if (kind && !document.querySelector(`[data-label=${kind}]`).disabled) give(kind);
  });
  byId("labels").addEventListener("click", (event) => {
    const index = event.target.dataset.unlabel;
    if (index === undefined) return;
    state.labels = state.labels.toSpliced(Number(index), 1);
    changed();
  });
  byId("save").addEventListener("click", save);
  drawLabels();
}
