"use strict";

widgets.attention = (box, data) => {
  const {group} = data, readable = s => s.tokens.join("").replaceAll("·", " ");
  const sentence = choice("sentence", data.sentences.map(readable), 0, fresh);
  const layer = slider("layer", 1, 30, 1, 1, update), head = slider("head", 1, 9, 1, 1, update);
  const words = make("div", {class: "cells", role: "group", "aria-label": "the word that looks"}), verdict = make("p", {class: "verdict", role: "status"});
  const query = make("div"), rows = make("div"), sum = make("div"), detail = make("div");
  const heads = picture(9, 30, Math.min(room(), 540), "how much each head looks at the key word: columns are layers, rows are heads");
  const headNote = make("p", {class: "note"});
  controls(box, sentence);
  box.append(make("p", {class: "note"}, "the word that looks:"), words);
  controls(box, layer, head);
  box.append(verdict, query, rows, sum, detail, headNote, heads.element);
  heads.element.style.cursor = "pointer";
  heads.element.addEventListener("click", event => {
    const frame = heads.element.getBoundingClientRect();
    layer.set(1 + Math.floor((event.clientX - frame.left) / frame.width * 30));
    head.set(1 + Math.floor((event.clientY - frame.top) / frame.height * 9));
  });
  let token = 0, key = 0, result = [];
  const now = () => data.sentences[sentence.value];
  function row(array, at, h, t) {
    const [, many, count, width] = array.shape, first = ((at * many + h) * count + t) * width;
    return array.subarray(first, first + width);
  }
  const shares = (s, at, h, t) => softmax(s.tokens.slice(0, t + 1).map((_, i) => dot(row(s.q, at, h, t), row(s.k, at, Math.floor(h / group), i)) / 8));
  const dot = (a, b) => a.reduce((total, value, i) => total + value * b[i], 0);
  function fresh() {
    const s = now();
    token = s.token;
    const first = shares(s, s.layer, s.head, token);
    key = first.indexOf(Math.max(...first));
    layer.set(s.layer + 1);
    head.set(s.head + 1);
  }
  function update() {
    const s = now(), at = layer.value - 1, h = head.value - 1, k = Math.floor(h / group), n = s.tokens.length;
    if (token >= n) token = n - 1;
    if (key > token) key = token;
    words.replaceChildren(...s.tokens.map((name, i) => button(name, () => { token = i; update(); }, {class: "token", "aria-pressed": i === token})));
    const q = row(s.q, at, h, token), keys = s.tokens.map((_, i) => row(s.k, at, k, i)), values = s.tokens.map((_, i) => row(s.v, at, k, i));
    const scores = keys.map(one => dot(q, one) / 8), weights = softmax(scores.slice(0, token + 1));
    const answer = Array.from(q, (_, i) => weights.reduce((total, weight, j) => total + weight * values[j][i], 0));
    const limits = [most(q), Math.max(...keys.map(most)), Math.max(...values.map(most))];
    const best = weights.indexOf(Math.max(...weights));
    verdict.replaceChildren("“", s.tokens[token], "” looks most at “", make("strong", {}, s.tokens[best]), `”: ${percent(weights[best])}`);
    query.replaceChildren(make("p", {class: "note"}, `its query, 64 numbers: ${Array.from(q.subarray(0, 5), v => fixed(v, 2)).join(", ")} …`), strip(q, limits[0], "query"));
    const head5 = ["key word", "its key", "q · k ÷ 8", "share", "", "its value"];
    rows.replaceChildren(make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "keys, products, shares and values"}, make("table", {class: "matrix", style: "width:100%;min-width:34rem"},
      make("thead", {}, make("tr", {}, head5.map(text => text ? make("th", {scope: "col", style: "text-align:left"}, text) : make("td")))),
      make("tbody", {}, s.tokens.map((name, i) => make("tr", {style: i > token ? "opacity:.75" : ""},
        make("td", {style: "text-align:left"}, button(name, () => { key = i; update(); }, {class: "token", "aria-pressed": i === key, disabled: i > token, "aria-label": `multiply with the key of ${name}`})),
        make("td", {style: "width:28%;vertical-align:middle"}, strip(keys[i], limits[1], `key of ${name}`)),
        make("td", {}, i > token ? `${fixed(scores[i], 2)} → −∞` : fixed(scores[i], 2)),
        make("td", {}, i > token ? "0 %" : percent(weights[i])),
        make("td", {style: "width:16%;vertical-align:middle"}, make("span", {style: `display:block;height:.8rem;width:${i > token ? 0 : 100 * weights[i]}%;background:var(--blue)`})),
        make("td", {style: "width:28%;vertical-align:middle"}, strip(values[i], limits[2], `value of ${name}`))))))));
    sum.replaceChildren(make("p", {class: "note"}, `the answer, all values times their shares: ${answer.slice(0, 5).map(v => fixed(v, 2)).join(", ")} …`), strip(answer, limits[2], "answer"));
    const products = Array.from(q, (value, i) => value * keys[key][i]);
    detail.replaceChildren(make("h3", {}, `Query of “${s.tokens[token]}” times key of “${s.tokens[key]}”, number by number`),
      make("p", {class: "note"}, `${Array.from({length: 4}, (_, i) => `${fixed(q[i], 2)} × ${fixed(keys[key][i], 2)}`).join(" + ")} + … = ${fixed(scores[key] * 8, 2)}; ÷ 8 = ${fixed(scores[key], 2)}`),
      strip(products, most(products), "products"));
    const map = new Float32Array(270);
    for (let l = 0; l < 30; l++) for (let one = 0; one < 9; one++) map[30 * one + l] = shares(s, l, one, token)[key];
    heads.paint(map, 1);
    headNote.textContent = `All 270 heads: how much “${s.tokens[token]}” looks at “${s.tokens[key]}”. Columns are layers 1 … 30, rows are heads; click one to go there.`;
    result = [...s.tokens.map((_, i) => i > token ? 0 : weights[i]), ...answer];
  }
  fresh();
  return move => {
    sentence.set(move.sentence);
    layer.set(move.layer + 1);
    head.set(move.head + 1);
    words.children[move.token].click();
    return result;
  };
};
