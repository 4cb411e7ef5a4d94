"use strict";

widgets.overfit = (box, data) => {
  const epoch = slider("epoch", 1, data.seen.length, 1, 5, update), size = steps("parameters", data.sizes, 0, update);
  const said = make("p", {class: "verdict", role: "status"}), sized = make("p", {class: "verdict", role: "status"});
  const line = list => list.map((v, i) => [i + 1, v]);
  const left = chart({x: "epoch", y: "loss", lines: {"the 200 digits": line(data.seen), "new digits": line(data.fresh)}});
  const right = chart({x: "parameters", y: "loss", log: "x", lines: {"new digits": data.sizes.map((n, i) => [n, data.new[i]]), "digits it learned from": data.sizes.map((n, i) => [n, data.old[i]])}});
  controls(box, epoch);
  box.append(said, left.element);
  controls(box, size);
  box.append(sized, right.element);
  let result = [];
  function update() {
    const at = epoch.value - 1, best = data.fresh.indexOf(Math.min(...data.fresh));
    said.replaceChildren("On the 200 digits ", make("strong", {}, fixed(data.seen[at], 3)), ", on new ones ", make("strong", {}, fixed(data.fresh[at], 3)),
      at < best ? ": still learning." : at === best ? ": this is the moment to stop." : ": now it only learns by heart.");
    left.set({mark: epoch.value});
    right.set({mark: size.value});
    sized.replaceChildren(`${shown(size.value)} parameters: loss `, make("strong", {}, fixed(data.new[size.place], 3)), " on new digits.");
    result = [data.seen[at], data.fresh[at], data.new[size.place]];
  }
  update();
  return move => { epoch.set(move.epoch); size.set(data.sizes[move.size]); return result; };
};
