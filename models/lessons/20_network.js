"use strict";

widgets.network = (box, data) => {
  let exact = null;
  const bandwidth = slider("bandwidth", 7, 12, 0.05, Math.log10(50e9), update, value => `${bytes(10 ** value)}/s`);
  const latency = slider("latency", -6.5, -1.5, 0.05, Math.log10(2e-6), update, value => duration(10 ** value));
  const idle = bars("share of a step in which devices are idle"), table = make("div", {role: "status"});
  controls(box, bandwidth, latency);
  box.append(make("p", {class: "note"}, "idle share of the devices"), idle.element, table);
  let result = [];
  function update() {
    const [speed, wait] = exact || [10 ** bandwidth.value, 10 ** latency.value], n = data.devices, L = data.layers;
    const allReduce = size => 2 * (n - 1) * (wait + size / n / speed);
    const activations = data.tokens * data.dim * data.item, chunk = 2 * activations / n, hop = wait + activations / data.parts / speed;
    const network = [
      allReduce(data.state),
      L * (n * (wait + chunk / speed) + (n - 1) * (wait + 2 * chunk / speed)) + allReduce(data.state),
      4 * L * allReduce(activations),
      2 * (data.parts + n - 1) * hop,
    ];
    const bubble = [0, 0, 0, data.compute[3] * (n - 1) / data.parts];
    result = network.map((time, i) => (time + bubble[i]) / (time + bubble[i] + data.compute[i]));
    idle.set(result.map((share, i) => [data.names[i], share, percent(share), "orange"]), 1);
    table.replaceChildren(make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "times of a step"}, make("table", {},
      make("thead", {}, make("tr", {}, ["", "computing", "pipeline gaps", "network", "step"].map(t => t ? make("th", {scope: "col"}, t) : make("td")))),
      make("tbody", {}, network.map((time, i) => make("tr", {}, make("th", {scope: "row"}, data.names[i]), make("td", {}, duration(data.compute[i])), make("td", {}, bubble[i] ? duration(bubble[i]) : "none"), make("td", {}, duration(time)), make("td", {}, duration(time + bubble[i] + data.compute[i]))))))));
  }
  update();
  return move => {
    bandwidth.set(Math.log10(move.bandwidth)); latency.set(Math.log10(move.latency));
    exact = [move.bandwidth, move.latency]; update();
    exact = null;
    return result;
  };
};
