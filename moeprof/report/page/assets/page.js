"use strict";
// Starts the page: theme, charts, sortable tables, printing.

const drawings = { curves: makeCurves, cells: makeCells, tiers: makeTiers };
const printWidth = 660; // pixels of a chart on an A4 sheet

function themeInForce() {
  const chosen = document.documentElement.dataset.theme;
  return chosen || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function startTheme(redraw) {
  const button = document.getElementById("theme");
  const name = () => { button.textContent = themeInForce() === "dark" ? "Light page" : "Dark page"; };
  button.onclick = () => {
    document.documentElement.dataset.theme = themeInForce() === "dark" ? "light" : "dark";
    name();
    redraw();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { name(); redraw(); });
  name();
  button.hidden = false;
}

function startCharts() {
  const data = JSON.parse(document.getElementById("charts").textContent);
  return [...document.querySelectorAll("[data-chart]")].map((host) => {
    const one = data[host.dataset.chart];
    host.replaceChildren();
    const drawn = drawings[one.kind](host, one);
    drawn.draw();
    let width = host.clientWidth;
    new ResizeObserver(() => {
      if (host.clientWidth === width) return;
      width = host.clientWidth;
      drawn.resize();
    }).observe(host);
    return drawn;
  });
}

function startTables() {
  for (const table of document.querySelectorAll("[data-sortable]")) {
    table.querySelectorAll("thead th").forEach((heading, column) => {
      heading.replaceChildren(make("button", { type: "button", onclick: () => sortTable(table, heading, column) }, heading.textContent));
    });
  }
}

/** Marks each table with the sides on which it goes on beyond what is seen. */
function startScrolling() {
  for (const scroll of document.querySelectorAll(".scroll")) {
    const mark = () => {
      const rest = scroll.scrollWidth - scroll.clientWidth - scroll.scrollLeft;
      const sides = [scroll.scrollLeft > 1 ? "start" : "", rest > 1 ? "end" : ""];
      scroll.parentElement.dataset.more = sides.join(" ").trim();
    };
    scroll.addEventListener("scroll", mark, { passive: true });
    const observer = new ResizeObserver(mark);
    observer.observe(scroll);
    observer.observe(scroll.firstElementChild);
  }
}

function sortTable(table, heading, column) {
  const isAscending = heading.getAttribute("aria-sort") === "descending";
  for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
  const value = (row) => row.children[column].dataset.value;
  const rows = [...table.tBodies[0].rows];
  const compare = (a, b) => (isNaN(a) || isNaN(b) ? String(a).localeCompare(String(b), "en", { numeric: true }) : a - b);
  rows.sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return isAscending ? compare(a, b) : compare(b, a);
  });
  table.tBodies[0].append(...rows);
}

/** On paper the page is light, its tables are open, and its charts as wide as the sheet. */
function startPrinting(charts) {
  let before;
  addEventListener("beforeprint", () => {
    const folded = [...document.querySelectorAll("main details:not([open])")];
    before = { theme: document.documentElement.dataset.theme, folded };
    document.documentElement.dataset.theme = "light";
    for (const one of folded) one.open = true;
    for (const chart of charts) {
      chart.resize({ width: (printWidth - 16 * (chart.perRow - 1)) / chart.perRow });
      chart.draw();
    }
  });
  addEventListener("afterprint", () => {
    if (before.theme) document.documentElement.dataset.theme = before.theme;
    else delete document.documentElement.dataset.theme;
    for (const one of before.folded) one.open = false;
    for (const chart of charts) { chart.resize({ width: "auto" }); chart.draw(); }
  });
}

const charts = startCharts();
startTheme(() => { for (const chart of charts) chart.draw(); });
startTables();
startScrolling();
startPrinting(charts);
