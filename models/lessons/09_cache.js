"use strict";

widgets.cache = (box, data) => {
  const powers = (first, last) => Array.from({length: last - first + 1}, (_, i) => 2 ** (first + i));
  const layers = slider("layers", 1, 128, 1, data.layers, update), heads = slider("heads of keys and values", 1, 128, 1, data.heads, update);
  const width = slider("width of a head", 8, 256, 8, data.width, update);
  const context = steps("context", powers(6, 20), powers(6, 20).indexOf(data.context), update);
  const bits = choice("a number takes", ["2 bytes (16 bits)", "1 byte (8 bits)", "4 bytes (32 bits)"], 0, update);
  const verdict = make("p", {class: "verdict", role: "status"}), formula = make("p", {class: "note"});
  controls(box, layers, heads, width, context, bits);
  box.append(verdict, formula);
  let result = [];
  function update() {
    const size = [2, 1, 4][bits.value], total = 2 * layers.value * heads.value * context.value * width.value * size;
    verdict.replaceChildren("One request: ", make("strong", {}, bytes(total)), `. An H100 with 80 GB has room for ${Math.floor(80e9 / total)} of them, and nothing else.`);
    formula.textContent = `2 · ${layers.value} · ${heads.value} · ${shown(context.value)} · ${width.value} · ${size} bytes`;
    result = [total];
  }
  update();
  return move => { layers.set(move.layers); heads.set(move.heads); width.set(move.width); context.set(move.context); return result; };
};

widgets.edge = (box, data) => {
  const keep = slider("first tokens to keep", 0, 6, 1, 0, () => restart());
  const row = make("div", {class: "cells"}), verdict = make("p", {class: "verdict", role: "status"});
  let text = [], seen = [], used = 0;
  const say = token => data.words[token % data.words.length];
  function restart(count = 0) {
    text = Array.from({length: data.start}, (_, i) => i);
    seen = [...text];
    used = 0;
    read();
    for (let i = 0; i < count; i++) add();
  }
  function read() {
    if (seen.length > data.context) {
      const most = used ? Math.floor(data.context / 2) : data.context, tail = most - Math.min(keep.value, most - 1);
      seen = [...seen.slice(0, most - tail), ...seen.slice(seen.length - tail)];
    }
    used = seen.length;
    row.replaceChildren(...text.map(token => make("span", {class: "token", style: seen.includes(token) ? `background:${mixed("blue", 0.25)}` : "text-decoration:line-through;color:var(--soft)"}, say(token))));
    verdict.replaceChildren(`${text.length} words written, the model sees `, make("strong", {}, `${seen.length} of ${data.context}`), seen.length < text.length ? "; the others are gone." : ".");
  }
  function add() {
    const token = text.length;
    text.push(token);
    seen.push(token);
    read();
  }
  controls(box, keep, button("Add a word", add), button("Add ten", () => { for (let i = 0; i < 10; i++) add(); }), button("Start again", () => restart()));
  box.append(verdict, row);
  restart(8);
  return move => { keep.set(move.keep); restart(move.count); return seen; };
};
