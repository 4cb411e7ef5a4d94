"use strict";

widgets.stages = (box, data) => {
  const names = ["1 · forward pass", "2 · loss", "3 · backward pass", "4 · update"];
  const iteration = steps("iteration", data.records.map(record => record.step), 0, update);
  const switches = names.map((name, i) => button(name, () => { stage = i; update(); }));
  const body = make("div", {role: "status"});
  let stage = 0, result = [];
  controls(box, iteration);
  controls(box, ...switches, button("Next →", () => {
    stage = (stage + 1) % 4;
    if (!stage && iteration.place < data.records.length - 1) iteration.set(data.records[iteration.place + 1].step);
    update();
  }));
  box.append(body);
  function update() {
    const record = data.records[iteration.place], time = make("p", {class: "note"}, `This stage took ${record.milliseconds[stage].toFixed(2)} ms, for all examples together.`);
    switches.forEach((one, i) => one.setAttribute("aria-pressed", i === stage));
    const losses = [-Math.log(record.on), -Math.log(record.purple)];
    const after = Array.from(record.before, (value, i) => value - data.rate * record.gradient[i]);
    const numbers = values => Array.from(values).slice(0, 5).map(v => fixed(v, 4)).join(", ");
    const limit = Math.max(most(record.before), most(after));
    const parts = [
      () => {
        const chances = bars("probability of the next word");
        chances.set(record.words.map((word, i) => [word, record.chances[i], percent(record.chances[i]), word === "on" ? "green" : "blue"]), 1);
        return [make("p", {}, "“Cat sat” goes in. What the model expects next:"), chances.element];
      },
      () => [make("p", {class: "verdict"}, "The text says “on”: loss −log ", shown(record.on), " = ", make("strong", {}, fixed(losses[0], 3))),
        make("p", {}, "Had it said “purple”: −log ", shown(record.purple), " = ", make("strong", {}, fixed(losses[1], 3))),
        make("p", {class: "note"}, `The mean over all examples is ${fixed(record.mean, 3)}.`)],
      () => [make("p", {}, "How the loss would change with each of the 16 numbers of the word “on” (blue: it would grow):"),
        strip(record.gradient, most(record.gradient), "gradient"), make("p", {class: "note"}, numbers(record.gradient), " …")],
      () => [make("p", {}, `New number = old number − ${data.rate} × gradient:`),
        strip(record.before, limit, "before"), make("p", {class: "note"}, "before: ", numbers(record.before), " …"),
        strip(after, limit, "after"), make("p", {class: "note"}, "after: ", numbers(after), " …")],
    ];
    body.replaceChildren(...parts[stage](), time);
    result = [...losses, ...after];
  }
  update();
  return move => { iteration.set(data.records[move.record].step); switches.forEach(one => one.click()); return result; };
};
