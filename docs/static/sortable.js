/* A click on a heading of a table with the class "sortable" sorts its rows, a second one turns them. */
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const sort = () => {
        const falls = heading.getAttribute("aria-sort") === "ascending";
        const text = (row) => row.cells[column].textContent.trim();
        const rows = [...body.rows].sort(
          (one, other) => text(one) - text(other) || text(one).localeCompare(text(other))
        );
        body.append(...(falls ? rows.reverse() : rows));
        headings.forEach((each) => each.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", falls ? "descending" : "ascending");
      };
      heading.tabIndex = 0;
      heading.addEventListener("click", sort);
      heading.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    });
  }
});
