"use strict";

widgets.ring = (box, data) => {
  const ranks = slider("devices", 2, 8, 1, data.ranks, () => { step = 0; update(); });
  const verdict = make("p", {class: "verdict", role: "status"}), table = make("div");
  let step = 0, result = [];
  controls(box, ranks, button("Next step", () => { step = Math.min(step + 1, 2 * (ranks.value - 1)); update(); }), button("To the end", () => { step = 2 * (ranks.value - 1); update(); }), button("Start again", () => { step = 0; update(); }));
  box.append(verdict, table);
  function update() {
    const n = ranks.value, letters = "ABCDEFGH";
    /* has[device][part]: whose numbers are in the sum there. */
    const has = Array.from({length: n}, (_, device) => Array.from({length: n}, () => new Set([device])));
    let sent = 0, moved = [];
    for (let s = 0; s < step; s++) {
      moved = [];
      for (let device = 0; device < n; device++) {
        const adding = s < n - 1, part = ((adding ? device - s : device + 1 - (s - n + 1)) % n + n) % n;
        moved.push([device, (device + 1) % n, part, new Set(has[device][part])]);
      }
      for (const [, to, part, what] of moved) has[to][part] = s < n - 1 ? new Set([...has[to][part], ...what]) : what;
      sent += 1 / n;
    }
    const came = new Set(moved.map(([, to, part]) => `${to} ${part}`));
    const phase = step === 0 ? "Each device has only its own gradients." : step < n - 1 ? "Parts go round and are added up." : step === n - 1 ? "Each device now has one part complete." : step < 2 * (n - 1) ? "Complete parts go round." : "All devices have all sums: the same on each.";
    verdict.replaceChildren(`Step ${step} of ${2 * (n - 1)}. `, make("strong", {}, phase), ` Each device has sent ${fixed(sent, 2)} times its gradients.`);
    table.replaceChildren(make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "what each device holds"}, make("table", {class: "matrix"},
      make("thead", {}, make("tr", {}, make("td"), Array.from({length: n}, (_, part) => make("th", {scope: "col"}, `part ${part + 1}`)))),
      make("tbody", {}, has.map((parts, device) => make("tr", {}, make("th", {scope: "row"}, `device ${letters[device]}`), parts.map((what, part) =>
        make("td", {style: `background:${mixed(what.size === n ? "green" : "blue", what.size === n ? 0.3 : 0.3 * (what.size - 1) / n)};${came.has(`${device} ${part}`) ? "outline:2px solid var(--orange)" : ""}`},
          what.size === n ? "all" : [...what].sort().map(i => letters[i]).join("+")))))))),
      make("p", {class: "note"}, "A letter says whose numbers are in the sum. Outlined: has just come from the neighbour above."));
    result = [step, sent];
  }
  update();
  return move => { ranks.set(move.ranks); step = 2 * (move.ranks - 1); update(); return result; };
};
