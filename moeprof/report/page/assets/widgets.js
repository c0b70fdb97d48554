"use strict";
// What charts share: elements, controls, numbers in words, colours of the style sheet.

/** An element; children that are texts are never read as HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "onchange") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Buttons of which one is pressed. */
function pressed(name, options, chosen, onChange) {
  const group = make("span", { class: "choice", role: "group", "aria-label": name });
  for (const option of options) {
    const button = make("button", { type: "button", "aria-pressed": String(option === chosen) }, option);
    button.onclick = () => {
      for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
      onChange(option);
    };
    group.append(button);
  }
  return group;
}

/** A list to choose from; `fill` gives it other options and keeps what was chosen if it can. */
function selection(name, options, onChange) {
  const select = make("select", { onchange: () => onChange(select.value) });
  const fill = (names) => {
    const before = select.value;
    select.replaceChildren(...names.map((one) => make("option", { value: one }, one)));
    select.value = names.includes(before) ? before : names[0];
    return select.value;
  };
  fill(options);
  return { element: make("label", {}, name, select), fill };
}

const sizes = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Numbers of a unit as text; the same words as on the rest of the page. */
const units = {
  percent: (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0).replace(/\.0$/, "")} %`,
  count: (value) => Number(value.toPrecision(6)).toLocaleString("en"),
  plain: (value) => String(Number(value.toPrecision(3))),
  rate: (value) => Number(value.toPrecision(3)).toLocaleString("en"),
  bytes: (value) => {
    let step = 0;
    while (value >= 1024 && step < sizes.length - 1) { value /= 1024; step += 1; }
    return `${Number(value.toPrecision(3))} ${sizes[step]}`;
  },
};

/** The colour that the style sheet gives a variable under the theme in force. */
function colour(variable) {
  const probe = make("span", { style: `color: var(--${variable})` });
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** The text beside the pointer. */
function tip(title, rows) {
  const table = make("table");
  for (const row of rows) table.append(make("tr", {}, ...row.map((text) => make("td", {}, text))));
  return make("div", { class: "tip" }, make("b", {}, title), table);
}

function tipStyle() {
  return {
    confine: true,
    backgroundColor: colour("paper"),
    borderColor: colour("rule"),
    textStyle: { color: colour("ink") },
    transitionDuration: 0,
  };
}

function axisStyle() {
  const soft = colour("soft");
  return {
    axisLine: { lineStyle: { color: soft } },
    axisTick: { lineStyle: { color: soft } },
    axisLabel: { color: soft, fontSize: 12 },
    splitLine: { lineStyle: { color: colour("rule") } },
    nameTextStyle: { color: soft, fontSize: 12 },
  };
}
