"use strict";

widgets.hyper = (box, data) => {
  const chosen = choice("doubled", data.names, 1, update), compared = bars("compared with the unchanged model"), said = make("p", {class: "verdict", role: "status"});
  controls(box, chosen);
  box.append(said, compared.element);
  let result = [];
  function update() {
    const at = chosen.value;
    result = [data.loss, data.parameters, data.milliseconds].map(list => list[at] / list[0]);
    said.replaceChildren(`Loss ${fixed(data.loss[0], 3)} → `, make("strong", {}, fixed(data.loss[at], 3)), at ? data.loss[at] < data.loss[0] ? ": better" : ": worse" : "");
    compared.set(["loss", "parameters", "time of a step"].map((name, i) => [name, result[i], `${fixed(result[i], 2)} ×`, COLOURS[i]]), Math.max(2, ...result));
  }
  update();
  return move => { chosen.set(move.choose); return result; };
};
