// The endpoint's routes. Every failure is an `Error` whose message is a sentence to show.

import { readNpy } from "./npy.js";

const TOKEN = "robometer.token";

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (value) => (value ? sessionStorage.setItem(TOKEN, value) : sessionStorage.removeItem(TOKEN)),
};

// The page's address names the model. Every request names it too, so that no canary answers some of them.
export const modelName = new URLSearchParams(location.search).get("model") ?? "default";

export function url(path) {
  const address = new URL(path, document.baseURI);
  address.searchParams.set("model", modelName);
  return address;
}

const bytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

async function ask(path, body) {
  const headers = token.get() ? { Authorization: `Bearer ${bytes(token.get())}` } : {};
  let response;
  try {
    response = await fetch(url(path), { method: body ? "POST" : "GET", body, headers });
  } catch {
    throw new Error("The endpoint does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Refused(response.status, answer.error ?? `The endpoint answered with status ${response.status}.`);
}

const form = (fields) => {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) data.append(name, value, name);
    else data.append(name, value);
  }
  return data;
};

export const model = async () => (await ask("v1/model")).json();

// The names of all models of the endpoint.
export const models = async () => (await (await ask("v1/models")).json()).models.map((one) => one.model);

export async function frames(file) {
  const isArray = file.name.toLowerCase().endsWith(".npy");
  const response = await ask("v1/frames", form({ [isArray ? "frames" : "video"]: file }));
  const about = JSON.parse(response.headers.get("x-robometer-frames"));
  return { ...readNpy(await response.arrayBuffer()), frameIndex: about.frame_index, fps: about.fps };
}

export const score = async (npy, task, mode) => (await ask("v1/score", form({ task, mode, frames: npy }))).json();

export const compare = async (a, b, task) => (await ask("v1/compare", form({ task, frames_a: a, frames_b: b }))).json();
