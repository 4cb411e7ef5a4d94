"use strict";

widgets.embedding = (box, data) => {
  const {words, kinds, map, vectors} = data, size = vectors.shape[1];
  const vector = i => vectors.subarray(i * size, (i + 1) * size);
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const width = room(), height = Math.round(width * (width < 450 ? 1.2 : 0.75)), reach = [0, 1].map(axis => words.map((_, i) => map[2 * i + axis]));
  const scale = (axis, value, pixels) => 40 + (value - Math.min(...reach[axis])) / (Math.max(...reach[axis]) - Math.min(...reach[axis])) * (pixels - 80);
  const root = draw("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "map of words"});
  const labels = words.map((word, i) => {
    const text = draw("text", {x: scale(0, map[2 * i], width), y: scale(1, map[2 * i + 1], height), "text-anchor": "middle",
      style: `fill:var(--${COLOURS[kinds[i]]});cursor:pointer`, onclick: () => chosen.set(i)}, word);
    root.append(text);
    return text;
  });
  const legend = make("div", {class: "legend"}, data.names.map((name, i) => make("span", {}, make("i", {style: `background:var(--${COLOURS[i]})`}), name)));
  const chosen = choice("word", words, words.indexOf("cat"), look);
  const said = make("p", {}), close = bars("nearest words of the map");
  const terms = ["king", "man", "woman"].map((word, i) => choice(["begin with", "subtract", "add"][i], words, words.indexOf(word), calculate));
  const sums = bars("words nearest to the sum");
  controls(box, chosen);
  box.append(root, legend, said, close.element, make("h3", {}, "Calculate with words"));
  controls(box, ...terms);
  box.append(sums.element);
  let result = [];
  function look() {
    const at = chosen.value, cosines = words.map((_, i) => dot(vector(at), vector(i)));
    const order = words.map((_, i) => i).filter(i => i !== at).sort((a, b) => cosines[b] - cosines[a]).slice(0, 5);
    labels.forEach((label, i) => { label.style.fontWeight = i === at ? 700 : order.includes(i) ? 600 : 400; label.style.fontSize = i === at ? "18px" : order.includes(i) ? "14px" : "11px"; label.style.opacity = i === at || order.includes(i) ? 1 : 0.75; });
    close.set(order.map(i => [words[i], cosines[i], fixed(cosines[i], 2)]), 1);
    said.textContent = `Nearest of all 49,152 tokens: ${data.near[at].map(([name, cosine]) => `“${name}” ${fixed(cosine, 2)}`).join(", ")}. Of the words on the map:`;
    result = cosines;
  }
  function calculate() {
    const [a, b, c] = terms.map(term => vector(term.value));
    const sum = Array.from(a, (value, i) => value - b[i] + c[i]), length = Math.sqrt(dot(sum, sum));
    const cosines = words.map((_, i) => dot(sum, vector(i)) / length);
    const order = words.map((_, i) => i).sort((x, y) => cosines[y] - cosines[x]).slice(0, 6);
    sums.set(order.map(i => [words[i] + (terms.some(term => term.value === i) ? " (given)" : ""), cosines[i], fixed(cosines[i], 2)]), 1);
    result = cosines;
  }
  calculate();
  look();
  return move => {
    if (move.word) chosen.set(words.indexOf(move.word));
    else terms.forEach((term, i) => term.set(words.indexOf(move.sum[i])));
    return result;
  };
};

widgets.places = (box, data) => {
  const [rows, columns] = data.signal.shape;
  const image = picture(rows, columns, Math.min(room(), 480), "64 places, the signal of each as a row", 320);
  const place = slider("place", 0, rows - 1, 1, 5, tell), row = make("div");
  image.element.addEventListener("pointermove", event => {
    const frame = image.element.getBoundingClientRect();
    place.set(Math.floor((event.clientY - frame.top) / frame.height * rows));
  });
  image.paint(data.signal, 1);
  let result = [];
  function tell() {
    result = Array.from(data.signal.subarray(place.value * columns, (place.value + 1) * columns));
    row.replaceChildren(strip(result, 1, `signal of place ${place.value}`), make("p", {class: "note"}, `place ${place.value}: ${result.slice(0, 6).map(v => fixed(v, 3)).join(", ")} …`));
  }
  controls(box, place);
  box.append(row, image.element);
  tell();
  return move => { place.set(move.place); return result; };
};
