"use strict";
// One page, one state: which view, which class, in which order, which card, and the marks by pair.
const DATA = JSON.parse(document.getElementById("data").textContent);
const WORDS = ["same", "different", "duplicate", "skip"];
const KEYS = { s: "same", d: "different", u: "duplicate", x: "skip" };
const state = { tab: "", kind: null, sort: "", at: -1, cards: [] };
const marks = new Map(DATA.marks.map(([pair, word]) => [pair, word]));
const $ = (id) => document.getElementById(id);

function el(name, options = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "text") node.textContent = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

// Names are other people's: what does not print is shown as its number, as on the console.
function shown(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu, (one) => `\\u{${one.codePointAt(0).toString(16)}}`);
}

// The address of an image; bytes of a name that are no UTF-8 came as U+DC80 to U+DCFF.
function address(row) {
  const one = (text) => Array.from(text, (c) => {
    const code = c.codePointAt(0);
    return code >= 0xdc80 && code <= 0xdcff ? "%" + (code & 255).toString(16) : encodeURIComponent(c);
  }).join("");
  return DATA.root + DATA.paths[row].split("/").map(one).join("/");
}

const nameOf = (row) => DATA.classes[DATA.labels[row]];
const number = (value) => (value === null ? "none" : value.toFixed(3));

function shot(row, options = {}) {
  const box = el("button", { class: "shot", type: "button", title: shown(DATA.paths[row]), ...options });
  const cell = DATA.cells[row] ?? -1;
  if (cell >= 0) {
    const columns = DATA.columns, place = cell % (columns * columns);
    box.classList.add(`sheet${Math.floor(cell / (columns * columns))}`);
    box.style.backgroundSize = `${columns * 100}%`;
    const part = (index) => `${(index / (columns - 1)) * 100}%`;
    box.style.backgroundPosition = `${part(place % columns)} ${part(Math.floor(place / columns))}`;
  } else if (DATA.root !== null) { // images of shards are no files
    const picture = el("img", { alt: "", loading: "lazy" });
    picture.addEventListener("error", () => picture.remove());
    picture.src = address(row);
    box.append(picture);
  }
  box.addEventListener("click", () => openFull(row));
  return box;
}

function figure(row, role) {
  const name = shown(nameOf(row)), parts = name.split("/").flatMap((part, place) => (place ? ["/", el("wbr"), part] : [part]));
  return el("figure", {}, shot(row), el("figcaption", {}, el("b", { title: name }, ...parts), el("span", { text: role })));
}

function openFull(row) {
  const box = $("full"), picture = el("img", { alt: shown(DATA.paths[row]) });
  const small = () => shot(row, { style: "width:240px;margin:0 auto 10px" });
  if (DATA.root !== null) {
    picture.addEventListener("error", () => picture.replaceWith(small()), { once: true });
    picture.src = address(row);
  }
  box.replaceChildren(DATA.root === null ? small() : picture, el("b", { text: shown(nameOf(row)) }), el("p", { class: "note", text: shown(DATA.paths[row]) }),
    el("button", { type: "button", text: "Close", onclick: () => box.close() }));
  box.showModal();
}

// ── marks ──────────────────────────────────────────────────────────────────────────────────────────────

const pairOf = (item) => `${item.image},${item.other}`;
const stored = `tercet-marks-${DATA.id}`;

function keep() {
  $("count").textContent = marks.size;
  try {
    localStorage.setItem(stored, JSON.stringify([...marks]));
  } catch {} // a browser may forbid it to pages of files
}

// Several cards may show one pair.
function mark(item, word) {
  const pair = pairOf(item);
  if (!word || marks.get(pair) === word) marks.delete(pair);
  else marks.set(pair, word);
  for (const [other, box] of state.cards) if (pairOf(other) === pair) press(other, box);
  keep();
}

function press(item, box) {
  for (const button of box.querySelectorAll(".marks button")) {
    button.setAttribute("aria-pressed", marks.get(pairOf(item)) === button.dataset.word);
  }
}

// The table that `tercet mine --verdicts` reads.
function table() {
  const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const scores = new Map();
  for (const view of Object.values(DATA.galleries)) {
    for (const item of view.items) if (!scores.has(pairOf(item))) scores.set(pairOf(item), item);
  }
  const lines = ["image,class,other,other_class,score,own_score,verdict"];
  for (const [pair, word] of marks) {
    const [image, other] = pair.split(",").map(Number);
    const item = scores.get(pair) ?? { score: 0, own: 0 };
    const texts = [DATA.paths[image], nameOf(image), DATA.paths[other], nameOf(other)];
    lines.push([...texts.map(quoted), item.score ?? "-inf", item.own ?? "-inf", quoted(word)].join(","));
  }
  return lines.join("\n") + "\n";
}

function exportMarks() {
  const link = el("a", { download: "verdicts.csv" });
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ── galleries ──────────────────────────────────────────────────────────────────────────────────────────

const ORDERS = {
  "as listed": () => 0,
  "nearest first": (a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity),
  "farthest first": (a, b) => (a.score ?? -Infinity) - (b.score ?? -Infinity),
  "by class": (a, b) => DATA.labels[a.image] - DATA.labels[b.image],
  "marked first": (a, b) => marks.has(pairOf(b)) - marks.has(pairOf(a)),
};

function card(item, view) {
  const pictures = view.roles.map((role, place) => {
    const row = [item.image, place === 1 && view.roles.length === 3 ? item.positive : item.other, item.other][place];
    const score = place === 0 ? null : place === 1 && view.roles.length === 3 ? item.own : item.score;
    return figure(row, place ? `${role} ${number(score)}` : role);
  });
  const buttons = Object.entries(KEYS).map(([key, word]) =>
    el("button", { type: "button", class: word, title: `${word} (${key})`, "data-word": word, text: word, onclick: () => mark(item, word) }));
  const box = el("article", { class: "card" }, el("div", { class: "row" }, ...pictures));
  if (item.reason) box.append(el("p", { class: "why" }, el("b", { text: `${item.kind}: ` }), shown(item.reason)));
  box.append(el("div", { class: "marks" }, ...buttons));
  press(item, box);
  box.addEventListener("pointerdown", () => select(state.cards.findIndex(([, other]) => other === box), false));
  return box;
}

function select(at, scroll = true) {
  state.cards[state.at]?.[1].removeAttribute("aria-current");
  state.at = Math.max(-1, Math.min(at, state.cards.length - 1));
  const chosen = state.cards[state.at]?.[1];
  chosen?.setAttribute("aria-current", "true");
  if (scroll) chosen?.scrollIntoView({ block: "nearest" });
}

function gallery(view) {
  const rows = (item) => (item.positive === undefined ? [item.image, item.other] : [item.image, item.positive, item.other]);
  let items = view.items.filter((item) => state.kind === null || rows(item).some((row) => DATA.labels[row] === state.kind));
  items = items.slice().sort(ORDERS[state.sort] ?? ORDERS["as listed"]);
  state.cards = items.map((item) => [item, card(item, view)]);
  state.at = -1;
  const nodes = [el("p", { class: "note", text: view.note })];
  nodes.push(items.length ? el("div", { class: view.roles.length === 3 ? "grid three" : "grid" }, ...state.cards.map(([, box]) => box))
    : el("p", { class: "empty", text: state.kind === null ? "Nothing to show." : "Nothing of this class." }));
  return nodes;
}
