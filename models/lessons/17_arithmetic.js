"use strict";

widgets.arithmetic = (box, data) => {
  let exact = data.parameters;
  const size = slider("parameters (powers of ten)", 6, 13, 0.05, Math.log10(exact), value => { exact = 10 ** value; update(); }, value => shown(Number((10 ** value).toPrecision(3))));
  const bits = steps("bits of a number", [4, 8, 16, 32], 2, update), memory = steps("memory of a device, GB", [24, 40, 80, 141, 192, 288], 2, update);
  const count = slider("devices (powers of two)", 0, 16, 1, 10, update, value => shown(2 ** value)), tokens = slider("tokens to learn from, billions", 1, 15000, 1, 300, update);
  const table = make("div", {role: "status"});
  let devices = null, result = [];
  controls(box, size, bits, memory);
  controls(box, count, tokens);
  box.append(table);
  function update() {
    const n = exact, each = memory.value * 1e9, used = devices || 2 ** count.value;
    const weights = n * bits.value / 8, state = 16 * n, seconds = 6 * n * tokens.value * 1e9 / (used * 989e12 * 0.4);
    const hold = size => Math.max(1, Math.ceil(size / each));
    result = [weights, hold(weights), state, hold(state), seconds];
    const line = (name, value, note) => make("tr", {}, make("th", {scope: "row"}, name), make("td", {}, make("strong", {}, value)), make("td", {}, note));
    table.replaceChildren(make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "results"}, make("table", {}, make("tbody", {},
      line("weights", bytes(weights), `parameters · ${bits.value} bits`),
      line("devices to hold them", shown(hold(weights)), `÷ ${memory.value} GB, rounded up`),
      line("state in training", bytes(state), "parameters · 16 bytes"),
      line("devices to train", shown(hold(state)), "without activations"),
      line("time of training", duration(seconds), `6 · parameters · tokens ÷ (${shown(used)} devices · 989 Tflop/s · 40 %)`)))));
  }
  update();
  return move => {
    bits.set(move.bits); memory.set(move.memory); tokens.set(move.tokens);
    size.set(Math.log10(move.parameters)); count.set(Math.round(Math.log2(move.count)));
    exact = move.parameters; devices = move.count; update();
    devices = null;
    return result;
  };
};
