"use strict";
// Heads of tables sort by the number of a cell where it has one, else by its text; numbers that are none stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, place) => {
    const cell = row.cells[place];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    const rows = [...table.tBodies[0].rows];
    rows.sort((one, other) => {
      const [a, b] = [key(one, place), key(other, place)];
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      const order = typeof a === "number" ? a - b : a.localeCompare(b);
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  }));
}
// One slider for the samples of all runs: the boundary that is shown. Without this script all of them are.
for (const strip of document.querySelectorAll("[data-slider]")) {
  const frames = [...strip.querySelectorAll("figure[data-after]")];
  const stops = [...new Set(frames.map((frame) => Number(frame.dataset.after)))].sort((a, b) => a - b);
  if (stops.length < 2) continue;
  const control = document.createElement("div");
  control.className = "control";
  const label = document.createElement("label");
  label.htmlFor = "after";
  label.textContent = "after task";
  const input = document.createElement("input");
  Object.assign(input, { type: "range", id: "after", min: 0, max: stops.length - 1, step: 1, value: stops.length - 1 });
  const said = document.createElement("output");
  said.htmlFor = "after";
  const all = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.id = "all";
  all.append(box, " all beside each other");
  const show = () => {
    const stop = stops[Number(input.value)];
    said.textContent = String(stop);
    input.setAttribute("aria-valuetext", `after task ${stop}`);
    input.disabled = box.checked;
    strip.classList.toggle("playing", !box.checked);
    for (const frame of frames) frame.classList.toggle("shown", Number(frame.dataset.after) === stop);
  };
  input.addEventListener("input", show);
  box.addEventListener("change", show);
  control.append(label, input, said, all);
  strip.prepend(control);
  show();
}
