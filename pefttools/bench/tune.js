// the charts of a search; page.js draws them
function show() {
  for (const [name, spec] of Object.entries(charts)) drawChart(name, spec, colours());
}
show();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
