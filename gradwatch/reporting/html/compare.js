"use strict";
// The charts of two runs: heat maps side by side on one colour scale, and the lines of both in one chart.
start(async (runs) => {
  const sides = Object.entries(runs); // A, B
  for (const [, run] of sides) if (run.parts) run.findings.push(run.parts);
  const both = async (name, column, scaleOfBoth, what) => {
    const maps = sides.map(([, run]) => run.maps[column]).filter(Boolean);
    if (!maps.length) return document.getElementById(name).remove();
    for (const [side, run] of sides) {
      const chart = document.getElementById(`${name}-${side}`);
      if (run.maps[column]) await heatMap(chart, run, run.maps[column], scaleOfBoth(maps), what);
      else chart.textContent = "no value in this run";
    }
  };
  await both("flow", "grad_norm", scaleOf, "gradient");
  await both("updates", "update_to_weight", () => AROUND_USUAL, "update / weight");
  const marks = sides[0][1].parts ? [sides[0][1].parts] : [];
  const colours = { A: "#22659c", B: "#e08214" };
  const lines = (key, values) => sides.map(([side, run]) => [side, colours[side], run[key].step, run[key][values]]);
  await lineChart(document.getElementById("loss-chart"), "Loss", lines("loss", "loss"), marks, { isLog: false });
  await lineChart(document.getElementById("norm-chart"), "Total gradient norm, before clipping", lines("norm", "before"), marks, { isLog: true });
});
