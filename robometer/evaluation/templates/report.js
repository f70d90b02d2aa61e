"use strict";
const show = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));

for (const card of document.querySelectorAll(".clip")) {
  const data = JSON.parse(card.querySelector("script").textContent);
  const plot = card.querySelector(".plot");
  const last = data.progress.length - 1;
  const thumbs = [...card.querySelectorAll(".thumbs .frame")];
  let current = last;
  const go = (index) => {
    current = Math.min(Math.max(index, 0), last);
    const cell = data.cell[current];
    card.querySelector(".cursor").style.left = `${(100 * current) / Math.max(1, last)}%`;
    card.querySelector(".viewer .frame").style.setProperty("--cell", cell);
    for (const name of ["progress", "success", "target"]) {
      const place = card.querySelector(`[data-of=${name}]`);
      if (place) place.textContent = show(data[name] && data[name][current]);
    }
    card.querySelector("[data-of=frame]").textContent = `${current + 1} of ${last + 1}`;
    const distance = thumbs.map((thumb) => Math.abs(thumb.dataset.cell - cell));
    const nearest = distance.indexOf(Math.min(...distance));
    thumbs.forEach((thumb, i) => thumb.classList.toggle("on", i === nearest));
    plot.setAttribute("aria-valuenow", current + 1);
  };
  const follow = (event) => {
    const box = plot.getBoundingClientRect();
    go(Math.round(((event.clientX - box.left) / box.width) * last));
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -last, End: last }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    go(current + step);
  });
  thumbs.forEach((thumb) => {
    const choose = () => go(data.cell.indexOf(Number(thumb.dataset.cell)));
    thumb.addEventListener("pointerenter", choose);
    thumb.addEventListener("click", choose);
  });
  go(last);
}

for (const map of document.querySelectorAll(".heat")) {
  const output = map.querySelector("output");
  map.addEventListener("pointerover", (event) => {
    const title = event.target.querySelector && event.target.querySelector("title");
    if (title && event.target.matches(".cell")) output.textContent = title.textContent;
  });
}
