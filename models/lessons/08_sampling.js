"use strict";

widgets.sampling = (box, data) => {
  const size = data.logits.shape[1], next = random(7);
  const prompt = choice("text", data.prompts, 0, update), temperature = slider("temperature", 0.1, 2.5, 0.1, 1, update, value => fixed(value, 1));
  const likely = bars("likeliest next tokens"), drawn = make("p", {role: "status"}), verdict = make("p", {class: "verdict"}), written = make("div");
  controls(box, prompt, temperature);
  box.append(verdict, likely.element);
  controls(box, button("Draw a hundred times", draw100));
  box.append(drawn, written);
  let chances = [], result = [];
  function update() {
    const at = prompt.value, row = data.logits.subarray(at * size, (at + 1) * size), t = temperature.value;
    chances = softmax(Array.from(row, value => value / t));
    result = data.order[at].slice(0, 8).map(id => chances[id]);
    likely.set(result.map((chance, i) => [data.names[at][i], chance, percent(chance)]), 1);
    const entropy = chances.reduce((sum, p) => p > 0 ? sum - p * Math.log(p) : sum, 0);
    verdict.replaceChildren("As uncertain as a choice among ", make("strong", {}, shown(Number(Math.exp(entropy).toPrecision(3)))), " equally likely words.");
    drawn.textContent = "";
    written.replaceChildren(make("h3", {}, "What the model wrote"), ...data.temperatures.map((warmth, i) =>
      make("p", {}, make("strong", {}, `at ${warmth}: `), data.prompts[at], make("em", {}, data.continued[at][i]))));
  }
  function draw100() {
    const at = prompt.value, counts = new Map();
    for (let i = 0; i < 100; i++) {
      let left = next(), id = 0;
      while (id < size - 1 && (left -= chances[id]) > 0) id++;
      const place = data.order[at].indexOf(id), name = place < 0 ? "(a rare one)" : data.names[at][place];
      counts.set(name, (counts.get(name) || 0) + 1);
    }
    drawn.textContent = `Drawn: ${[...counts].sort((a, b) => b[1] - a[1]).map(([name, n]) => `${name} ${n}×`).join(", ")}`;
  }
  update();
  return move => { prompt.set(move.prompt); temperature.set(move.temperature); draw100(); return result; };
};
