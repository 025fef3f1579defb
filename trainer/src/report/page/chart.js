// Curves: what a chart shows is data, every chart is drawn in one way, and one cursor moves through all of them.

// Shapes tell the curves apart where colours do not: path data around 0,0 by the line's number.
const SHAPES = ["M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0", "M-3 -3H3V3H-3Z", "M0 -4L3.8 2.8H-3.8Z", "M0 -4.2L4.2 0L0 4.2L-4.2 0Z", "M0 4L3.8 -2.8H-3.8Z", "M-4 -1.2H-1.2V-4H1.2V-1.2H4V1.2H1.2V4H-1.2V1.2H-4Z"];
const REFERENCE_DASHES = ["7 4", "1.5 4", "9 3 1.5 3"];
const charts = new Map();
let cursor = null;

function setCursor(at) {
  cursor = at;
  for (const chart of charts.values()) chart.point();
}

/** Mean over a window around each point: what the eye should follow through the noise. */
function smooth(values, window) {
  const half = Math.floor(window / 2);
  return values.map((_, i) => mean(values.slice(Math.max(0, i - half), i + half + 1)));
}

const windowOf = (n) => Math.max(1, Math.round(n / 20));
const lastNumber = (values) => values.findLast(isNumber) ?? null;

/**
 * spec: {title, unit, kind, lines: [{key, name}], references: [{value, name}], low, high, hint}. Lines whose key the
 * run does not have are left out.
 */
class Chart {
  constructor(spec) {
    this.at = el("span", { class: "at" });
    this.plot = svg("svg", { class: "plot", tabindex: 0, role: "img" });
    this.legend = el("ul", { class: "legend" });
    this.hint = el("p", { class: "muted" });
    this.title = el("h3");
    this.root = el("figure", {}, el("figcaption", {}, this.title, this.at), this.hint, this.plot, this.legend);
    this.plot.addEventListener("pointermove", (e) => this.hover(e));
    this.plot.addEventListener("pointerdown", (e) => this.hover(e));
    this.plot.addEventListener("pointerleave", () => setCursor(null));
    this.plot.addEventListener("blur", () => setCursor(null));
    this.plot.addEventListener("keydown", (e) => this.key(e));
    new ResizeObserver(() => this.draw()).observe(this.root);
    this.spec = spec;
  }

  show(spec, series) {
    this.spec = spec;
    this.steps = series.steps;
    this.lines = spec.lines.filter((line) => series.columns[line.key]).map((line, i) => ({
      ...line, index: i % 6, values: series.columns[line.key],
    }));
    const window = windowOf(this.steps.length);
    for (const line of this.lines) line.smooth = window > 1 ? smooth(line.values, window) : line.values;
    this.title.textContent = visible(spec.unit ? `${spec.title}, ${spec.unit}` : spec.title);
    this.hint.textContent = spec.hint || "";
    this.hint.hidden = !spec.hint;
    this.draw();
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width || !this.lines) return;
    const height = this.spec.small ? 120 : 190;
    const box = this.box = { left: 46, right: width - 10, top: 8, bottom: height - 32 };
    const { kind } = this.spec;
    const values = this.lines.flatMap((l) => l.values.filter(isNumber));
    const references = (this.spec.references || []).filter((r) => isNumber(r.value));
    const all = values.concat(references.map((r) => r.value));
    let low = Math.min(...(this.spec.low === undefined ? [] : [this.spec.low]), ...all.length ? [least(all)] : [0]);
    let high = Math.max(...(this.spec.high === undefined ? [] : [this.spec.high]), ...all.length ? [most(all)] : [1]);
    const nice = ticks(low, high, this.spec.small ? 2 : 4);
    const gap = nice.length > 1 ? nice[1] - nice[0] : 0;
    if (this.spec.high === undefined && gap) high = Math.ceil(high / gap - 1e-9) * gap;
    if (high === low) { high += Math.abs(high) || 1; low -= this.spec.low === undefined ? Math.abs(low) : 0; }
    const first = this.steps[0] ?? 0;
    const last = this.steps[this.steps.length - 1] ?? 1;
    const x = this.x = (s) => box.left + (box.right - box.left) * (last > first ? (s - first) / (last - first) : 0.5);
    const y = this.y = (v) => box.bottom - ((v - low) / (high - low)) * (box.bottom - box.top);
    const parts = [];
    const rows = ticks(low, high, this.spec.small ? 2 : 4);
    for (const value of rows) {
      parts.push(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }));
      parts.push(svg("text", { x: box.left - 7, y: y(value) + 4, "text-anchor": "end" }, tickLabel(value, rows[1] - rows[0], kind)));
    }
    const columns = ticks(first, last, Math.min(6, width / 70)).filter((s) => Number.isInteger(s));
    for (const step of columns) {
      parts.push(svg("text", { x: x(step), y: box.bottom + 15, "text-anchor": "middle" }, step.toLocaleString("en")));
      parts.push(svg("line", { class: "axis", x1: x(step), x2: x(step), y1: box.bottom, y2: box.bottom + 4 }));
    }
    parts.push(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
    parts.push(svg("text", { x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle" }, "training step"));
    for (const [i, reference] of references.entries()) {
      const at = y(reference.value);
      parts.push(svg("line", { x1: box.left, x2: box.right, y1: at, y2: at, stroke: "var(--text)", "stroke-opacity": 0.7, "stroke-width": 1.4, "stroke-dasharray": REFERENCE_DASHES[i % 3] }));
    }
    for (const line of this.lines) {
      const stroke = `var(--c${line.index})`;
      if (line.smooth !== line.values) {
        parts.push(svg("path", { d: this.path(line.values), fill: "none", stroke, "stroke-opacity": 0.3, "stroke-width": 1 }));
      }
      parts.push(svg("path", { d: this.path(line.smooth), fill: "none", stroke, "stroke-width": 2, "stroke-linejoin": "round" }));
    }
    // A few marks on each line, not where the other lines have theirs.
    const n = this.steps.length;
    const every = Math.max(1, Math.round((n * 75) / Math.max(75, box.right - box.left)));
    this.lines.forEach((line, k) => {
      for (let i = Math.floor((every * (k + 0.5)) / this.lines.length); i < n; i += every) {
        if (isNumber(line.smooth[i])) parts.push(svg("path", { d: SHAPES[line.index], transform: `translate(${x(this.steps[i]).toFixed(1)} ${y(line.smooth[i]).toFixed(1)})`, fill: `var(--c${line.index})`, stroke: "var(--surface)", "stroke-width": 0.8 }));
      }
    });
    this.pointer = svg("g");
    parts.push(this.pointer);
    this.plot.setAttribute("height", height);
    this.plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.plot.setAttribute("aria-label", `${this.title.textContent}. ${this.lines.map((l) => `${l.name}: ${shown(l.smooth[0], kind)} at first, ${shown(lastNumber(l.smooth), kind)} at last`).join("; ")}. Arrow keys move the cursor.`);
    this.plot.replaceChildren(...parts);
    const swatch = (attributes, shape) => svg("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" }, svg("line", { x1: 0, x2: 22, y1: 5, y2: 5, ...attributes }),
      shape ? svg("path", { d: shape, transform: "translate(11 5)", fill: attributes.stroke }) : null);
    this.values = this.lines.map(() => el("b"));
    this.legend.replaceChildren(
      ...this.lines.map((line, i) => el("li", {}, swatch({ stroke: `var(--c${line.index})`, "stroke-width": 2 }, SHAPES[line.index]), el("span", {}, line.name), this.values[i])),
      ...references.map((r, i) => el("li", { class: "muted" }, swatch({ stroke: "var(--text)", "stroke-opacity": 0.7, "stroke-width": 1.6, "stroke-dasharray": REFERENCE_DASHES[i % 3] }), el("span", {}, r.name), el("b", {}, shown(r.value, kind)))),
    );
    this.point();
  }

  path(values) {
    let d = "";
    let pen = "M";
    values.forEach((value, i) => {
      if (!isNumber(value)) { pen = "M"; return; }
      d += `${pen}${this.x(this.steps[i]).toFixed(1)} ${this.y(value).toFixed(1)}`;
      pen = "L";
    });
    return d;
  }

  /** The cursor, and the legend's numbers there (at the last step without one). */
  point() {
    if (!this.pointer) return;
    const n = this.steps.length;
    const at = cursor === null ? n - 1 : Math.min(cursor, n - 1);
    this.at.textContent = n && cursor !== null ? `step ${shown(this.steps[at])}` : "";
    const marks = [];
    if (n && cursor !== null) {
      const x = this.x(this.steps[at]);
      marks.push(svg("line", { class: "cursor", x1: x, x2: x, y1: this.box.top, y2: this.box.bottom }));
      for (const line of this.lines) {
        if (isNumber(line.values[at])) marks.push(svg("circle", { cx: x, cy: this.y(line.values[at]), r: 3.4, fill: `var(--c${line.index})`, stroke: "var(--surface)", "stroke-width": 1.4 }));
      }
    }
    this.pointer.replaceChildren(...marks);
    // Without a cursor the smoothed end is told: a single step is noise.
    this.lines.forEach((line, i) => { this.values[i].textContent = shown(cursor === null ? lastNumber(line.smooth) : line.values[at], this.spec.kind); });
  }

  hover(event) {
    const bounds = this.plot.getBoundingClientRect();
    const share = (event.clientX - bounds.left - this.box.left) / (this.box.right - this.box.left);
    const n = this.steps.length;
    if (n) setCursor(Math.max(0, Math.min(n - 1, Math.round(share * (n - 1)))));
  }

  key(event) {
    const n = this.steps.length;
    const now = cursor === null ? n - 1 : cursor;
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: n - 1, PageUp: now - 10, PageDown: now + 10 }[event.key];
    if (event.key === "Escape") setCursor(null);
    if (next === undefined || !n) return;
    event.preventDefault();
    setCursor(Math.max(0, Math.min(n - 1, next)));
  }
}

const least = (values) => values.reduce((a, b) => (b < a ? b : a));
const most = (values) => values.reduce((a, b) => (b > a ? b : a));

/** Shows a list of charts in a container, keeping those that are there: a live page is drawn again and again. */
function showCharts(container, specs, series) {
  const wanted = specs.filter((spec) => spec.lines.some((line) => series.columns[line.key]));
  const roots = wanted.map((spec) => {
    const id = `${container.id || "more"} ${spec.title}`;
    if (!charts.has(id)) charts.set(id, new Chart(spec));
    return [charts.get(id), spec];
  });
  const same = roots.length === container.childElementCount && roots.every(([chart], i) => container.children[i] === chart.root);
  if (!same) container.replaceChildren(...roots.map(([chart]) => chart.root));
  for (const [chart, spec] of roots) chart.show(spec, series);
}
