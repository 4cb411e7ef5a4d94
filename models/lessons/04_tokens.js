"use strict";

widgets.tokens = (box, data) => {
  /* Token 0 … 255 are bytes, those that can be seen first; token 256 + i is the merge i. */
  const seen = b => (b > 32 && b < 127) || (b > 160 && b !== 173);
  const order = [...Array(256).keys()].sort((a, b) => seen(b) - seen(a) || a - b);
  const ofByte = [];
  order.forEach((byte, id) => { ofByte[byte] = id; });
  const merges = data.merges, ranks = new Map();
  for (let i = 0; i < merges.length / 2; i++) ranks.set(merges[2 * i] * 65536 + merges[2 * i + 1], i);
  const bytesOf = id => id < 256 ? [order[id]] : [...bytesOf(merges[2 * (id - 256)]), ...bytesOf(merges[2 * (id - 256) + 1])];
  const words = /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
  function encode(text) {
    return (text.match(words) || []).flatMap(word => {
      let ids = Array.from(new TextEncoder().encode(word), byte => ofByte[byte]);
      for (;;) {
        let best = Infinity;
        for (let i = 0; i + 1 < ids.length; i++) best = Math.min(best, ranks.get(ids[i] * 65536 + ids[i + 1]) ?? Infinity);
        if (best === Infinity) return ids;
        const next = [];
        for (let i = 0; i < ids.length; i++) {
          if (i + 1 < ids.length && ids[i] === merges[2 * best] && ids[i + 1] === merges[2 * best + 1]) { next.push(256 + best); i++; }
          else next.push(ids[i]);
        }
        ids = next;
      }
    });
  }
  const area = make("textarea", {id: "tokens-text", rows: 3, oninput: update, spellcheck: "false"});
  const said = make("p", {class: "verdict", role: "status"}), cells = make("div", {class: "cells"});
  const kind = choice("tokens are", ["GPT-2's byte pairs", "characters"], 0, update);
  area.value = data.text;
  box.append(make("label", {for: "tokens-text"}, "your text"), area);
  controls(box, kind);
  box.append(said, cells);
  let result = [];
  function update() {
    const text = area.value, whole = [...text], decoder = new TextDecoder("utf-8", {fatal: true});
    result = encode(text);
    const read = id => { const raw = new Uint8Array(bytesOf(id)); try { return decoder.decode(raw); } catch { return [...raw].map(b => `\\x${b.toString(16)}`).join(""); } };
    const shownTokens = kind.value ? whole.map(c => [c, c.codePointAt(0)]) : result.map(id => [read(id), id]);
    said.replaceChildren(`${whole.length} characters, `, make("strong", {}, `${shownTokens.length} tokens`));
    cells.replaceChildren(...shownTokens.map(([name, id], i) => make("span", {style: `background:${mixed(COLOURS[i % 6], 0.22)}`},
      make("span", {class: "token"}, name.replace(/\n/g, "⏎").replace(/ /g, "·")), make("br"), make("span", {class: "note", style: "color:var(--ink);font-size:.72rem"}, String(id)))));
  }
  update();
  return move => { area.value = move.text; area.dispatchEvent(new Event("input")); return result; };
};
