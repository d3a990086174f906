// the tables of the report, after page.js and before report.js in the same script element
const { summary, examples } = content;
const state = { problem: 0, chosen: null, shown: 50 };
const number = (value, digits = 4) => (value === null || value === undefined ? "" : value.toFixed(digits).replace("-", "−"));
const points = (share) => (share === null || share === undefined ? "" : `${share > 0 ? "+" : ""}${number(100 * share, 2)}`);
const inPoints = (share) => `${number(100 * share, 1)} points`;
const isShare = (p) => (p.before ?? 0) >= 0 && (p.before ?? 0) <= 1;
const whole = (value) => (value === null || value === undefined ? "" : Math.round(value).toLocaleString("en"));
const problem = () => summary.problems[state.problem];
const done = () => problem().methods.filter((row) => "mean" in row);
// the comparison over all sets to which the chosen problem belongs
const pool = () => summary.pools.find((one) => one.sets.includes(problem().name)) ?? summary.pools[0] ?? null;

const forgot = (r) => (r.forgetting ? r.forgetting.after - r.forgetting.before : null);
// name, what sorts it, how it reads (text or an element), whether it is text
const METHOD_COLUMNS = [
  ["method", (r) => r.method, named, true],
  ["tier", (r) => r.tier, (r) => badge(r, problem())],
  ["test", (r) => r.mean, (r) => number(r.mean)],
  ["95% interval", (r) => r.low, (r) => (r.low === null ? "one seed" : `${number(r.low)} – ${number(r.high)}`)],
  ["trained", (r) => r.params.trainable, (r) => whole(r.params.trainable)],
  ["adapter", (r) => r.params.adapter, (r) => whole(r.params.adapter)],
  ["head", (r) => r.params.head, (r) => whole(r.params.head)],
  ["learning rate", (r) => r.learning_rate, (r) => r.learning_rate.toPrecision(2)],
  ["seconds", (r) => r.seconds, (r) => number(r.seconds, 1)],
  ["tokens/s", (r) => r.tokens_per_second, (r) => whole(r.tokens_per_second)],
  ["peak MB", (r) => r.peak_bytes, (r) => whole(r.peak_bytes / 2 ** 20)],
  ["file MB", (r) => r.adapter_bytes, (r) => number(r.adapter_bytes / 2 ** 20, 2)],
  ["merges", (r) => r.merges, (r) => (r.merges ? "yes" : "no")],
  ["moved %", (r) => r.moved, (r) => (r.moved === null ? "" : number(100 * r.moved, 2))],
  ["rank", (r) => r.effective_rank, (r) => number(r.effective_rank, 0)],
  ["forgot", forgot, (r) => number(forgot(r), 3)],
];
const poolColumns = (pool) => [
  ["method", (r) => r.method, named, true],
  ["tier", (r) => r.tier, (r) => badge(r, pool)],
  ["mean", (r) => r.mean, (r) => number(r.mean)],
  ["points from best", (r) => r.gap, (r) => points(r.gap)],
  ["95% interval", (r) => r.gap_low, (r) => (r.gap_low === null ? "the best" : `${points(r.gap_low)} to ${points(r.gap_high)}`)],
  ...pool.sets.map((name) => [name, (r) => r.by_set[name], (r) => number(r.by_set[name])]),
  ["trained", (r) => r.trainable, (r) => whole(r.trainable)],
  ["seconds", (r) => r.seconds, (r) => number(r.seconds, 1)],
  ["peak MB", (r) => r.peak_bytes, (r) => whole(r.peak_bytes / 2 ** 20)],
  ["forgot", (r) => r.forgetting, (r) => number(r.forgetting, 3)],
];
const sorts = { methods: { by: "tier", rising: true }, pool: { by: "mean", rising: false } };

function named(row) {
  return element("span", {}, symbol(row.method), row.method);
}

// a tier is grey where the margin could not have been seen, except for the method that is recommended nevertheless
function badge(row, judged) {
  if (!row.tier) return "";
  const grey = judged.is_coarse && row.method !== judged.recommended;
  return element("span", { class: `tier${grey ? " coarse" : ""}`, style: grey ? null : `background:var(--t${Math.min(row.tier, 5)})` }, `${row.tier}`);
}

function drawTable(id, columns, rows) {
  const sort = sorts[id];
  const sortBy = (name) => {
    sort.rising = sort.by === name ? !sort.rising : ["method", "tier"].includes(name);
    sort.by = name;
    drawTable(id, columns, rows);
  };
  $(id).tHead.replaceChildren(element("tr", {}, ...columns.map(([name, , , text]) =>
    element("th", { class: text ? "text" : null, "aria-sort": sort.by === name ? (sort.rising ? "ascending" : "descending") : "none" },
      element("button", { type: "button", onclick: () => sortBy(name) }, name)))));
  const key = columns.find(([name]) => name === sort.by)[1];
  const value = (row) => ("mean" in row || sort.by === "method" ? key(row) ?? null : null);
  const sorted = [...rows].sort((a, b) => {
    const [p, q] = [value(a), value(b)];
    if (p === null || q === null) return (p === null) - (q === null);
    return (typeof p === "string" ? p.localeCompare(q) : p - q) * (sort.rising ? 1 : -1);
  });
  $(id).tBodies[0].replaceChildren(...sorted.map((row) => line(row, columns)));
}

function line(row, columns) {
  const chosen = row.method === state.chosen ? "chosen" : "";
  const open = { class: `${chosen} ${row.status ?? ""}`, tabindex: 0, "data-method": row.method, onclick: () => choose(row.method),
    onkeydown: (event) => event.key === "Enter" && choose(row.method) };
  if (!("mean" in row))
    return element("tr", open, element("td", { class: "text" }, named(row)),
      element("td", { class: "text", colspan: columns.length - 1 }, `${row.status}${row.reason ? `: ${row.reason}` : ""}`));
  return element("tr", open, ...columns.map(([, , read, text]) => element("td", { class: text ? "text" : null }, read(row) ?? "")));
}

function drawMethods() {
  $("shown").textContent = `${filtered().length} of ${problem().methods.length}`;
  drawTable("methods", METHOD_COLUMNS, filtered());
}

function filtered() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (row) => `${row.method} ${Object.values(row.labels).join(" ")} tier:${row.tier} ${row.status} ${row.merges ? "merges" : ""}`.toLowerCase();
  return problem().methods.filter((row) => words.every((word) => text(row).includes(word)));
}

function drawDetails() {
  const row = problem().methods.find((r) => r.method === state.chosen);
  $("details").replaceChildren();
  if (!row) return;
  const lines = [element("h3", {}, row.method)];
  if ("mean" in row) {
    lines.push(element("p", {}, `${problem().metric} by seed: ${row.scores.map((s, i) => `${row.seeds[i]}: ${number(s)}`).join(", ")}; validation ${number(row.validation)}`));
    if (row.moved_blocks.length) lines.push(element("p", {}, `‖W−W₀‖ by block, from the lowest: ${row.moved_blocks.map((b) => number(b, 3)).join(", ")}`));
    if (row.forgetting) lines.push(element("p", {}, `loss a token on the retention text: ${number(row.forgetting.before, 3)} before, ${number(row.forgetting.after, 3)} after`));
    else if (row.no_forgetting) lines.push(element("p", {}, `forgetting: ${row.no_forgetting}`));
  }
  if (row.reason) lines.push(element("p", { class: "wrong" }, row.reason));
  lines.push(element("code", {}, (row.commands.length ? row.commands : [row.command]).join("\n")));
  $("details").replaceChildren(...lines);
}

function drawPairs() {
  const pick = $("against").value;
  const heads = ["method", "difference", "95% interval", "p", "p, corrected", "McNemar", "significant"];
  $("pairs").tHead.replaceChildren(element("tr", {}, ...heads.map((h, i) => element("th", { class: i ? null : "text" }, h))));
  const rows = problem().comparisons.filter((c) => c.first === pick || c.second === pick).map((c) => {
    const sign = c.first === pick ? 1 : -1, [low, high] = [sign * c.low, sign * c.high].sort((a, b) => a - b);
    const cells = [number(sign * c.difference), `${number(low)} – ${number(high)}`, c.p.toPrecision(2), c.p_holm.toPrecision(2),
      c.mcnemar === null ? "" : c.mcnemar.toPrecision(2), c.differs ? "yes" : "no"];
    return element("tr", {}, element("td", { class: "text" }, `minus ${sign > 0 ? c.second : c.first}`), ...cells.map((v) => element("td", {}, v)));
  });
  $("pairs").tBodies[0].replaceChildren(...rows);
  $("pairs").closest("section").hidden = !problem().comparisons.length;
}

function drawClasses() {
  const { classes = {} } = examples[problem().name] ?? {};
  const methods = Object.keys(classes).filter((m) => Object.keys(classes[m]).length);
  $("by-class").hidden = !methods.length;
  if (!methods.length) return;
  const score = (table) => table?.f1 ?? table?.["f1-score"] ?? Object.values(table ?? {})[0];
  $("classes").tHead.replaceChildren(element("tr", {}, element("th", { class: "text" }, "class, F1"), ...methods.map((m) => element("th", {}, m))));
  const names = Object.keys(classes[methods[0]]);
  $("classes").tBodies[0].replaceChildren(...names.map((name) =>
    element("tr", {}, element("td", { class: "text" }, name), ...methods.map((m) => element("td", {}, number(score(classes[m][name]), 3))))));
}

function drawRows() {
  const found = examples[problem().name];
  $("by-row").hidden = !found;
  if (!found) return;
  const methods = Object.keys(found.methods), said = (i) => methods.map((m) => found.methods[m][i]);
  const wrong = (i) => said(i).filter((answer) => answer !== found.references[i]).length;
  const kinds = {
    "all rows": () => true,
    "where methods disagree": (i) => new Set(said(i)).size > 1,
    "that all predict wrongly": (i) => wrong(i) === methods.length,
    ...Object.fromEntries(methods.map((m) => [`that ${m} predicts wrongly`, (i) => found.methods[m][i] !== found.references[i]])),
  };
  options($("which"), Object.keys(kinds), "where methods disagree");
  options($("class"), ["any", ...new Set(found.references)].slice(0, 200), "any");
  const of = $("class").value, kept = found.ids.map((_, i) => i).filter((i) => kinds[$("which").value](i) && (of === "any" || found.references[i] === of));
  $("counted").textContent = `${kept.length} of ${found.ids.length} test rows`;
  $("rows").tHead.replaceChildren(element("tr", {}, ...["row", ...(found.texts ? ["text"] : []), "reference", ...methods].map((h, i) => element("th", { class: i < 3 ? "text" : null }, h))));
  $("rows").tBodies[0].replaceChildren(...kept.slice(0, state.shown).map((i) =>
    element("tr", {}, element("td", { class: "text" }, found.ids[i]), found.texts ? element("td", { class: "text long" }, found.texts[i]) : null,
      element("td", { class: "text" }, found.references[i]),
      ...methods.map((m) => element("td", { class: found.methods[m][i] === found.references[i] ? null : "wrong" }, found.methods[m][i])))));
  $("more").hidden = kept.length <= state.shown;
}

function options(select, names, first) {
  if ([...select.options].map((o) => o.value).join("\n") === names.join("\n")) return;
  select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  select.value = names.includes(first) ? first : names[0];
}
