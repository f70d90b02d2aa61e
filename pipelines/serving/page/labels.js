// Labels as lines of `trajectories.jsonl` (docs/bring_your_own_data.md). A label is {video, task, quality, onset, frames}:
// `quality` is null, "successful", "suboptimal" or "failure"; `onset` the first source frame that is done, or null.

// The qualities of two clips of which the first is the better one. Throws where they say the opposite.
export function ordered(better, worse) {
  if (better === "failure" && worse === "successful") throw new Error("The better clip is labelled a failure, the other a success. Change one of them first.");
  if (!better && !worse) throw new Error("Say of one of the two clips first whether it is a success (S) or a failure (F).");
  if (better === "successful") return [better, worse === "failure" ? worse : "suboptimal"];
  if (worse === "successful") return ["successful", "suboptimal"];
  return ["suboptimal", "failure"];
}

export function labelled(rows, key, change) {
  const at = rows.findIndex((row) => row.video === key.video && row.task === key.task);
  const row = { ...key, quality: null, onset: null, ...rows[at], ...change };
  if (row.onset !== null && row.quality !== "successful") row.onset = null;
  return at < 0 ? [...rows, row] : rows.with(at, row);
}

export function jsonLines(rows) {
  const done = rows.filter((row) => row.quality);
  return done.map((row) => {
    const line = { video: row.video, task: row.task, quality_label: row.quality };
    if (done.filter((other) => other.video === row.video).length > 1) line.episode_key = `${row.video} | ${row.task}`;
    if (row.onset !== null) line.success = Array.from({ length: row.frames }, (_, i) => Number(i >= row.onset));
    return `${JSON.stringify(line)}\n`;
  }).join("");
}
