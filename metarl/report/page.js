"use strict";
// Tables sort by their headings: numbers as numbers, what is missing last either way.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const difference = Number(x) - Number(y);
        const order = Number.isNaN(difference)
          ? x.localeCompare(y, undefined, { numeric: true }) : difference;
        return ascending ? order : -order;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    });
  });
}
// Tables that are wider than their place say so.
const measure = () => {
  for (const box of document.querySelectorAll(".wide")) {
    box.parentElement.classList.toggle("scrolls", box.scrollWidth > box.clientWidth + 1);
  }
};
measure();
addEventListener("resize", measure);
document.addEventListener("toggle", measure, true);
// On paper everything is open but what is long, which the reader may have opened; and
// videos are pictures.
addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("details:not(.long)")) closed.open = true;
  for (const video of document.querySelectorAll("video")) video.controls = false;
});
addEventListener("afterprint", () => {
  for (const video of document.querySelectorAll("video")) video.controls = true;
});
