"use strict";
// Marks one trial in all pictures and the table, and lets the axes of the first picture be brushed. The page is whole without it.
(() => {
  const all = [...document.querySelectorAll("[data-t]")];
  const of = new Map();
  for (const one of all) of.set(one.dataset.t, [...(of.get(one.dataset.t) || []), one]);
  const told = document.getElementById("told");
  let pinned = null;

  const show = (key) => {
    document.body.classList.toggle("picked", key !== null);
    for (const one of document.querySelectorAll(".on")) one.classList.remove("on");
    for (const one of of.get(key) || []) one.classList.add("on");
    const row = key === null ? null : document.querySelector(`tr[data-t="${key}"]`);
    if (told) told.textContent = row ? row.dataset.title : "";
  };
  const keyOf = (event) => event.target.closest("[data-t]")?.dataset.t ?? null;
  document.addEventListener("pointerover", (event) => { if (pinned === null) show(keyOf(event)); });
  document.addEventListener("click", (event) => {
    const key = keyOf(event);
    pinned = key === pinned ? null : key;
    show(pinned);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") show(pinned = null); });

  // Brushing: drag along an axis keeps the trials that cross it there; a click on the axis lets all through again.
  const svg = document.querySelector("svg.parallel");
  if (!svg) return;
  const kept = new Map();
  const lines = [...svg.querySelectorAll("polyline[data-y]")];
  const heights = lines.map((line) => line.dataset.y.split(" ").map(Number));
  const filter = () => {
    const out = new Set();
    lines.forEach((line, n) => {
      for (const [axis, [low, high]] of kept) {
        if (heights[n][axis] < low || heights[n][axis] > high) out.add(line.dataset.t);
      }
    });
    for (const one of all) one.classList.toggle("out", out.has(one.dataset.t));
  };
  svg.querySelectorAll("rect.brush").forEach((rect, axis) => {
    const band = svg.querySelectorAll("rect.chosen")[axis];
    const at = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).y;
    let from = null;
    rect.addEventListener("pointerdown", (event) => { from = at(event); rect.setPointerCapture(event.pointerId); });
    rect.addEventListener("pointermove", (event) => {
      if (from === null) return;
      const ends = [from, at(event)].sort((a, b) => a - b);
      if (ends[1] - ends[0] < 3) return;
      kept.set(axis, ends);
      band.setAttribute("y", ends[0]);
      band.setAttribute("height", ends[1] - ends[0]);
      filter();
    });
    rect.addEventListener("pointerup", (event) => {
      if (from !== null && Math.abs(at(event) - from) < 3) {
        kept.delete(axis);
        band.setAttribute("height", 0);
        filter();
      }
      from = null;
    });
  });
})();
