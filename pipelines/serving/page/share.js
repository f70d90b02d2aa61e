// What reproduces a view: a link, and a line for a shell.

// FNV-1a, 32 bits: tells whether the same file was dropped again.
export function fingerprint(buffer) {
  let hash = 0x811c9dc5;
  for (const byte of new Uint8Array(buffer)) hash = Math.imul(hash ^ byte, 0x01000193);
  return (hash >>> 0).toString(16).padStart(8, "0");
}

export function writeLink(view) {
  const fields = new URLSearchParams();
  const put = (name, value) => value !== null && value !== undefined && value !== "" && fields.append(name, value);
  put("task", view.task);
  put("mode", view.mode);
  for (const [slot, clip] of Object.entries(view.clips)) if (clip) put(slot, JSON.stringify([clip.name, clip.size, clip.hash]));
  for (const run of view.runs) put("run", JSON.stringify([run.slot, run.view, run.mode, run.task]));
  put("compare", view.compare);
  for (const name of ["follow", "at", "threshold", "hold", "model"]) put(name, view[name]);
  return fields.toString();
}

const parsed = (text) => {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
};

export function readLink(text) {
  const fields = new URLSearchParams(text);
  const clip = (slot) => {
    const [name, size, hash] = parsed(fields.get(slot)) ?? [];
    return name ? { name: String(name), size: Number(size), hash: String(hash) } : null;
  };
  const number = (name, low, high) => {
    const value = Number.parseFloat(fields.get(name));
    return value >= low && value <= high ? value : null;
  };
  return {
    task: fields.get("task") ?? "",
    mode: fields.get("mode") === "whole" ? "whole" : "prefix",
    clips: { A: clip("A"), B: clip("B") },
    runs: fields.getAll("run").map(parsed).filter(Array.isArray).slice(0, 32).map(([slot, view, mode, task]) => ({ slot, view, mode, task: String(task) })),
    compare: fields.get("compare"),
    follow: number("follow", 0, 31),
    at: number("at", 0, 1e6),
    threshold: number("threshold", 0, 1),
    hold: number("hold", 1, 1000),
    model: fields.get("model"),
  };
}

const quoted = (text) => (/^[\w:/.@-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const upload = (field, clip) => `-F ${quoted(`${field}=@"${clip.name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`)}`;
const authorization = (hasToken) => (hasToken ? ' -H "Authorization: Bearer $ROBOMETER_TOKEN"' : "");
const fieldOf = (clip) => (clip.name.toLowerCase().endsWith(".npy") ? "frames" : "video");

// The command that gives the numbers of a run; `route` makes the address of a route.
export function scoreCommand(route, hasToken, clip, run) {
  const curl = `curl${authorization(hasToken)}`;
  const words = `--form-string ${quoted(`task=${run.task}`)}${run.mode === "prefix" ? " -F mode=prefix" : ""} ${quoted(route("v1/score"))}`;
  if (run.view === "forward") return `${curl} ${upload(fieldOf(clip), clip)} ${words}`;
  const python = `import numpy as np; np.save("view.npy", np.load("frames.npy")[${JSON.stringify(run.positions)}])`;
  return `${curl} ${upload(fieldOf(clip), clip)} -o frames.npy ${quoted(route("v1/frames"))} && python3 -c ${quoted(python)} && ${curl} -F frames=@view.npy ${words}`;
}

export function compareCommand(route, hasToken, a, b, task) {
  return `curl${authorization(hasToken)} ${upload(`${fieldOf(a)}_a`, a)} ${upload(`${fieldOf(b)}_b`, b)} --form-string ${quoted(`task=${task}`)} ${quoted(route("v1/compare"))}`;
}
