"use strict";
// Elements, numbers and colours. Data reaches the page through text nodes only; attributes are ours.

const byId = (id) => document.getElementById(id);

/** Text with the characters made visible that would turn its direction round, or that are none. */
const visible = (text) => String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  // Strings become text nodes here, whatever they hold.
  const some = children.flat().filter((child) => child !== null && child !== undefined);
  node.append(...some.map((child) => (child instanceof Node ? child : visible(child))));
  return node;
}

const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

/** A number as people read it; `kind` is "share", "ms", "s" or nothing. */
function shown(x, kind) {
  if (!isNumber(x)) return "–";
  if (kind === "share") return `${(100 * x).toFixed(1)} %`;
  if (kind === "ms") return Math.abs(x) >= 10000 ? `${(x / 1000).toFixed(1)} s` : `${Math.round(x)} ms`;
  const size = Math.abs(x);
  if (size === 0) return "0";
  if (size >= 1e6) return `${(x / 1e6).toFixed(2)} M`;
  if (size >= 1e4) return Math.round(x).toLocaleString("en");
  if (size >= 100) return Number.isInteger(x) ? String(x) : x.toFixed(1);
  if (size >= 1) return Number.isInteger(x) ? String(x) : x.toFixed(2);
  if (size >= 1e-3) return x.toFixed(3);
  return x.toExponential(1);
}

const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const mean = (values) => {
  const numbers = values.filter(isNumber);
  return numbers.length ? numbers.reduce((a, b) => a + b, 0) / numbers.length : null;
};
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const narrow = () => window.innerWidth <= 560;

/** Round ticks between two numbers, about `wanted` of them. */
function ticks(low, high, wanted) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / Math.max(1, wanted);
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * ten).find((s) => s >= rough) || rough;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) found.push(k * step || 0);
  return found;
}

/** A tick's label, with as many places as its distance to the next one asks for. */
function tickLabel(x, step, kind) {
  if (kind === "share") return `${Math.round(100 * x)} %`;
  if (x === 0) return "0";
  if (Math.abs(x) >= 1e6) return `${+(x / 1e6).toPrecision(3)} M`;
  if (Math.abs(x) >= 1e4) return `${+(x / 1e3).toPrecision(4)} k`;
  if (step < 1e-4) return x.toExponential(1);
  return x.toFixed(Math.min(5, Math.max(0, Math.ceil(-Math.log10(step || 1) - 1e-9))));
}

const facts = (pairs) =>
  el("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
