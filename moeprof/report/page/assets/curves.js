"use strict";
// Line charts with bands: one panel per title, and a choice between the curves of each.

// Width and dashes of each line, so that lines which lie on each other are told apart: wide ones are
// drawn first, and dashes over them.
const strokes = {
  held_out: { width: 3 },
  1: { width: 4 },
  5: { width: 2.6 },
  2: { width: 1.9 },
  floor: { width: 1.4 },
  in_sample: { width: 1.8, dashes: [5, 4] },
  3: { width: 2.2, dashes: [7, 9] },
  6: { width: 2, dashes: [10, 4, 2, 4] },
  4: { width: 2.4, dashes: [2, 5] },
  bound: { width: 1.8, dashes: [5, 4] },
};
const drawnFirst = ["held_out", "1", "5", "2", "floor", "in_sample", "3", "6", "4", "bound"];

/** Draws `data.panels`; returns what redraws them under another theme or size. */
function makeCurves(host, data) {
  const titles = [...new Set(data.panels.map((panel) => panel.title))];
  let chosen = data.choices ? data.choices[0] : undefined;
  const views = titles.map((title) => {
    const plot = make("div", { class: "plot" });
    const heading = make("h3", {}, title, make("small", {}, data.y.name));
    return { title, plot, element: make("div", { class: "panel" }, heading, plot), chart: null };
  });
  if (data.choices && data.choices.length > 1) {
    const list = selection(data.choice, data.choices, (value) => { chosen = value; draw(); });
    host.append(make("div", { class: "controls" }, list.element));
  }
  host.append(legendOf(data), make("div", { class: "panels" }, ...views.map((view) => view.element)));
  for (const view of views) view.chart = echarts.init(view.plot, null, { renderer: "svg" });

  function draw() {
    for (const view of views) {
      const panel = data.panels.find((one) => one.title === view.title && (!data.choices || one.choice === chosen));
      view.element.style.visibility = panel ? "" : "hidden";
      if (panel) view.chart.setOption(curveOption(data, panel), true);
    }
  }
  function resize(size) {
    for (const view of views) view.chart.resize(size);
  }
  return { draw, resize, perRow: titles.length };
}

function legendOf(data) {
  const roles = new Map();
  const fullest = [...data.panels].sort((one, other) => other.lines.length - one.lines.length);
  for (const panel of fullest) for (const line of panel.lines) roles.set(line.name, line.role);
  const entries = [...roles].map(([name, role]) =>
    make("li", {}, make("i", { style: sample(role) }), name));
  return make("ul", { class: "legend" }, ...entries);
}

/** A piece of a line as a style, with its colour, width and dashes. */
function sample(role) {
  const { width, dashes } = strokes[role];
  const ink = `var(--line-${role})`;
  let end = 0;
  const stops = (dashes || [1]).map((length, index) => `${index % 2 ? "transparent" : ink} ${end}px ${(end += length)}px`);
  return `height: ${width}px; background: repeating-linear-gradient(90deg, ${stops.join(", ")})`;
}

function curveOption(data, panel) {
  const series = panel.lines.flatMap((line) => lineSeries(line, panel));
  const mark = panel.mark || data.mark;
  if (mark && series.length) series[series.length - 1].markLine = markLine(mark);
  const base = axisStyle();
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    grid: { left: 4, right: 18, top: 18, bottom: 26, containLabel: true },
    xAxis: { ...base, ...scale(data.x), splitLine: { show: false }, name: data.x.name, nameLocation: "middle", nameGap: 28 },
    yAxis: { ...base, ...scale(data.y) },
    tooltip: {
      ...tipStyle(),
      trigger: "axis",
      axisPointer: { type: "line", lineStyle: { color: colour("soft") }, label: { show: false } },
      formatter: (points) => curveTip(data, panel, points),
    },
    series,
  };
}

function scale(axis) {
  const format = units[axis.unit];
  const shares = axis.unit === "percent" ? { min: 0, max: 1, interval: 0.2 } : {};
  const tight = axis.tight ? { min: "dataMin", max: "dataMax" } : {};
  return { type: axis.log ? "log" : "value", logBase: 2, ...shares, ...tight, axisLabel: { ...axisStyle().axisLabel, formatter: format, hideOverlap: true } };
}

function lineSeries(line, panel) {
  const x = line.x || panel.x;
  const ink = colour(`line-${line.role}`);
  const { width, dashes } = strokes[line.role];
  const own = {
    id: line.name,
    name: line.name,
    type: "line",
    data: x.map((at, index) => [at, line.y[index]]),
    showSymbol: x.length === 1,
    symbol: "circle",
    lineStyle: { color: ink, width, type: dashes || "solid" },
    itemStyle: { color: ink },
    emphasis: { disabled: true },
    z: 3 + drawnFirst.indexOf(line.role),
  };
  const hasBand = line.low && line.low.some((value, index) => value !== null && line.high[index] > value);
  return hasBand ? [...band(line, x, ink), own] : [own];
}

/** The area between two lines: an unseen one, and the difference stacked on it. */
function band(line, x, ink) {
  const shared = { type: "line", stack: `band of ${line.name}`, stackStrategy: "all", symbol: "none", silent: true, lineStyle: { opacity: 0 }, emphasis: { disabled: true }, z: 1 };
  const width = (index) => (line.low[index] === null ? null : line.high[index] - line.low[index]);
  return [
    { ...shared, id: `low of ${line.name}`, data: x.map((at, index) => [at, line.low[index]]) },
    { ...shared, id: `width of ${line.name}`, data: x.map((at, index) => [at, width(index)]), areaStyle: { color: ink, opacity: 0.2 } },
  ];
}

function markLine(mark) {
  return {
    silent: true,
    symbol: "none",
    lineStyle: { color: colour("soft"), type: "dotted", width: 1.2 },
    label: { formatter: mark.name, color: colour("soft"), position: "end", distance: 3, fontSize: 12 },
    data: [{ xAxis: mark.x }],
  };
}

function curveTip(data, panel, points) {
  const rows = [];
  for (const line of panel.lines) {
    const point = points.find((one) => one.seriesId === line.name);
    if (!point || point.value[1] === null) continue;
    const at = point.dataIndex;
    const format = units[data.y.unit];
    const known = line.low && line.low[at] !== null;
    rows.push([line.name, exact(data.y.unit, line.y[at]), known ? `${exact(data.y.unit, line.low[at])} to ${exact(data.y.unit, line.high[at])}` : ""]);
  }
  const x = points.length ? points[0].axisValue : 0;
  return tip(`${units[data.x.unit](x)} · ${data.x.name}`, rows);
}

/** A number as precise as a reader who points at it wants it. */
function exact(unit, value) {
  return unit === "percent" ? `${(100 * value).toFixed(1)} %` : units[unit](value);
}
