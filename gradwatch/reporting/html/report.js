"use strict";
// The charts of one run.
start(async (run) => {
  const names = { grad_norm: "gradient of the parameters", grad_output_norm: "gradient at the output" };
  const select = document.getElementById("flow-column");
  const columns = Object.keys(names).filter((column) => run.maps[column]);
  for (const column of columns) select.add(new Option(names[column], column));
  const flow = document.getElementById("flow-chart");
  const show = () => {
    const map = run.maps[select.value];
    return heatMap(flow, run, map, scaleOf([map]), names[select.value]);
  };
  select.addEventListener("change", show);
  if (columns.length) await show();
  else document.getElementById("flow").remove();
  const updates = run.maps.update_to_weight;
  if (updates) await heatMap(document.getElementById("updates-chart"), run, updates, AROUND_USUAL, "update / weight");
  else document.getElementById("updates").remove();
  const { loss, norm } = run;
  await lineChart(document.getElementById("loss-chart"), "Loss", [["loss", "#22659c", loss.step, loss.loss]], run.findings, { isLog: false });
  const lines = [["before the clip", "#22659c", norm.step, norm.before]];
  if (norm.after.length) lines.push(["after the clip", "#e08214", norm.step, norm.after]);
  await lineChart(document.getElementById("norm-chart"), "Total gradient norm", lines, run.findings, { isLog: true });
});
