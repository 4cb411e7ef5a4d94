"use strict";

widgets.experts = (box, data) => {
  const switches = data.names.map((name, at) => button(name, () => show(at))), text = make("div"), loads = bars("share of the characters");
  controls(box, ...switches);
  box.append(loads.element, text);
  let result = [];
  function show(at) {
    switches.forEach((one, i) => one.setAttribute("aria-pressed", i === at));
    const counts = new Array(data.experts).fill(0);
    text.replaceChildren(...data.texts.map((line, row) => make("p", {class: "token"}, [...line].map((character, i) => {
      const expert = data.where[at][row][i];
      counts[expert]++;
      return make("span", {style: `background:${mixed(COLOURS[expert], 0.35)}`, title: `expert ${expert + 1}`}, character === "\n" ? "⏎" : character);
    }))));
    const all = counts.reduce((a, b) => a + b, 0);
    result = counts.map(count => count / all);
    loads.set(result.map((share, i) => [`expert ${i + 1}`, share, percent(share), COLOURS[i]]), 1);
  }
  show(0);
  return move => { switches[data.names.indexOf(move.balance)].click(); return result; };
};
