// draws the charts of the page of a run or of a comparison, and the legend of the runs; bench/page.js comes before it
let chosen = null;

function choose(method) {
  if (!(method in charts.marks)) return;
  chosen = chosen === method ? null : method;
  draw();
}

function draw() {
  const signals = { ...colours(), chosen, shown: null, intervals: true };
  for (const [place, spec] of Object.entries(charts.specs)) drawChart(place, spec, signals);
  const names = Object.keys(charts.marks);
  for (const legend of document.querySelectorAll(".legend"))
    legend.replaceChildren(...(names.length < 2 ? [] : names).map((name) =>
      element("button", { type: "button", "aria-pressed": name === chosen, onclick: () => choose(name) }, symbol(name), name)));
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
