// A session over a WebSocket: one frame out, its progress and success back.

import { token, url } from "./api.js";

const OPEN_S = 5;
const ANSWER_S = 120;

const base64url = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

function connect() {
  const address = url("v1/sessions");
  address.protocol = address.protocol.replace("http", "ws");
  const socket = new WebSocket(address, token.get() ? ["robometer", `bearer.${base64url(token.get())}`] : ["robometer"]);
  let wake = () => {};
  const inbox = [];
  socket.onmessage = (event) => (inbox.push(JSON.parse(event.data)), wake());
  socket.onclose = () => (inbox.push(null), wake());
  // The next answer; throws where the session ends or is silent.
  const answer = async (seconds) => {
    if (!inbox.length) await Promise.race([new Promise((resolve) => (wake = resolve)), new Promise((resolve) => setTimeout(resolve, 1000 * seconds))]);
    const message = inbox.shift();
    if (!message) throw new Error(message === null ? "the session ended" : "the session does not answer");
    if (message.error) throw new Error(message.error);
    return message;
  };
  const opened = new Promise((resolve, reject) => {
    socket.onopen = resolve;
    setTimeout(() => reject(new Error("no session opened")), 1000 * OPEN_S);
    socket.onerror = () => reject(new Error("no session opened"));
  });
  return { socket, opened, answer };
}

// Push `count` frames, `frame(i)` a Blob each; `observe(i, answer)` is called for each, in order.
export async function stream(task, count, frame, observe) {
  const { socket, opened, answer } = connect();
  let isOpen = false;
  try {
    await opened;
    socket.send(JSON.stringify({ task }));
    const { max_frames: most } = await answer(ANSWER_S);
    isOpen = true;
    if (most && count > most) throw new Error(`a session takes ${most} frames, and this view has ${count}`);
    for (let i = 0; i < count; i += 1) {
      socket.send(frame(i));
      observe(i, await answer(ANSWER_S));
    }
  } finally {
    if (isOpen && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ close: true })); // frees its place at once
    socket.close();
  }
}
