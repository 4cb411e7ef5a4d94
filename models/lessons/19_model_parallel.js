"use strict";

widgets.pipeline = (box) => {
  const stages = slider("stages (devices)", 1, 8, 1, 4, update), parts = slider("parts of the batch", 1, 16, 1, 4, update);
  const verdict = make("p", {class: "verdict", role: "status"}), table = make("div");
  controls(box, stages, parts);
  box.append(verdict, table);
  let result = [];
  function update() {
    const p = stages.value, m = parts.value, forward = m + p - 1, length = 3 * forward;
    const rows = Array.from({length: p}, () => new Array(length).fill(0));
    for (let s = 0; s < p; s++) for (let i = 0; i < m; i++) {
      rows[s][s + i] = i + 1;
      rows[s][forward + 2 * (p - 1 - s + i)] = rows[s][forward + 2 * (p - 1 - s + i) + 1] = -(i + 1);
    }
    const idle = rows.flat().filter(cell => !cell).length / (p * length);
    result = [idle, length];
    verdict.replaceChildren("Idle: ", make("strong", {}, percent(idle)), ` of the time. A number is the part at work: blue forward, orange backward (which takes twice as long).`);
    table.replaceChildren(make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "what each stage does, moment by moment"}, make("table", {class: "matrix"}, make("tbody", {}, rows.map((row, s) =>
      make("tr", {}, make("th", {scope: "row"}, `stage ${s + 1}`), row.map(cell => make("td", {style: `min-width:1.3rem;text-align:center;padding:.1rem;background:${cell ? mixed(cell > 0 ? "blue" : "orange", 0.3) : "var(--line)"}`}, cell ? String(Math.abs(cell)) : "")))))))); 
  }
  update();
  return move => { stages.set(move.stages); parts.set(move.parts); return result; };
};
