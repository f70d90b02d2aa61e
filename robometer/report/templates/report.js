"use strict";

for (const card of document.querySelectorAll(".clip")) {
  const data = JSON.parse(card.querySelector("script").textContent);
  const plot = card.querySelector(".plot");
  const last = data.cell.length - 1;
  const thumbs = [...card.querySelectorAll(".thumbs .frame")];
  let current = last;
  const go = (index) => {
    current = Math.min(Math.max(index, 0), last);
    const cell = data.cell[current];
    card.querySelector(".cursor").style.left = `${(100 * current) / Math.max(1, last)}%`;
    card.querySelector(".viewer .frame").style.setProperty("--cell", cell);
    for (const place of card.querySelectorAll("[data-series]")) place.textContent = data.series[place.dataset.series][current].toFixed(3);
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

for (const table of document.querySelectorAll(".sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.sort === undefined ? cell.textContent.trim() : cell.dataset.sort;
    const value = Number(text.replace("−", "-"));
    return text === "" || text === "–" ? null : Number.isFinite(value) ? value : text;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  heads.forEach((head, column) => {
    head.querySelector(".sort").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
