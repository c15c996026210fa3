"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 40rem)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // What a figure takes from the page: colours of text and grid, and smaller text where there is little room.
  function looks() {
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), tickcolor: colour("--line") };
    const found = {
      "font.color": colour("--ink"),
      "font.family": getComputedStyle(document.body).fontFamily,
      "font.size": narrow.matches ? 10 : 12,
      "margin.l": narrow.matches ? 44 : 64,
      "margin.r": narrow.matches ? 6 : 16,
      "hoverlabel.bgcolor": colour("--card"),
      "hoverlabel.bordercolor": colour("--line"),
      "hoverlabel.font.color": colour("--ink"),
      "hoverlabel.align": "left",
    };
    for (const side of ["xaxis", "yaxis"]) {
      for (const [name, value] of Object.entries(axis)) found[`${side}.${name}`] = value;
    }
    return found;
  }

  function nested(flat) {
    const whole = {};
    for (const [path, value] of Object.entries(flat)) {
      const names = path.split(".");
      const last = names.pop();
      let at = whole;
      for (const name of names) at = at[name] ??= {};
      at[last] = value;
    }
    return whole;
  }

  function merged(base, more) {
    const whole = { ...base };
    for (const [name, value] of Object.entries(more)) {
      const both = value instanceof Object && whole[name] instanceof Object;
      whole[name] = both ? merged(whole[name], value) : value;
    }
    return whole;
  }

  const plots = Object.entries(charts).map(([name, figure]) => {
    const element = document.getElementById(name);
    const layout = merged(figure.layout, nested(looks()));
    Plotly.newPlot(element, figure.data, layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: narrow.matches ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
    return element;
  });

  const restyle = () => plots.forEach((element) => Plotly.relayout(element, looks()));
  dark.addEventListener("change", restyle);
  narrow.addEventListener("change", restyle);
  window.addEventListener("beforeprint", () => {
    document.documentElement.dataset.paper = "yes";
    for (const details of document.querySelectorAll("details")) details.open = true;
    for (const element of plots) Plotly.relayout(element, { ...looks(), width: 990, height: 440 });
  });
  window.addEventListener("afterprint", () => {
    delete document.documentElement.dataset.paper;
    for (const element of plots) Plotly.relayout(element, { ...looks(), width: null, height: null, autosize: true });
  });

  // Cells that have a number are sorted by it, others as text; cells without a value stay last.
  function sortBy(head) {
    const table = head.closest("table");
    const body = table.tBodies[0];
    const column = head.cellIndex;
    const rising = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.cells[column];
      if (cell.dataset.none !== undefined) return null;
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    const order = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const compared = typeof a === "number" && typeof b === "number"
        ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
      return rising ? compared : -compared;
    };
    const rows = Array.from(body.rows, (row) => [key(row), row]);
    body.append(...rows.sort((a, b) => order(a[0], b[0])).map(([, row]) => row));
  }

  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => sortBy(button.closest("th")));
  }
  document.documentElement.dataset.drawn = "yes";
})();
