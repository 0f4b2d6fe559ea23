"use strict";
// The table of layers: sorted by a click on a head, filtered by what is typed. Works without the charts.
{
  const table = document.getElementById("layer-table");
  const search = document.getElementById("search");
  const count = document.getElementById("count");
  const valueOf = (row, place) => {
    const cell = row.cells[place];
    const order = cell.dataset.order;
    return order === undefined ? cell.textContent : order === "" ? NaN : Number(order);
  };
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  const isEmpty = (value) => value === "" || Number.isNaN(value);
  const sortBy = (head) => {
    const body = table.tBodies[0];
    const isDown = head.getAttribute("aria-sort") === "ascending" || (!head.hasAttribute("aria-sort") && head.matches(".number"));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => [valueOf(row, head.cellIndex), row]);
    rows.sort(([a], [b]) => isEmpty(a) - isEmpty(b) || (isEmpty(a) ? 0 : compare(a, b) * (isDown ? -1 : 1)));
    body.append(...rows.map(([, row]) => row));
  };
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = `${row.cells[0].title} ${row.textContent}`.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${table.tBodies[0].rows.length} layers`;
  };
  if (table) {
    for (const head of table.tHead.rows[0].cells) head.querySelector("button").addEventListener("click", () => sortBy(head));
    search.addEventListener("input", filter);
    filter();
  }
}
// On paper nothing can be opened, so the causes and the parts of the network are printed open.
{
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const each of closed) each.open = true;
  });
  addEventListener("afterprint", () => {
    for (const each of closed) each.open = false;
  });
}
