// ── tables and charts ──────────────────────────────────────────────────────────────────────────────────

function classButton(kind) {
  return el("button", { type: "button", text: shown(DATA.classes[kind]), onclick: () => choose(kind, Object.keys(DATA.galleries)[0]) });
}

function hardness() {
  const heads = DATA.hardness.heads, rows = DATA.hardness.rows.slice();
  const body = el("tbody");
  let by = heads.length - 1, down = true;
  const fill = () => {
    const order = rows.filter((row) => state.kind === null || row[0] === state.kind);
    order.sort((a, b) => ((b[by] ?? -Infinity) - (a[by] ?? -Infinity)) * (down ? 1 : -1));
    body.replaceChildren(...order.map((row) => el("tr", {}, el("td", {}, classButton(row[0])),
      ...row.slice(1).map((value, place) => el("td", { text: value === null ? "–" : heads[place + 1].share ? `${(100 * value).toFixed(1)} %` : Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(3) })))));
  };
  const head = el("tr", {}, ...heads.map((one, place) => el("th", { title: one.title }, el("button", { type: "button", text: one.name, onclick: () => {
    down = by === place ? !down : place > 0;
    by = place;
    fill();
  } }))));
  fill();
  return [el("p", { class: "note", text: DATA.hardness.note }), el("div", { class: "table" }, el("table", {}, el("thead", {}, head), body))];
}

function confusion() {
  const { cells, kinds, note } = DATA.confusion;
  if (!cells.length) return [el("p", { class: "note", text: note }), el("p", { class: "empty", text: "No image looks most like another class." })];
  const of = new Map(cells.map(([a, b, count]) => [`${a},${b}`, count]));
  const most = Math.max(...cells.map((cell) => cell[2]));
  const head = el("tr", {}, el("th"), ...kinds.map((kind) => el("th", { title: shown(DATA.classes[kind]) }, el("div", { text: shown(DATA.classes[kind]) }))));
  const lines = kinds.map((a) => el("tr", {}, el("th", { text: shown(DATA.classes[a]), title: shown(DATA.classes[a]) }), ...kinds.map((b) => {
    const count = of.get(`${a},${b}`), cell = el("td", { text: count ?? "" });
    const share = count ? Math.round(15 + (75 * count) / most) : 0;
    cell.style.background = a === b ? "var(--line)" : `color-mix(in srgb, var(--neg) ${share}%, var(--well))`;
    if (count) cell.title = `${count} of ${shown(DATA.classes[a])} look like ${shown(DATA.classes[b])}`;
    return cell;
  })));
  return [el("p", { class: "note", text: note }), el("div", { class: "heat" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...lines)))];
}

function svg(name, options = {}) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(options)) node.setAttribute(key, value);
  return node;
}

function histograms() {
  const { positive, negative, note } = DATA.histograms;
  const chart = svg("svg", { viewBox: "0 0 760 300", class: "chart", role: "img", "aria-label": note });
  const top = Math.max(...positive, ...negative), bins = positive.length;
  const first = Math.max(0, Math.min(positive.findIndex((v) => v > 0), negative.findIndex((v) => v > 0)) - 1), width = 720 / (bins - first);
  for (const [values, colour] of [[negative, "var(--neg)"], [positive, "var(--pos)"]]) {
    const points = values.slice(first).flatMap((value, place) => [place, place + 1].map((x) => `${(20 + x * width).toFixed(1)},${(266 - (250 * value) / top).toFixed(1)}`));
    const line = svg("polygon", { points: `20,266 ${points.join(" ")} 740,266` });
    line.style.cssText = `fill:${colour};fill-opacity:.35;stroke:${colour};stroke-width:1.5`;
    chart.append(line);
  }
  const low = -1 + (2 * first) / bins;
  for (let tick = 0; tick <= 4; tick++) {
    const text = svg("text", { x: 20 + 180 * tick, y: 286, "text-anchor": ["start", "middle", "middle", "middle", "end"][tick] });
    text.textContent = (low + ((1 - low) * tick) / 4).toFixed(2);
    chart.append(text);
  }
  const legend = el("div", { class: "legend" }, ...[["--pos", "same class"], ["--neg", "different class"]].map(([colour, text]) => {
    const dot = el("i");
    dot.style.background = `var(${colour})`;
    return el("span", {}, dot, text);
  }));
  return [el("p", { class: "note", text: note }), legend, chart];
}

function filters() {
  const { rows, note } = DATA.filters, most = Math.max(...rows.map((row) => row[1]), 1);
  const total = rows.reduce((sum, row) => sum + row[1], 0) || 1;
  const lines = rows.map(([text, count]) => {
    const meter = el("i", { class: "meter" });
    meter.style.width = `${Math.max(1, (160 * Math.log1p(count)) / Math.log1p(most))}px`;
    return el("tr", {}, el("td", { text }), el("td", { text: count.toLocaleString("en") }), el("td", { text: `${((100 * count) / total).toFixed(3)} %` }), el("td", { class: "text" }, meter));
  });
  return [el("p", { class: "note", text: note }), el("div", { class: "table" }, el("table", {}, el("thead", {}, el("tr", {}, ...["reason", "candidates", "share", "on a log scale"].map((text) => el("th", { text })))), el("tbody", {}, ...lines)))];
}

function provenance() {
  return DATA.provenance.flatMap(([title, rows]) => [el("h2", { text: title }), el("div", { class: "table" }, el("table", {},
    el("tbody", {}, ...rows.map(([name, value]) => el("tr", {}, el("td", { text: shown(name) }), el("td", { class: "text", text: shown(value) }))))))]);
}

// ── the frame ──────────────────────────────────────────────────────────────────────────────────────────

const VIEWS = [
  ...Object.entries(DATA.galleries).map(([id, view]) => ({ id, title: view.title, count: view.items.length, draw: () => gallery(view), cards: true })),
  DATA.map && { id: "map", title: "Map", draw: () => drawMap() },
  DATA.hardness && { id: "classes", title: "Classes", draw: hardness },
  DATA.confusion && { id: "confusion", title: "Confusion", draw: confusion },
  DATA.histograms && { id: "similarities", title: "Similarities", draw: histograms },
  DATA.filters && { id: "filters", title: "Filters", draw: filters },
  { id: "provenance", title: "Provenance", draw: provenance },
].filter(Boolean);

function show(tab) {
  const view = VIEWS.find((one) => one.id === tab) ?? VIEWS[0];
  state.tab = view.id;
  for (const button of $("tabs").children) {
    button.setAttribute("aria-selected", button.dataset.tab === view.id);
    if (button.dataset.tab === view.id) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  state.cards = [];
  state.at = -1;
  $("sorting").hidden = !view.cards;
  $("tip").hidden = true;
  $("view").replaceChildren(...view.draw());
}

function choose(kind, tab = state.tab) {
  state.kind = kind;
  $("class").value = kind === null ? "" : shown(DATA.classes[kind]);
  show(tab);
}

function help() {
  const rows = [["→ ← or j k", "next, previous card"], ["s", "same: both show what one class shows"], ["d", "different: they do not"],
    ["u", "duplicate: they are one picture"], ["x", "skip: leave the first image out"], ["0", "no mark"], ["Enter", "the first image in full"],
    ["1 … 9", "views"], ["e", "export the marks"], ["Esc", "close"]];
  $("keys").replaceChildren(el("table", {}, el("tbody", {}, ...rows.map(([key, text]) => el("tr", {}, el("td", {}, el("kbd", { text: key })), el("td", { text }))))),
    el("button", { type: "button", text: "Close", onclick: () => $("keys").close() }));
  $("keys").showModal();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT)$/.test(event.target.tagName) || document.querySelector("dialog[open]")) return;
  const step = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1 }[event.key];
  const chosen = state.cards[state.at];
  if (step) select(state.at < 0 ? 0 : state.at + step >= 0 ? state.at + step : 0);
  else if (KEYS[event.key] && chosen) mark(chosen[0], KEYS[event.key]);
  else if (event.key === "0" && chosen) mark(chosen[0], null);
  else if (event.key === "Enter" && chosen && event.target.tagName !== "BUTTON") openFull(chosen[0].image);
  else if (event.key === "e") exportMarks();
  else if (event.key === "?") help();
  else if (/^[1-9]$/.test(event.key) && VIEWS[event.key - 1]) show(VIEWS[event.key - 1].id);
  else return;
  event.preventDefault();
});

function start() {
  try {
    for (const [pair, word] of JSON.parse(localStorage.getItem(stored) ?? "[]")) if (WORDS.includes(word)) marks.set(pair, word);
  } catch {}
  $("tabs").append(...VIEWS.map((view) => el("button", { type: "button", role: "tab", "data-tab": view.id, onclick: () => show(view.id) }, view.title,
    ...(view.count === undefined ? [] : [el("small", { text: view.count })]))));
  $("classes").append(...DATA.classes.map((name) => el("option", { value: shown(name) })));
  $("sort").append(...Object.keys(ORDERS).map((name) => el("option", { value: name, text: name })));
  $("sort").addEventListener("change", () => { state.sort = $("sort").value; show(state.tab); });
  $("class").addEventListener("change", () => {
    const kind = DATA.classes.findIndex((name) => shown(name) === $("class").value);
    choose(kind < 0 ? null : kind);
  });
  $("export").addEventListener("click", exportMarks);
  $("help").addEventListener("click", help);
  keep();
  show(VIEWS[0].id);
}
start();
