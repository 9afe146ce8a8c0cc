// ── the map ────────────────────────────────────────────────────────────────────────────────────────────
// Points are written into the pixels of a canvas: 100,000 of them in a few milliseconds, without WebGL. A grid
// of cells, filled by counting sort, finds the point under the pointer.

function decoded(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

function gridOf(x, y, rows) {
  const side = Math.max(1, Math.min(512, Math.round(Math.sqrt(rows.length / 4))));
  const cellOf = (row) => Math.min(side - 1, (y[row] * side) >> 16) * side + Math.min(side - 1, (x[row] * side) >> 16);
  const starts = new Uint32Array(side * side + 1), order = new Uint32Array(rows.length);
  for (const row of rows) starts[cellOf(row) + 1]++;
  for (let i = 0; i < side * side; i++) starts[i + 1] += starts[i];
  const next = starts.slice();
  for (const row of rows) order[next[cellOf(row)]++] = row;
  return { side, starts, order };
}

// The nearest point within `reach` of a place, in units of the map, or −1.
function nearestPoint(grid, x, y, px, py, reach) {
  const to = (v) => Math.max(0, Math.min(grid.side - 1, Math.floor((v * grid.side) / 65536)));
  let best = -1, least = reach * reach;
  for (let r = to(py - reach); r <= to(py + reach); r++) {
    for (let c = to(px - reach); c <= to(px + reach); c++) {
      for (let i = grid.starts[r * grid.side + c]; i < grid.starts[r * grid.side + c + 1]; i++) {
        const row = grid.order[i], far = (x[row] - px) ** 2 + (y[row] - py) ** 2;
        if (far <= least) [best, least] = [row, far];
      }
    }
  }
  return best;
}

// One colour a class, neighbours in the list far apart in hue: packed as the pixel's four bytes.
function palette(count, dark) {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  return Uint32Array.from({ length: count }, (_, kind) => {
    probe.fillStyle = `hsl(${(kind * 137.508) % 360} ${60 + (kind % 3) * 12}% ${dark ? 66 : 44 + (kind % 2) * 8}%)`;
    probe.fillRect(0, 0, 1, 1);
    const [r, g, b] = probe.getImageData(0, 0, 1, 1).data;
    return (255 << 24) | (b << 16) | (g << 8) | r;
  });
}

const mapView = { scale: 0, left: 0, top: 0 };

function drawMap() {
  DATA.map.x ??= decoded(DATA.map.places).filter((_, i) => i % 2 === 0);
  DATA.map.y ??= decoded(DATA.map.places).filter((_, i) => i % 2 === 1);
  const { x, y } = DATA.map, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const all = Uint32Array.from(DATA.map.rows ?? x.keys());
  const chosen = state.kind === null ? all : all.filter((row) => DATA.labels[row] === state.kind);
  const grid = gridOf(x, y, chosen), colours = palette(DATA.classes.length, dark);
  const canvas = el("canvas", { "aria-label": "Map of the embeddings" }), box = el("div", { class: "map" }, canvas);
  const context = canvas.getContext("2d", { willReadFrequently: true }); // in memory, where the pixels are
  const view = mapView;
  let pixels, image, waiting = false;

  const paint = () => {
    waiting = false;
    const { width, height } = canvas;
    const size = Math.max(2, Math.min(12, Math.round(devicePixelRatio * (all.length > 20000 ? 2 : 4) * Math.max(1, (view.scale / view.fit) ** 0.35))));
    // The lines of a disc, from its left to its right, as offsets from its middle.
    const spans = Array.from({ length: size }, (_, line) => {
      const up = line - (size - 1) / 2, half = Math.sqrt(Math.max(0, (size * size) / 4 - up * up));
      const left = Math.round(-half), down = line - (size >> 1);
      return [down * width + left, down * width + Math.max(left + 1, Math.round(half))];
    });
    pixels.fill(0);
    const splat = (rows, colourOf) => {
      for (const row of rows) {
        const px = Math.round((x[row] - view.left) * view.scale), py = Math.round((y[row] - view.top) * view.scale);
        if (px < size || py < size || px + size > width || py + size > height) continue;
        const colour = colourOf(row), at = py * width + px;
        for (const [from, to] of spans) for (let i = at + from; i < at + to; i++) pixels[i] = colour;
      }
    };
    if (state.kind !== null) splat(all, () => (dark ? 0xff3d3833 : 0xffdddee0));
    splat(chosen, (row) => colours[DATA.labels[row]]);
    context.putImageData(image, 0, 0);
  };
  const draw = () => {
    if (!waiting) requestAnimationFrame(paint);
    waiting = true;
  };
  const fit = () => {
    const { width, height } = canvas;
    view.fit = (0.94 * Math.min(width, height)) / 65536;
    view.scale = view.fit;
    view.left = 32768 - width / 2 / view.scale;
    view.top = 32768 - height / 2 / view.scale;
  };
  new ResizeObserver(() => {
    canvas.width = Math.max(1, Math.round(box.clientWidth * devicePixelRatio));
    canvas.height = Math.max(1, Math.round(box.clientHeight * devicePixelRatio));
    image = context.createImageData(canvas.width, canvas.height);
    pixels = new Uint32Array(image.data.buffer);
    fit();
    draw();
  }).observe(box);

  const placeOf = (event) => {
    const at = canvas.getBoundingClientRect();
    return [(event.clientX - at.left) * devicePixelRatio, (event.clientY - at.top) * devicePixelRatio];
  };
  const zoom = (factor, px, py) => {
    const scale = Math.max(view.fit / 2, Math.min(view.fit * 400, view.scale * factor));
    view.left += px / view.scale - px / scale;
    view.top += py / view.scale - py / scale;
    view.scale = scale;
    draw();
  };
  const under = (event) => {
    const [px, py] = placeOf(event);
    return nearestPoint(grid, x, y, px / view.scale + view.left, py / view.scale + view.top, (9 * devicePixelRatio) / view.scale);
  };
  const held = new Map();
  let moved = 0;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(1.0015 ** -event.deltaY, ...placeOf(event));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, placeOf(event));
    moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = held.get(event.pointerId), now = placeOf(event);
    if (!before) return tell(event);
    const other = [...held].find(([id]) => id !== event.pointerId)?.[1];
    if (other) zoom(Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1])), ...other);
    else {
      view.left -= (now[0] - before[0]) / view.scale;
      view.top -= (now[1] - before[1]) / view.scale;
      draw();
    }
    moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
    held.set(event.pointerId, now);
    $("tip").hidden = true;
  });
  canvas.addEventListener("pointerup", (event) => {
    held.delete(event.pointerId);
    const row = moved < 5 ? under(event) : -1;
    if (row >= 0) openFull(row);
  });
  canvas.addEventListener("pointercancel", (event) => held.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => { $("tip").hidden = true; });
  canvas.addEventListener("dblclick", () => { fit(); draw(); });
  let told = -1;
  const tell = (event) => {
    const row = under(event), tip = $("tip");
    tip.hidden = row < 0;
    if (row < 0) return;
    if (row !== told) tip.replaceChildren(figure(row, shown(DATA.paths[row])));
    told = row;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 160)}px`;
    tip.style.top = `${Math.max(6, Math.min(event.clientY + 14, innerHeight - 210))}px`;
  };
  return [el("p", { class: "note", text: DATA.map.note }), box];
}
