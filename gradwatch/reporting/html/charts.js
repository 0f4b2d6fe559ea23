"use strict";
// What the charts have in common: unpacking, heat maps of layers by steps, and lines over the steps.
const ZERO = -999999, NOT_FINITE = 999999, PER_DECADE = 1000; // as in series.py
const PRINTED_WIDTH = 690; // px; an A4 page between its margins
const MOST_DOTS = 400, MOST_LINES = 40; // of findings in a chart
const PINK = "#e6007e", RED = "#d7191c", GREY = "#c9ced6";
const isNarrow = () => innerWidth < 640;
// Plotly reads a little HTML in its texts; a layer's name must not be read so.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/\s/g, " ");
const shortened = (text, most) => (text.length <= most ? text : `${text.slice(0, most / 3)}…${text.slice(text.length - (2 * most) / 3 + 1)}`);
const scientific = (value) => (value === 0 ? "0" : value >= 1e-3 && value < 1e4 ? String(Number(value.toPrecision(3))) : value.toExponential(2));
const shownValue = (whole) =>
  whole === null ? "no value" : whole === ZERO ? "exactly zero" : whole === NOT_FINITE ? "NaN or Inf" : scientific(10 ** (whole / PER_DECADE));

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function explain(chart, colours) {
  const key = document.createElement("p");
  key.className = "key";
  for (const [text, colour] of colours) {
    const square = document.createElement("i");
    square.style.background = colour;
    const part = document.createElement("span");
    part.append(square, text);
    key.append(part);
  }
  chart.nextElementSibling?.matches(".key") && chart.nextElementSibling.remove();
  if (colours.length) chart.after(key);
}

function draw(chart, traces, layout) {
  const base = {
    margin: { l: 10, r: 10, t: 10, b: 36 }, font: { size: 12, color: "#1d2430" }, hoverlabel: { align: "left" },
    paper_bgcolor: "#fff", plot_bgcolor: "#fff", dragmode: isNarrow() ? false : "zoom", showlegend: false,
  };
  const config = { responsive: true, displayModeBar: false, displaylogo: false };
  return Plotly.react(chart, traces, { ...base, ...layout }, config);
}

// Some positions at an even stride, the last one too.
function evenly(count, most) {
  const stride = Math.max(Math.ceil(count / most), 1);
  const places = [];
  for (let place = 0; place < count; place += stride) places.push(place);
  return places;
}

// Rows to label: those with a finding first, then as many others as there is room for.
function labelled(rows, sick, gap) {
  const kept = [];
  const add = (place) => kept.every((other) => Math.abs(other - place) >= gap) && kept.push(place);
  rows.forEach((row, place) => sick.has(row) && add(place));
  rows.forEach((row, place) => add(place));
  return kept.sort((a, b) => a - b);
}

function columnOf(steps, step) {
  let column = 0;
  while (column + 1 < steps.length && steps[column + 1] <= step) column += 1;
  return column;
}

function spanOf(values) {
  let low = Infinity, high = -Infinity;
  for (const row of values) for (const value of row) {
    if (value === null || value === ZERO || value === NOT_FINITE) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return low > high ? [-2, -2] : [low / PER_DECADE, high / PER_DECADE];
}

// A healthy network should look even, so the scale has at least four decades.
function scaleOf(maps) {
  const spans = maps.map((map) => spanOf(map.values));
  const low = Math.min(...spans.map(([first]) => first)), high = Math.max(...spans.map(([, last]) => last));
  const margin = Math.max(4 - (high - low), 0) / 2;
  return { zmin: low - margin, zmax: high + margin, colorscale: "Viridis", zero: "#ffffff" };
}

const AROUND_USUAL = { // of update / weight: 1e-3 is usual
  zmin: -6, zmax: 0, zero: "#111111",
  colorscale: [[0, "#1f3d8a"], [0.25, "#5b8fd0"], [0.5, "#fbfbf7"], [0.75, "#e8775a"], [1, "#8c0d25"]],
};

function powers(low, high) {
  const stride = Math.max(Math.ceil((high - low) / 8), 1);
  const found = [];
  for (let power = Math.ceil(low); power <= high; power += stride) found.push(power);
  return { tickvals: found, ticktext: found.map((power) => `1e${power}`) };
}

function heatMap(chart, run, map, scale, what) {
  const { rows, values } = map;
  const isPlain = (value) => value !== null && value !== ZERO && value !== NOT_FINITE;
  const text = values.map((line, i) => {
    const name = `<b>${plain(run.layers[rows[i]])}</b><br>step `;
    return line.map((value, j) => `${name}${run.steps[j]}<br>${what}: ${shownValue(value)}`);
  });
  const hover = { hoverinfo: "text", text };
  const traces = [{
    type: "heatmap", z: values.map((line) => line.map((value) => (isPlain(value) ? value / PER_DECADE : null))), ...hover,
    zmin: scale.zmin, zmax: scale.zmax, colorscale: scale.colorscale, hoverongaps: false,
    colorbar: {
      ...powers(scale.zmin, scale.zmax), thickness: 12, outlinewidth: 0,
      ...(isNarrow() ? { orientation: "h", y: 1, yanchor: "bottom", len: 1 } : {}),
    },
  }];
  const odd = values.map((line) => line.map((value) => (value === ZERO ? 0 : value === NOT_FINITE ? 1 : null)));
  const has = (wanted) => values.some((line) => line.some((value) => value === wanted));
  if (has(ZERO) || has(NOT_FINITE)) {
    const colorscale = [[0, scale.zero], [0.5, scale.zero], [0.5, PINK], [1, PINK]];
    traces.push({ type: "heatmap", z: odd, ...hover, zmin: 0, zmax: 1, colorscale, showscale: false, hoverongaps: false });
  }
  const sick = new Set(run.findings.flatMap((finding) => finding.rows));
  traces.push(dotsOf(run, rows));
  const height = Math.min(Math.max(rows.length * 16, 200), 620);
  const places = labelled(rows, sick, Math.max((rows.length * 15) / height, 1));
  const label = (row) => {
    const name = plain(isNarrow() ? shortened(run.shortest[row], 26) : shortened(run.short[row], 50));
    return sick.has(row) ? `<span style="color:#b3123f">${name}</span>` : name;
  };
  const across = evenly(run.steps.length, isNarrow() ? 4 : 10);
  explain(chart, [[null, "no value", GREY], [ZERO, "exactly zero", scale.zero], [NOT_FINITE, "NaN or Inf", PINK]]
    .filter(([value]) => has(value)).map(([, name, colour]) => [name, colour]));
  return draw(chart, traces, {
    height: height + (isNarrow() ? 100 : 50), plot_bgcolor: GREY,
    xaxis: {
      range: [-0.5, run.steps.length - 0.5], tickvals: across, ticktext: across.map((i) => String(run.steps[i])),
      title: { text: "optimizer step", standoff: 6 }, zeroline: false, showgrid: false, fixedrange: isNarrow(),
    },
    yaxis: {
      range: [rows.length - 0.5, -0.5], tickvals: places, ticktext: places.map((i) => label(rows[i])),
      automargin: true, zeroline: false, showgrid: false, fixedrange: isNarrow(),
    },
  });
}

function dotsOf(run, rows) {
  const dots = run.findings.flatMap((finding) =>
    finding.rows.filter((row) => rows.includes(row)).map((row) => ({
      x: columnOf(run.steps, finding.step), y: rows.indexOf(row),
      text: `<b>${plain(run.layers[row])}</b><br>${plain(finding.label)}`,
    })),
  ).slice(0, MOST_DOTS);
  return {
    type: "scatter", mode: "markers", name: "findings", hoverinfo: "text", cliponaxis: false,
    x: dots.map((dot) => dot.x), y: dots.map((dot) => dot.y), text: dots.map((dot) => dot.text),
    marker: { size: 9, color: RED, line: { color: "#fff", width: 1.5 } },
  };
}

// Lines over the steps; `lines` is a list of [name, colour, steps, values].
function lineChart(chart, title, lines, findings, { isLog }) {
  const known = lines.flatMap(([, , , values]) => values.filter((value) => typeof value === "number"));
  if (!known.length) return chart.remove();
  const positive = known.filter((value) => value > 0);
  const spread = Math.max(...positive) / Math.min(...positive);
  const log = positive.length === known.length ? isLog || spread > 100 : isLog && positive.length > 0;
  const traces = lines.map(([name, color, steps, values]) => ({
    type: "scatter", mode: values.length < 40 ? "lines+markers" : "lines", name: plain(name), x: steps, marker: { size: 4 },
    y: values.map((value) => (typeof value === "number" && (!log || value > 0) ? value : null)), line: { color, width: 1.6 },
    hovertemplate: `%{y:.3~g}<extra>${plain(name)}</extra>`,
  }));
  const bad = [...new Set(lines.flatMap(([, , steps, values]) => steps.filter((_, i) => values[i] === "inf")))];
  const onTop = (x, y, text, marker) =>
    traces.push({ type: "scatter", mode: "markers", yaxis: "y2", x, y: x.map(() => y), text, hoverinfo: "x+text", marker, showlegend: false });
  if (bad.length) onTop(bad, 0.04, bad.map(() => "NaN or Inf"), { symbol: "x", size: 8, color: PINK });
  const marked = findings.slice(0, MOST_LINES);
  if (marked.length) onTop(marked.map((f) => f.step), 0.97, marked.map((f) => plain(f.label)), { size: 9, color: RED, line: { color: "#fff", width: 1.5 } });
  const line = { color: RED, width: 1, dash: "dot" };
  return draw(chart, traces, {
    height: 270, hovermode: "x unified", margin: { l: 10, r: 14, t: 30, b: 36 }, title: { text: title, x: 0, xanchor: "left", font: { size: 14 } },
    showlegend: lines.length > 1, legend: { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom" },
    shapes: marked.map((f) => ({ type: "line", x0: f.step, x1: f.step, y0: 0, y1: 1, yref: "paper", line })),
    xaxis: { title: { text: "optimizer step", standoff: 6 }, zeroline: false, gridcolor: "#eef1f5", fixedrange: isNarrow() },
    yaxis: {
      type: log ? "log" : "linear", automargin: true, gridcolor: "#eef1f5", zeroline: false, fixedrange: isNarrow(),
      exponentformat: "e", nticks: 6, ...(log && spread > 30 ? { dtick: Math.max(Math.round(Math.log10(spread) / 5), 1) } : {}),
    },
    yaxis2: { range: [0, 1], overlaying: "y", visible: false, fixedrange: true },
  });
}

function fitForPrint() {
  const all = () => document.querySelectorAll(".js-plotly-plot");
  addEventListener("beforeprint", () => all().forEach((chart) => Plotly.relayout(chart, { width: PRINTED_WIDTH })));
  addEventListener("afterprint", () => all().forEach((chart) => Plotly.relayout(chart, { width: null, autosize: true })));
}

// Unpacks library and numbers, and calls `drawAll` with the numbers; says so where the browser cannot.
async function start(drawAll) {
  const note = document.getElementById("no-charts");
  const tell = (text) => { note.textContent = text; note.hidden = false; };
  if (!("DecompressionStream" in window)) {
    return tell("This browser cannot unpack the charts: they need Chrome 80, Firefox 113, Safari 16.4 or newer. All else can be read.");
  }
  const library = document.createElement("script");
  library.textContent = await unpacked("plotly");
  document.head.append(library);
  await drawAll(JSON.parse(await unpacked("data")));
  fitForPrint();
  document.body.dataset.drawn = String(Math.round(performance.now())); // ms since the page was opened
}
