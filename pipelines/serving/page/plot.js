// Curves over the moments of a view, a cursor, and the line of the threshold.

const SVG = "http://www.w3.org/2000/svg";

const element = (name, attributes) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

const across = (index, length) => (100 * index) / Math.max(1, length - 1);

// Draw `curves` [{values, colour, width, alarm}] into `plot`, over `length` moments.
export function drawCurves(plot, curves, length) {
  const svg = plot.querySelector("svg");
  const grid = [0, 50].map((y) => element("line", { class: "grid", x1: 0, x2: 100, y1: y, y2: y }));
  const lines = curves.flatMap(({ values, colour, followed, alarm }) => {
    const points = values.map((value, i) => `${across(i, length).toFixed(3)},${(100 * (1 - value)).toFixed(3)}`);
    const ends = points.length === 1 ? [points[0], points[0]] : points;
    const drawn = [element("polyline", { class: `m${colour}${followed ? " followed" : ""}`, points: ends.join(" "), "data-points": values.length })];
    if (alarm >= 0) drawn.push(element("line", { class: `alarm m${colour}`, x1: across(alarm, length), x2: across(alarm, length), y1: 0, y2: 100 }));
    return drawn;
  });
  svg.replaceChildren(...grid, ...lines);
}

export const placeCursor = (plot, index, length) => (plot.querySelector(".cursor").style.left = `${across(index, length)}%`);

// Call `go(moment)` while a pointer moves over `plot`.
export function followPointer(plot, length, go) {
  const follow = (event) => {
    const box = plot.getBoundingClientRect();
    go(Math.round(((event.clientX - box.left) / box.width) * (length() - 1)));
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
}

// Let `handle` be dragged up and down `plot`; `set(value)` gets 0 at the bottom to 1 at the top.
export function dragHeight(handle, plot, set) {
  handle.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    event.stopPropagation();
    handle.setPointerCapture(event.pointerId);
  });
  handle.addEventListener("pointermove", (event) => {
    if (!handle.hasPointerCapture(event.pointerId)) return;
    event.stopPropagation();
    const box = plot.getBoundingClientRect();
    set(Math.min(1, Math.max(0, 1 - (event.clientY - box.top) / box.height)));
  });
}
