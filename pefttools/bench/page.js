// what all pages share: their data, elements, and charts. Vega draws the charts from specifications that Python wrote;
// the page sets their colours and what they emphasise. A page's own script follows, and may define `choose`
const content = JSON.parse(document.getElementById("data").textContent);
const { charts } = content;
const $ = (id) => document.getElementById(id);
const SYMBOLS = { circle: "●", square: "■", "triangle-up": "▲", diamond: "◆" };
const views = {};
const INK = ["ink", "quiet", "line", "soft", "paper"];

function drawChart(place, spec, signals) {
  if (views[place]?.spec !== spec) {
    views[place]?.embedded.then((chart) => chart.finalize());
    delete views[place];
    $(place).replaceChildren();
    if (!spec) return;
    const made = element("div");
    $(place).append(made);
    const embedded = vegaEmbed(made, spec, { mode: "vega", renderer: "svg", actions: false, defaultStyle: false, tooltip: showTip });
    if (spec.signals?.some(({ name }) => name === "hovered")) embedded.then(({ view }) => {
      view.addEventListener("click", (_, item) => methodOf(item) && choose(methodOf(item)));
      view.addEventListener("mouseover", (_, item) => view.signal("hovered", methodOf(item)).runAsync());
      view.addEventListener("mouseout", () => view.signal("hovered", null).runAsync());
    });
    views[place] = { spec, embedded };
  }
  views[place]?.embedded.then(({ view }) => {
    for (const [name, value] of Object.entries(signals)) view.signal(name, value);
    view.runAsync();
  });
}

function methodOf(item) {
  let datum = item?.datum;
  while (datum?.datum) datum = datum.datum; // a label's datum is its point
  return datum?.method ?? null;
}

function showTip(_, event, __, value) {
  $("tip").hidden = !value;
  if (!value) return;
  const { method, trial, ...rest } = value;
  $("tip").textContent = [method ?? trial, ...Object.entries(rest).map((pair) => pair.join(" "))].join("\n");
  $("tip").style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - $("tip").offsetWidth - 8))}px`;
  $("tip").style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - $("tip").offsetHeight - 8))}px`;
}

// the colours of the style sheet, which follow dark mode, as signals of the charts
function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(INK.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function symbol(method) {
  const { colour, shape } = charts.marks[method] ?? { colour: "currentColor", shape: "circle" };
  return element("span", { class: "symbol", style: `color:${colour}`, "aria-hidden": "true" }, SYMBOLS[shape]);
}
