// Tables that sort by a click on a head and filter by what tells points apart. Ours, and small: the well-kept libraries
// weigh more than all figures together. Without a script the page is whole, and nothing sorts.
"use strict";
const FILTERS = ["model", "tokens", "skew", "dtype", "format", "GPU", "study", "system", "status", "routing"];

// The first number of a cell such as "≈12.5 e" or "+3 to +4 %"; an empty cell, "-" or a word comes last.
function number(text) {
  const found = text.replace(/[≈‼,]/g, "").match(/^\s*[-+]?\d+(\.\d+)?/);
  return found ? parseFloat(found[0]) : NaN;
}

function compare(one, two, sign = 1) {
  const [a, b] = [number(one), number(two)];
  if (isNaN(a) || isNaN(b)) return isNaN(a) && isNaN(b) ? sign * one.localeCompare(two) : isNaN(a) ? 1 : -1;
  return sign * (a - b);
}

const cell = (row, place) => row.cells[place].textContent.trim();

function sortable(table, heads, rows) {
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...[...rows].sort((a, b) => compare(cell(a, place), cell(b, place), down ? -1 : 1)));
    });
  });
}

function filterable(table, heads, rows) {
  const places = heads.map((head, place) => place).filter((place) => FILTERS.includes(heads[place].textContent.trim()));
  const bar = document.createElement("form");
  bar.className = "filters";
  const count = document.createElement("output");
  const selects = [];
  const show = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = selects.some(([select, place]) => select.value && cell(row, place) !== select.value);
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  for (const place of places) {
    const values = [...new Set(rows.map((row) => cell(row, place)))].sort(compare);
    if (values.length < 2) continue;
    const label = document.createElement("label");
    const select = document.createElement("select");
    const name = heads[place].textContent.trim();
    select.name = name;
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    select.addEventListener("change", show);
    label.append(`${name} `, select);
    bar.append(label);
    selects.push([select, place]);
  }
  if (!selects.length) return;
  bar.append(count);
  show();
  table.parentElement.before(bar);
}

for (const table of document.querySelectorAll(".wide table")) {
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 3) continue;
  if (rows.length > 5) filterable(table, heads, rows);
  sortable(table, heads, rows);
}
const contents = document.querySelector("nav details");
if (matchMedia("(max-width: 70rem)").matches) contents.open = false;
contents.addEventListener("click", (event) => {
  if (event.target.tagName === "A" && matchMedia("(max-width: 70rem)").matches) contents.open = false;
});
