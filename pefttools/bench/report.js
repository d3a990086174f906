// the head of the report and what its charts show; page.js draws them
function drawCharts() {
  const { costs, rates } = charts.problems[state.problem];
  const shown = $("filter").value.trim() ? filtered().map((row) => row.method) : null;
  const signals = { ...colours(), chosen: state.chosen, shown, intervals: $("intervals").checked };
  $("rates").closest("section").hidden = !rates;
  drawChart("pool-chart", charts.pools[summary.pools.indexOf(pool())], { ...signals, shown: null, intervals: true });
  drawChart("pareto", costs[$("cost").value], signals);
  drawChart("rates", rates, signals);
  if (!views.pareto) $("pareto").textContent = "nothing has finished yet";
  for (const place of ["pareto-legend", "rates-legend"])
    $(place).replaceChildren(...problem().methods.filter((row) => row.curve.length || "mean" in row).map(({ method }) =>
      element("button", { type: "button", "aria-pressed": method === state.chosen, onclick: () => choose(method) }, symbol(method), method)));
}

function choose(method) {
  state.chosen = state.chosen === method ? null : method;
  if (done().some((row) => row.method === state.chosen)) $("against").value = state.chosen;
  draw();
}

function drawHead() {
  const { done: finished, all } = summary.trials, p = problem(), h = summary.hardware;
  $("about").textContent = `${summary.description ? `${summary.description}. ` : ""}${finished} of ${all} trials; ` +
    `${summary.learning_rates} learning rates for each method, the best chosen on validation rows, then seeds ${summary.seeds.join(", ")}.` +
    (h.device ? ` ${h.device}, ${h.threads} threads a trial; ${Object.entries(summary.versions).map((v) => v.join(" ")).join(", ")}.` : "");
  $("problems").replaceChildren(...(summary.problems.length < 2 ? [] : summary.problems.map((one, i) =>
    element("button", { type: "button", "aria-pressed": i === state.problem, onclick: () => { state.problem = i; state.chosen = null; state.shown = 50; draw(); } }, one.name))));
  $("problem").textContent = p.name;
  $("problem").hidden = !p.name;
  $("verdict").textContent = `${p.verdict}.`;
  const facts = [];
  if (p.rows) facts.push(`${p.metric} on ${p.rows[p.measured_on]} ${p.measured_on} rows`, `${p.rows.train} to train on`);
  for (const name of ["majority", "before"]) if (p[name] !== null) facts.push(`${name} ${number(p[name])}`);
  if (p.smallest_difference !== null) facts.push(`smallest difference that can be detected (with probability 0.8): ${isShare(p) ? inPoints(p.smallest_difference) : number(p.smallest_difference)}`);
  $("facts").textContent = facts.join(" · ");
}

function drawPool() {
  const one = pool();
  $("over-sets").hidden = !one;
  if (!one) return;
  $("over-sets-title").textContent = one.name ? `All sets: ${one.name}` : "All sets";
  $("pool-verdict").textContent = `${one.verdict}.`;
  const facts = [`${one.sets.length} sets (${one.metrics.join(", ")})`];
  if (one.smallest_difference !== null)
    facts.push(`smallest difference that can be detected (with probability 0.8): ${inPoints(one.smallest_difference)} for new sets` +
      (one.smallest_on_these === null ? "" : `, ${inPoints(one.smallest_on_these)} on these`));
  facts.push(`margin ${inPoints(one.margin)}`);
  const left = Object.entries(one.left_out).map(([name, reason]) => `${name} ${reason}`);
  if (left.length) facts.push(`left out: ${left.join("; ")}`);
  $("pool-facts").textContent = facts.join(" · ");
  drawTable("pool", poolColumns(one), one.methods);
}

function draw() {
  drawHead();
  options($("against"), done().map((row) => row.method));
  for (const part of [drawPool, drawMethods, drawDetails, drawPairs, drawClasses, drawRows, drawCharts]) part();
}

$("cost").replaceChildren(...Object.entries(charts.costs).map(([key, title]) => element("option", { value: key }, title)));
for (const id of ["cost", "intervals"]) $(id).addEventListener("change", drawCharts);
$("filter").addEventListener("input", () => { drawMethods(); drawCharts(); });
$("against").addEventListener("change", drawPairs);
for (const id of ["which", "class"]) $(id).addEventListener("change", () => { state.shown = 50; drawRows(); });
$("more").addEventListener("click", () => { state.shown += 200; drawRows(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
draw();
