// Plots of the last five minutes, from a figure every two seconds.
(() => {
  "use strict";
  const PERIOD_MS = 2000, MOST = 150;
  const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--accent"), soft = style.getPropertyValue("--soft"), line = style.getPropertyValue("--line");
  const times = [], values = { in_flight: [], waiting: [], tokens: [] }, plots = {};
  let last = null;
  const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { stroke: line } };
  for (const place of document.querySelectorAll("[data-plot]")) {
    const name = place.dataset.plot;
    plots[name] = new uPlot({ width: place.clientWidth, height: 180, legend: { show: false }, cursor: { show: false }, axes: [axis, { ...axis, size: 46 }], scales: { y: { range: (_, __, most) => [0, Math.max(1, most * 1.1)] } }, series: [{}, { stroke: ink, width: 2 }] }, [[], []], place);
    addEventListener("resize", () => plots[name].setSize({ width: place.clientWidth, height: 180 }));
  }
  const look = async () => {
    const reply = await fetch("/console/operator/fleet/figures").catch(() => null); // the page is left meanwhile
    if (!reply?.ok) return;
    const found = await reply.json().catch(() => null), now = Date.now() / 1000;
    if (!found) return;
    const rate = last && now > last.now ? Math.max(0, (found.tokens - last.tokens) / (now - last.now)) : 0;
    last = { now, tokens: found.tokens };
    const figures = { ...found, tokens: rate };
    times.push(now);
    for (const name of Object.keys(values)) values[name].push(figures[name]);
    if (times.length > MOST) [times, ...Object.values(values)].forEach((each) => each.shift());
    for (const [name, plot] of Object.entries(plots)) {
      plot.setData([times, values[name]]);
      document.querySelector(`[data-now=${name}]`).textContent = `now ${Math.round(10 * values[name].at(-1)) / 10}`;
    }
  };
  look();
  setInterval(look, PERIOD_MS);
})();
