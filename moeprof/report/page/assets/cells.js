"use strict";
// Maps of layer x expert: how busy each cell is, and which tier holds it.

/** How busy each cell is, relative to the even share of its layer. */
function makeCells(host, data) {
  const state = { phase: data.phases[data.phases.length - 1], order: "by id", domain: "" };
  const named = (phase) => data.maps.filter((one) => one.phase === phase).map((one) => one.domain);
  const controls = [];
  if (data.phases.length > 1) {
    controls.push(pressed("phase", data.phases, state.phase, (phase) => {
      state.phase = phase;
      state.domain = list.fill(named(phase));
      map.draw();
    }));
  }
  const list = selection("text", named(state.phase), (domain) => { state.domain = domain; map.draw(); });
  state.domain = named(state.phase)[0];
  if (new Set(data.maps.map((one) => one.domain)).size > 1) controls.push(list.element);
  controls.push(pressed("order of experts", ["by id", "busiest first"], state.order, (order) => { state.order = order; map.draw(); }));
  const limit = heatLimit(data);
  const map = makeMap(host, data, controls, () => {
    const counts = data.maps.find((one) => one.phase === state.phase && one.domain === state.domain).counts;
    return {
      counts,
      order: state.order,
      value: (row, expert) => heat(counts[row], expert),
      lines: (row, expert) => useLines(data, counts, row, expert, state.phase),
      colours: Array.from({ length: 7 }, (_, step) => colour(`heat-${step}`)),
      range: [-limit, limit],
      beyond: colour("heat-never"),
    };
  });
  host.append(ramp(limit));
  return map;
}

/** Which tier holds each cell. */
function makeTiers(host, data) {
  const state = { order: "by id" };
  const used = [...new Set(data.tiers.flat())].sort();
  const controls = [pressed("order of experts", ["by id", "busiest first"], state.order, (order) => { state.order = order; map.draw(); })];
  const squares = used.map((tier) => make("li", { class: "square" }, make("i", { style: `background: var(--tier-${tier})` }), data.names[tier]));
  host.append(make("ul", { class: "legend" }, ...squares));
  const map = makeMap(host, data, controls, () => ({
    counts: data.counts,
    order: state.order,
    value: (row, expert) => data.tiers[row][expert],
    lines: (row, expert) => useLines(data, data.counts, row, expert, data.phase),
    colours: data.names.map((_, tier) => colour(`tier-${tier}`)),
    range: [0, data.names.length - 1],
    beyond: colour("rule"),
  }));
  return map;
}

/** log2 of a cell's count over the even share of its layer; far below for a cell never chosen. */
function heat(row, expert) {
  const total = row.reduce((sum, count) => sum + count, 0);
  return row[expert] > 0 ? Math.log2((row[expert] * row.length) / total) : -99;
}

/** Where the colours end: the power of two that 99 % of the cells stay below, 4 to 16 times. */
function heatLimit(data) {
  const ratios = data.maps[0].counts.flatMap((row) => row.map((_, expert) => heat(row, expert)));
  ratios.sort((a, b) => a - b);
  return Math.min(4, Math.max(2, Math.ceil(ratios[Math.floor(0.99 * (ratios.length - 1))])));
}

function useLines(data, counts, row, expert, phase) {
  const total = counts[row].reduce((sum, count) => sum + count, 0);
  const own = counts[row][expert];
  const rank = 1 + counts[row].filter((count) => count > own).length;
  const lines = [[`${phase} choices`, own.toLocaleString("en")]];
  if (total > 0) {
    const share = own / total;
    lines.push(["share of the layer", exact("percent", share)], ["times the even share", (share * counts[row].length).toFixed(2)]);
    lines.push(["rank in the layer", `${rank} of ${counts[row].length}`]);
  }
  if (data.tiers) lines.push(["tier", ["vram", "ram", "nvme"][data.tiers[row][expert]]]);
  return lines;
}

function ramp(limit) {
  const steps = Array.from({ length: 7 }, (_, step) => `var(--heat-${step})`).join(", ");
  const labels = [`1/${2 ** limit}`, "", "even share", "", `${2 ** limit} ×`].map((text) => make("span", {}, text));
  const bar = make("span", { class: "bar" }, make("i", { style: `background: linear-gradient(90deg, ${steps})` }), make("span", {}, ...labels));
  const never = make("span", { class: "legend" }, make("span", { class: "square" }, make("i", { style: "background: var(--heat-never)" }), "never chosen"));
  return make("div", { class: "ramp" }, bar, never);
}

/** Pixels of a layer in the whole map. */
function rowHeight(data) {
  return Math.max(7, Math.min(26, 460 / data.layers.length));
}

/** Layers left without a label between two that have one, so that labels of 12 pixels keep apart. */
function labelInterval(data, view) {
  const seen = (view.y[1] - view.y[0]) / 100;
  return Math.ceil((14 * seen) / rowHeight(data)) - 1;
}

/** A zoomable map; `describe` says what to show in it now. */
function makeMap(host, data, controls, describe) {
  const plot = make("div", { class: "plot map" });
  plot.style.height = `${Math.round(rowHeight(data) * data.layers.length + 62)}px`;
  const zoom = zoomButtons((factor) => setZoom(factor));
  host.append(make("div", { class: "controls" }, ...controls, zoom.element), plot);
  host.append(make("p", { class: "hint screen" }, "Zoom with + and −, a double click, a pinch, or Ctrl and the wheel; drag to move."));
  const chart = echarts.init(plot, null, { renderer: "canvas" });
  // The library takes every wheel for itself; without Ctrl it is the page's.
  for (const name of ["wheel", "mousewheel"]) {
    plot.addEventListener(name, (event) => { if (!event.ctrlKey) event.stopPropagation(); }, { capture: true, passive: true });
  }
  let shown = describe();
  let order = [];
  const whole = { x: [0, 100], y: [0, 100] };
  let view = whole;

  function draw() {
    shown = describe();
    order = shown.counts.map((row) => {
      const ids = row.map((_, expert) => expert);
      return shown.order === "by id" ? ids : ids.sort((a, b) => row[b] - row[a] || a - b);
    });
    chart.setOption(mapOption(data, shown, order, view, chart.getWidth()), true);
    setTouch();
  }
  function setZoom(factor, center = [0.5, 0.5]) {
    const next = {};
    for (const [index, name] of ["x", "y"].entries()) {
      const [start, end] = view[name];
      const at = start + (end - start) * center[index];
      const width = Math.min(100, Math.max(5, (end - start) / factor));
      const low = factor === 0 ? 0 : Math.min(100 - width, Math.max(0, at - width * center[index]));
      next[name] = factor === 0 ? [0, 100] : [low, low + width];
    }
    chart.dispatchAction({ type: "dataZoom", batch: [
      { dataZoomId: "x", start: next.x[0], end: next.x[1] },
      { dataZoomId: "y", start: next.y[0], end: next.y[1] },
    ] });
  }
  /** While all of the map is seen, one finger scrolls the page; then it moves the map. */
  function setTouch() {
    const isWhole = [...view.x, ...view.y].every((value, index) => Math.abs(value - [0, 100, 0, 100][index]) < 0.01);
    plot.style.touchAction = isWhole ? "pan-x pan-y" : "none";
    zoom.whole(isWhole);
    chart.setOption({ yAxis: { axisLabel: { interval: labelInterval(data, view) } }, dataZoom: ["x", "y"].map((id) => ({ id, moveOnMouseMove: !isWhole, preventDefaultMouseMove: !isWhole })) });
  }
  chart.on("datazoom", () => {
    const [x, y] = chart.getOption().dataZoom;
    view = { x: [x.start, x.end], y: [y.start, y.end] };
    setTouch();
  });
  chart.getZr().on("dblclick", (event) => {
    if (chart.containPixel("grid", [event.offsetX, event.offsetY])) setZoom(2, [event.offsetX / plot.clientWidth, event.offsetY / plot.clientHeight]);
  });
  return { draw, resize: (size) => { chart.resize(size); draw(); }, perRow: 1, chart };
}

function zoomButtons(onZoom) {
  const button = (text, label, factor) => make("button", { type: "button", "aria-label": label, onclick: () => onZoom(factor) }, text);
  const [closer, wider, all] = [button("+", "zoom in", 2), button("−", "zoom out", 0.5), button("whole map", "show the whole map", 0)];
  return {
    element: make("span", { class: "zoom", role: "group", "aria-label": "zoom" }, closer, wider, all),
    whole: (isWhole) => { wider.disabled = all.disabled = isWhole; },
  };
}

function mapOption(data, shown, order, view, width) {
  const base = axisStyle();
  const cells = order.flatMap((ids, row) => ids.map((expert, column) => [column, row, shown.value(row, expert)]));
  const isSorted = shown.order !== "by id";
  const gap = width / data.experts > 11 ? 1 : 0;
  const axis = { ...base, type: "category", axisTick: { show: false }, axisLine: { show: false }, splitLine: { show: false } };
  const inside = { type: "inside", zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false, minSpan: 5 };
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    grid: { left: 36, right: 4, top: 22, bottom: 34 },
    xAxis: { ...axis, data: order[0].map((_, column) => String(isSorted ? column + 1 : column)), name: isSorted ? "experts of each layer, busiest first" : "expert id", nameLocation: "middle", nameGap: 24 },
    yAxis: { ...axis, inverse: true, data: data.layers.map(String), name: "layer", nameLocation: "start", nameGap: 8, nameTextStyle: { ...base.nameTextStyle, align: "right" }, axisLabel: { ...base.axisLabel, interval: labelInterval(data, view) } },
    tooltip: {
      ...tipStyle(),
      formatter: ({ value: [column, row] }) => {
        const expert = order[row][column];
        return tip(`layer ${data.layers[row]}, expert ${expert}`, shown.lines(row, expert));
      },
    },
    visualMap: { type: "continuous", show: false, dimension: 2, min: shown.range[0], max: shown.range[1], inRange: { color: shown.colours }, outOfRange: { color: shown.colours } },
    dataZoom: [
      { ...inside, id: "x", xAxisIndex: 0, start: view.x[0], end: view.x[1] },
      { ...inside, id: "y", yAxisIndex: 0, start: view.y[0], end: view.y[1] },
    ],
    series: [{
      type: "heatmap",
      data: cells.map((value) => (value[2] < -90 ? { value, visualMap: false, itemStyle: { color: shown.beyond } } : { value: [value[0], value[1], clamp(value[2], shown.range)] })),
      itemStyle: { borderWidth: gap, borderColor: colour("paper") },
      emphasis: { itemStyle: { borderColor: colour("ink"), borderWidth: 1.5 } },
      progressive: 0,
    }],
  };
}

function clamp(value, [low, high]) {
  return Math.min(high, Math.max(low, value));
}
