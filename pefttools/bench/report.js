"use strict";
const { summary, examples } = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const state = { problem: 0, sort: "tier", rising: true, cost: "trainable", chosen: null, shown: 50 };
const number = (value, digits = 4) => (value === null || value === undefined ? "" : value.toFixed(digits));
const whole = (value) => (value === null || value === undefined ? "" : Math.round(value).toLocaleString("en"));
const problem = () => summary.problems[state.problem];
const done = () => problem().methods.filter((row) => "mean" in row);
const tierOf = (row) => `var(--t${Math.min(row.tier || 5, 5)})`;

const COSTS = {
  trainable: ["trained parameters", (r) => r.params.trainable, true],
  peak: ["peak memory, MB", (r) => r.peak_bytes / 2 ** 20, false],
  seconds: ["training seconds", (r) => r.seconds, false],
  file: ["adapter file, MB", (r) => r.adapter_bytes / 2 ** 20, true],
};
const forgot = (r) => (r.forgetting ? r.forgetting.after - r.forgetting.before : null);
// name, what sorts it, how it reads, whether it is text
const COLUMNS = [
  ["method", (r) => r.method, (r) => r.method, true],
  ["tier", (r) => r.tier, (r) => r.tier],
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

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function drawn(tag, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

function hovering(node, text) {
  const show = (event) => {
    $("tip").textContent = text;
    $("tip").hidden = false;
    const box = node.getBoundingClientRect();
    const x = event.clientX ?? box.right, y = event.clientY ?? box.top;
    $("tip").style.left = `${Math.max(4, Math.min(x + 14, innerWidth - $("tip").offsetWidth - 8))}px`;
    $("tip").style.top = `${Math.max(4, Math.min(y + 14, innerHeight - $("tip").offsetHeight - 8))}px`;
  };
  node.setAttribute("tabindex", "0");
  for (const name of ["mouseenter", "mousemove", "focus"]) node.addEventListener(name, show);
  for (const name of ["mouseleave", "blur"]) node.addEventListener(name, () => ($("tip").hidden = true));
}

function told(row) {
  const cost = `${whole(row.params.trainable)} trained, ${number(row.seconds, 1)} s, ${whole(row.peak_bytes / 2 ** 20)} MB`;
  const range = row.low === null ? "one seed" : `95% ${number(row.low)} to ${number(row.high)}, ${row.scores.length} seeds`;
  return `${row.method}\n${problem().metric} ${number(row.mean)} (${range})\n${cost}${row.tier ? `\ntier ${row.tier}` : ""}`;
}

// a picture with axes: places of points, ticks, titles
function picture(place, xs, ys, titles, logarithmic) {
  const small = innerWidth < 640, width = 1000, height = small ? 760 : 430;
  const edge = small ? { left: 110, right: 130, top: 20, bottom: 84 } : { left: 64, right: 150, top: 14, bottom: 46 };
  const scaled = (v) => (logarithmic ? Math.log10(Math.max(v, 1e-12)) : v);
  const ends = (values) => {
    const low = Math.min(...values), high = Math.max(...values), margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low - margin, high + margin];
  };
  const [x0, x1] = ends(xs.map(scaled)), [y0, y1] = ends(ys);
  const x = (v) => edge.left + ((scaled(v) - x0) / (x1 - x0)) * (width - edge.left - edge.right);
  const y = (v) => height - edge.bottom - ((v - y0) / (y1 - y0)) * (height - edge.top - edge.bottom);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": titles.join(" against ") });
  for (const v of ticks(y0, y1, 6)) {
    svg.append(drawn("line", { class: "axis", x1: edge.left, x2: width - edge.right, y1: y(v), y2: y(v) }));
    svg.append(drawn("text", { class: "quiet", x: edge.left - 8, y: y(v) + 5, "text-anchor": "end" }, short(v)));
  }
  for (const t of logarithmic ? decades(x0, x1) : ticks(x0, x1, small ? 4 : 8)) {
    const v = logarithmic ? 10 ** t : t;
    svg.append(drawn("line", { class: "axis", x1: x(v), x2: x(v), y1: edge.top, y2: height - edge.bottom }));
    svg.append(drawn("text", { class: "quiet", x: x(v), y: height - edge.bottom + (small ? 30 : 18), "text-anchor": "middle" }, short(v)));
  }
  svg.append(drawn("text", { x: (width - edge.right + edge.left) / 2, y: height - 8, "text-anchor": "middle" }, titles[0]));
  svg.append(drawn("text", { x: edge.left, y: edge.top + 4, dx: 6, dy: small ? 14 : 6 }, titles[1]));
  place.replaceChildren(svg);
  const clip = (v) => Math.max(edge.top, Math.min(height - edge.bottom, y(v)));
  return { svg, x, y, clip };
}

function ticks(low, high, about) {
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= raw);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + 1e-12; v += step) found.push(Math.abs(v) < 1e-12 ? 0 : v);
  return found;
}

function decades(low, high) {
  const found = [];
  for (let d = Math.ceil(low); d <= high; d++) found.push(d);
  return found.length > 1 ? found : ticks(low, high, 4);
}

function short(v) {
  const size = Math.abs(v);
  if (size >= 1e6) return `${+(v / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(v / 1e3).toPrecision(3)}k`;
  return size && size < 1e-3 ? v.toExponential(0) : `${+v.toPrecision(4)}`;
}

function drawPareto() {
  const rows = done(), [title, cost, logarithmic] = COSTS[state.cost], lower = problem().lower_is_better;
  if (!rows.length) return $("pareto").replaceChildren("nothing has finished yet");
  const { svg, x, y, clip } = picture($("pareto"), rows.map(cost), rows.map((r) => r.mean), [title, problem().metric], logarithmic);
  const sign = lower ? -1 : 1, front = [];
  for (const row of [...rows].sort((a, b) => cost(a) - cost(b) || sign * (b.mean - a.mean)))
    if (!front.length || sign * row.mean > sign * front[front.length - 1].mean) front.push(row);
  svg.append(drawn("path", { class: "front", d: front.map((r, i) => `${i ? `H${x(cost(r))}V` : `M${x(cost(r))} `}${y(r.mean)}`).join("") }));
  const shown = new Set(filtered().map((row) => row.method));
  for (const row of rows) {
    const group = drawn("g", { class: `point${shown.has(row.method) ? "" : " faded"}`, "data-method": row.method });
    const [cx, cy] = [x(cost(row)), y(row.mean)];
    if ($("intervals").checked && row.low !== null)
      group.append(drawn("line", { x1: cx, x2: cx, y1: clip(row.low), y2: clip(row.high), style: `stroke:${tierOf(row)}`, "stroke-width": 2 }));
    const size = (row.method === state.chosen ? 9 : 6) * (innerWidth < 640 ? 1.8 : 1);
    group.append(drawn("circle", { cx, cy, r: size, style: `fill:${tierOf(row)}` }));
    group.append(drawn("text", { x: cx + size + 3, y: cy - 5 }, row.method));
    hovering(group, told(row));
    group.addEventListener("click", () => choose(row.method));
    svg.append(group);
  }
}

function drawRates() {
  const rows = problem().methods.map((row) => [row, row.curve.filter((p) => p.score !== null)]).filter(([, points]) => points.length);
  $("rates").closest("section").hidden = !rows.length;
  if (!rows.length) return;
  const all = rows.flatMap(([, points]) => points);
  const { svg, x, y } = picture($("rates"), all.map((p) => p.learning_rate), all.map((p) => p.score), ["learning rate", problem().metric], true);
  const shown = new Set(filtered().map((row) => row.method));
  for (const [row, points] of rows) {
    const group = drawn("g", { class: `point${shown.has(row.method) ? "" : " faded"}` });
    const d = points.map((p, i) => `${i ? "L" : "M"}${x(p.learning_rate)} ${y(p.score)}`).join("");
    group.append(drawn("path", { d, fill: "none", style: `stroke:${tierOf(row)}`, "stroke-width": row.method === state.chosen ? 3.5 : 1.8 }));
    for (const p of points) group.append(drawn("circle", { cx: x(p.learning_rate), cy: y(p.score), r: 4, style: `fill:${tierOf(row)}` }));
    const last = points[points.length - 1];
    group.append(drawn("text", { x: x(last.learning_rate) + 7, y: y(last.score) + 4 }, row.method));
    hovering(group, [row.method, ...points.map((p) => `${p.learning_rate}: ${number(p.score)}`)].join("\n"));
    group.addEventListener("click", () => choose(row.method));
    svg.append(group);
  }
}

function filtered() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (row) => `${row.method} ${Object.values(row.labels).join(" ")} tier:${row.tier} ${row.status} ${row.merges ? "merges" : ""}`.toLowerCase();
  return problem().methods.filter((row) => words.every((word) => text(row).includes(word)));
}

function drawMethods() {
  const heads = COLUMNS.map(([name, , , text]) =>
    element("th", { class: text ? "text" : null, "aria-sort": state.sort === name ? (state.rising ? "ascending" : "descending") : "none" },
      element("button", { type: "button", onclick: () => sortBy(name) }, name)));
  $("methods").tHead.replaceChildren(element("tr", {}, ...heads));
  const [, key] = COLUMNS.find(([name]) => name === state.sort);
  const value = (row) => ("mean" in row || state.sort === "method" ? key(row) : null);
  const rows = filtered().sort((a, b) => {
    const [p, q] = [value(a), value(b)];
    if (p === null || q === null || p === undefined || q === undefined) return (p ?? null) === null ? ((q ?? null) === null ? 0 : 1) : -1;
    return (typeof p === "string" ? p.localeCompare(q) : p - q) * (state.rising ? 1 : -1);
  });
  $("shown").textContent = `${rows.length} of ${problem().methods.length}`;
  $("methods").tBodies[0].replaceChildren(...rows.map(line));
}

function line(row) {
  const chosen = row.method === state.chosen ? "chosen" : "";
  const open = { class: `${chosen} ${row.status}`, tabindex: 0, "data-method": row.method, onclick: () => choose(row.method),
    onkeydown: (event) => event.key === "Enter" && choose(row.method) };
  if (!("mean" in row))
    return element("tr", open, element("td", { class: "text" }, row.method),
      element("td", { class: "text", colspan: COLUMNS.length - 1 }, `${row.status}${row.reason ? `: ${row.reason}` : ""}`));
  return element("tr", open, ...COLUMNS.map(([name, , read, text]) =>
    name === "tier" && row.tier
      ? element("td", {}, element("span", { class: "tier", style: `background:${tierOf(row)}` }, `${row.tier}`))
      : element("td", { class: text ? "text" : null }, `${read(row) ?? ""}`)));
}

function sortBy(name) {
  state.rising = state.sort === name ? !state.rising : ["method", "tier"].includes(name);
  state.sort = name;
  drawMethods();
}

function choose(method) {
  state.chosen = state.chosen === method ? null : method;
  $("against").value = state.chosen ?? $("against").value;
  draw();
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

function drawHead() {
  const { done: finished, all } = summary.trials, p = problem(), h = summary.hardware;
  $("about").textContent = `${summary.description ? `${summary.description}. ` : ""}${finished} of ${all} trials; ` +
    `${summary.learning_rates} learning rates for each method, the best chosen on validation rows, then seeds ${summary.seeds.join(", ")}.` +
    (h.device ? ` ${h.device}, ${h.threads} threads a trial; ${Object.entries(summary.versions).map((v) => v.join(" ")).join(", ")}.` : "");
  $("problems").replaceChildren(...(summary.problems.length < 2 ? [] : summary.problems.map((one, i) =>
    element("button", { type: "button", "aria-pressed": i === state.problem, onclick: () => { state.problem = i; state.chosen = null; state.shown = 50; draw(); } }, one.name))));
  $("verdict").textContent = `${p.verdict}.`;
  const facts = [];
  if (p.rows) facts.push(`${p.metric} on ${p.rows[p.measured_on]} ${p.measured_on} rows`, `${p.rows.train} to train on`);
  for (const name of ["majority", "before"]) if (p[name] !== null) facts.push(`${name} ${number(p[name])}`);
  if (p.smallest_difference !== null) facts.push(`smallest difference that can be detected (with probability 0.8): ${number(p.smallest_difference)}`);
  $("facts").textContent = facts.join(" · ");
}

function draw() {
  drawHead();
  options($("against"), done().map((row) => row.method));
  for (const part of [drawPareto, drawMethods, drawDetails, drawRates, drawPairs, drawClasses, drawRows]) part();
}

$("cost").replaceChildren(...Object.entries(COSTS).map(([key, [title]]) => element("option", { value: key }, title)));
$("cost").addEventListener("change", () => { state.cost = $("cost").value; drawPareto(); });
$("intervals").addEventListener("change", drawPareto);
$("filter").addEventListener("input", () => { drawMethods(); drawPareto(); drawRates(); });
$("against").addEventListener("change", drawPairs);
for (const id of ["which", "class"]) $(id).addEventListener("change", () => { state.shown = 50; drawRows(); });
$("more").addEventListener("click", () => { state.shown += 200; drawRows(); });
addEventListener("resize", () => { drawPareto(); drawRates(); });
draw();
