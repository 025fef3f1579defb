// The swarm's timeline: a lane an agent, drawn on a canvas that is as high as what is seen of it.

const LANE = 20;
const TOP = 26;

class Timeline {
  /** load(episode index, agent idx) promises an agent's texts. */
  constructor(container, load) {
    this.load = load;
    this.axis = "time";
    this.picker = el("div", { class: "picker", role: "tablist", "aria-label": "Episodes" });
    this.head = el("div", { class: "head" });
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.room = el("div", {}, this.canvas);
    this.scroller = el("div", { class: "scroller", tabindex: 0, role: "application", "aria-label": "Swarm timeline. Up and down: agents. Left and right: model calls. Enter: read. Plus, minus, 0: zoom." }, this.room);
    this.tip = el("div", { class: "tip", hidden: true });
    this.said = el("div", { class: "unseen", "aria-live": "polite" });
    this.panel = el("div", { class: "detail", tabindex: 0, role: "region", "aria-label": "Details" });
    this.table = el("details", { class: "plain", ontoggle: () => this.showTable() }, el("summary", {}, "The agents as a table"), el("div", {}));
    const button = (label, name, act) => el("button", { type: "button", title: name, "aria-label": name, onclick: act }, label);
    this.axes = [["time", "Wall-clock"], ["path", "Critical steps"]].map(([axis, name]) => el("button", { type: "button", onclick: () => this.setAxis(axis) }, name));
    const mark = (body) => svg("svg", { viewBox: "0 0 18 12", "aria-hidden": "true" }, body);
    const bar = (name, style, height = 10) => el("span", {}, mark(svg("rect", { x: 0, y: 6 - height / 2, width: 18, height, rx: 1.5, fill: `var(--${style})` })), name);
    const keys = el("div", { class: "keys" }, bar("model call", "model"), bar("tool call", "tool", 6),
      el("span", {}, mark([svg("rect", { x: 0, y: 3, width: 18, height: 6, fill: "var(--bad)" }), svg("path", { d: "M5 1L13 11M13 1L5 11", stroke: "var(--bad)", "stroke-width": 2 })]), "failed"),
      bar("alive", "life", 2), bar("critical path", "path", 3));
    const tools = el("div", { class: "tools" }, el("div", { class: "group", role: "group", "aria-label": "Axis" }, this.axes),
      el("div", { class: "group", role: "group", "aria-label": "Zoom" }, button("−", "Zoom out", () => this.zoom(1.6)), button("+", "Zoom in", () => this.zoom(1 / 1.6)), button("Fit", "Show all", () => this.fit())), keys);
    this.body = el("div", { class: "swarm" }, this.head, tools, el("div", { class: "split" }, el("div", { class: "lanes" }, this.scroller, this.tip), this.panel), this.table, this.said);
    container.replaceChildren(this.picker, this.body);
    this.body.hidden = true;
    this.scroller.addEventListener("scroll", () => this.later());
    this.scroller.addEventListener("keydown", (e) => this.key(e));
    this.scroller.addEventListener("pointerdown", (e) => this.grab(e));
    this.scroller.addEventListener("pointermove", (e) => this.hover(e));
    this.scroller.addEventListener("pointerup", (e) => this.release(e));
    this.scroller.addEventListener("pointercancel", () => { this.grabbed = null; });
    this.scroller.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    this.scroller.addEventListener("focus", () => this.later());
    this.scroller.addEventListener("blur", () => this.later());
    this.scroller.addEventListener("wheel", (e) => {
      if (!e.ctrlKey) return;
      e.preventDefault();
      this.zoom(e.deltaY > 0 ? 1.25 : 0.8, this.valueAt(e.clientX));
    }, { passive: false });
    new ResizeObserver(() => this.later()).observe(this.scroller);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.later());
  }

  /** New episodes; the one that is looked at stays, where it is still among them. */
  show(episodes) {
    const before = this.episode ? this.episode.id : null;
    this.episodes = episodes;
    const tab = (episode, i) => el("button", { type: "button", role: "tab", id: `episode-${i}`, "aria-selected": "false", tabindex: -1,
      onclick: () => this.open(i), onkeydown: (e) => this.tabKey(e, i) },
      el("span", { class: "name" }, episode.shown_for),
      el("span", { class: "what" }, `step ${episode.step} · ${episode.kind}, ${count(episode.n_items, "item")} · ${episode.reward === null ? "not scored" : `reward ${episode.reward.toFixed(2)}`} · ${episode.n_assigned ? count(episode.n_assigned, "agent") : "alone"}`));
    this.picker.replaceChildren(...episodes.map(tab));
    this.body.hidden = !episodes.length;
    if (!episodes.length) return;
    const at = episodes.findIndex((episode) => episode.id === before);
    if (at >= 0) {
      this.at = at;
      this.episode = episodes[at];
      this.mark();
    } else {
      // The widest is the one to look at first.
      const widest = episodes.reduce((best, e, i) => (e.max_concurrent > episodes[best].max_concurrent ? i : best), 0);
      this.open(widest);
    }
  }

  mark() {
    [...this.picker.children].forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === this.at));
      tab.tabIndex = i === this.at ? 0 : -1;
    });
    // On a phone the tabs are a row of their own that scrolls sideways.
    const tab = this.picker.children[this.at];
    this.picker.scrollLeft = tab.offsetLeft - this.picker.offsetLeft - 24;
  }

  tabKey(event, i) {
    const n = this.episodes.length;
    const next = { ArrowRight: i + 1, ArrowDown: i + 1, ArrowLeft: i - 1, ArrowUp: i - 1, Home: 0, End: n - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const to = (next + n) % n;
    this.open(to);
    this.picker.children[to].focus();
  }

  open(at) {
    const e = this.episode = this.episodes[at];
    this.at = at;
    this.mark();
    const share = e.n_assigned ? `${e.n_finished} of ${e.n_assigned}` : "none";
    this.head.replaceChildren(el("h3", {}, e.id),
      facts([
        ["task", `${e.task_id} (${e.kind}, ${count(e.n_items, "item")})`], ["ended", e.failure_kind ? `${e.status}, ${e.failure_kind}` : e.status],
        ["all right", e.success === null ? null : e.success ? "yes" : "no"], ["reward", e.reward === null ? null : shown(e.reward)],
        ...e.parts.map((part) => [part.component, `${shown(part.raw)} × ${shown(part.weight)}`]),
        ["advantage", e.advantage === null ? null : shown(e.advantage)], ["agents finished", share], ["at once", String(e.max_concurrent)],
        ["critical steps", String(e.critical_steps)], ["steps of all", String(e.total_steps)],
        ["wall-clock", shown(e.duration_ms, "ms")], ["of all agents", shown(e.total_ms, "ms")], ["tokens drawn", shown(e.completion_tokens)]]),
      el("p", { class: "cut" }, el("span", { class: "muted" }, "Asked: "), e.question),
      e.answer === null ? el("p", { class: "muted" }, e.error || "No answer.") : el("p", { class: "cut" }, el("span", { class: "muted" }, "Answered: "), e.answer));
    this.row = 0;
    this.call = null;
    this.scroller.scrollTop = 0;
    this.room.style.height = `${TOP + e.agents.length * LANE + 6}px`;
    this.table.open = false;
    this.panel.replaceChildren(el("p", { class: "muted" }, "Choose a bar to read what that agent was asked, what it said, and which tools it called; for the orchestrator, its tokens too."));
    this.setAxis(this.axis);
  }

  setAxis(axis) {
    this.axis = axis;
    this.axes.forEach((button, i) => button.setAttribute("aria-pressed", String((i === 0) === (axis === "time"))));
    this.fit();
  }

  /** The end of the whole axis. */
  end() {
    const e = this.episode;
    if (this.axis === "path") return Math.max(1, ...e.stages.map((s) => s.to));
    return Math.max(1, e.duration_ms, ...e.agents.map((a) => a.time[1]));
  }

  fit() { this.view = [0, this.end()]; this.later(); }

  zoom(factor, around) {
    const [a, b] = this.view;
    const middle = around ?? (this.call === null ? (a + b) / 2 : this.placeOf(this.row, this.call)[0]);
    const span = Math.min(this.end(), Math.max(this.end() / 5000, (b - a) * factor));
    this.moveTo(middle - span * ((middle - a) / (b - a)), span);
  }

  moveTo(from, span) {
    const a = Math.max(0, Math.min(this.end() - span, from));
    this.view = [a, a + span];
    this.later();
  }

  /** Bars of an agent: where its model calls begin and end on the present axis. */
  bars(agent) { return this.axis === "path" ? [agent.steps.from, agent.steps.to] : [agent.steps.start, agent.steps.end]; }

  placeOf(row, call) {
    const [from, to] = this.bars(this.episode.agents[row]);
    return [from[call], to[call]];
  }

  later() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => { this.asked = false; this.draw(); });
  }

  x(value) { return this.left + ((value - this.view[0]) / (this.view[1] - this.view[0])) * (this.width - this.left - 10); }

  valueAt(clientX) {
    const share = (clientX - this.scroller.getBoundingClientRect().left - this.left) / (this.width - this.left - 10);
    return this.view[0] + share * (this.view[1] - this.view[0]);
  }

  draw() {
    const e = this.episode;
    this.width = this.scroller.clientWidth;
    if (!e || !this.width) return;
    const height = Math.min(this.scroller.clientHeight || 300, TOP + e.agents.length * LANE + 6);
    const ratio = window.devicePixelRatio || 1;
    this.left = narrow() ? 112 : 148;
    if (this.canvas.width !== Math.round(this.width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(this.width * ratio);
      this.canvas.height = Math.round(height * ratio);
      this.canvas.style.width = `${this.width}px`;
      this.canvas.style.height = `${height}px`;
    }
    const c = this.context = this.canvas.getContext("2d");
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    const ink = this.ink = Object.fromEntries(["surface", "grid", "line", "text", "muted", "model", "tool", "bad", "path", "life", "band", "pick"].map((n) => [n, colour(n)]));
    const font = getComputedStyle(document.body).fontFamily;
    c.fillStyle = ink.surface;
    c.fillRect(0, 0, this.width, height);
    const scroll = this.scroller.scrollTop;
    this.y = (row) => TOP + row * LANE - scroll;
    const firstRow = Math.max(0, Math.floor(scroll / LANE));
    const lastRow = Math.min(e.agents.length - 1, Math.ceil((scroll + height - TOP) / LANE));
    const right = this.width - 10;
    c.save();
    c.beginPath();
    c.rect(this.left, 0, right - this.left + 8, height);
    c.clip();
    if (this.axis === "path") {
      e.stages.forEach((stage, i) => {
        if (i % 2) { c.fillStyle = ink.band; c.fillRect(this.x(stage.from), TOP, this.x(stage.to) - this.x(stage.from), height); }
      });
    }
    const marks = ticks(this.view[0], this.view[1], Math.max(2, (right - this.left) / 90)).filter((v) => this.axis === "time" || Number.isInteger(v));
    c.strokeStyle = ink.grid;
    c.lineWidth = 1;
    for (const value of marks) {
      const at = Math.round(this.x(value)) + 0.5;
      c.beginPath();
      c.moveTo(at, TOP - 3);
      c.lineTo(at, height);
      c.stroke();
    }
    c.restore();
    for (let row = firstRow; row <= lastRow; row += 1) this.drawLane(c, row, right, font);
    c.save();
    c.beginPath();
    c.rect(this.left - 2, TOP, right - this.left + 8, height);
    c.clip();
    this.drawPath(c);
    this.drawPick(c);
    c.restore();
    // The axis last: lanes scroll under it.
    c.fillStyle = ink.surface;
    c.fillRect(0, 0, this.width, TOP - 3);
    c.fillStyle = ink.muted;
    c.font = `11.5px ${font}`;
    const step = marks.length > 1 ? marks[1] - marks[0] : 1;
    const unit = this.axis === "path" ? "critical steps" : this.end() > 20000 ? "s" : "ms";
    c.textAlign = "left";
    c.fillText(this.axis === "path" ? unit : `wall-clock, ${unit}`, 10, 16);
    for (const value of marks) {
      const at = this.x(value);
      c.textAlign = at > right - 14 ? "right" : "center";
      c.fillText(unit === "s" ? tickLabel(value / 1000, step / 1000) : tickLabel(value, step), Math.min(at, right + 6), 16);
    }
    c.strokeStyle = ink.line;
    c.beginPath();
    c.moveTo(0, TOP - 2.5);
    c.lineTo(this.width, TOP - 2.5);
    c.moveTo(this.left - 4.5, TOP - 2.5);
    c.lineTo(this.left - 4.5, height);
    c.stroke();
  }

  drawLane(c, row, right, font) {
    const agent = this.episode.agents[row];
    const { ink } = this;
    const y = this.y(row);
    if (row === this.row && (this.call !== null || document.activeElement === this.scroller)) {
      c.fillStyle = ink.band;
      c.fillRect(0, y, this.width, LANE);
    }
    c.fillStyle = agent.critical ? ink.text : ink.muted;
    c.font = `${agent.critical ? 650 : 450} 12.5px ${font}`;
    c.textAlign = "left";
    const failed = !agent.finished;
    const room = this.left - (failed ? 32 : 18);
    let label = visible(`${agent.idx} ${agent.name}`.slice(0, 60));
    while (label.length > 3 && c.measureText(label).width > room) label = `${label.slice(0, -2)}…`;
    c.fillText(label, 10, y + 14);
    if (failed) this.cross(c, this.left - 14, y + LANE / 2, 4);
    c.save();
    c.beginPath();
    c.rect(this.left, y, right - this.left + 6, LANE);
    c.clip();
    const [from, to] = this.bars(agent);
    if (this.axis === "time") {
      c.fillStyle = ink.life;
      c.fillRect(this.x(agent.time[0]), y + LANE / 2 - 1, Math.max(1, this.x(agent.time[1]) - this.x(agent.time[0])), 2);
    }
    // What falls on one pixel is drawn once.
    const bars = (begin, end, height, keep, gap) => {
      let drawn = -1;
      for (let i = 0; i < begin.length; i += 1) {
        if (!keep(i)) continue;
        // A call that costs nothing is a mark at the end of what was before it.
        const a = this.x(begin[i]) - (end[i] === begin[i] ? 2 : 0);
        const b = Math.max(a + 1.5, this.x(end[i]) - gap);
        if (b < this.left || a > this.width || (b - a < 2 && a < drawn)) continue;
        c.fillRect(a, y + (LANE - height) / 2, b - a, height);
        drawn = Math.max(drawn, b);
      }
    };
    c.fillStyle = ink.model;
    bars(from, to, 12, () => true, this.axis === "path" ? 1 : 0);
    const calls = agent.calls;
    if (this.axis === "time") {
      c.fillStyle = ink.tool;
      bars(calls.start, calls.end, 7, (i) => !calls.error[i] && calls.end[i] > calls.start[i], 0);
    }
    if (calls.error.includes(1)) {
      c.fillStyle = ink.bad;
      const begin = this.axis === "path" ? calls.of.map((of) => from[of]) : calls.start;
      const end = this.axis === "path" ? calls.of.map((of) => to[of]) : calls.end;
      bars(begin, end, 7, (i) => calls.error[i], 0);
      let last = -99;
      calls.error.forEach((error, i) => {
        const at = this.x((begin[i] + end[i]) / 2);
        if (error && at - last > 6) { this.cross(c, at, y + LANE / 2, 4); last = at; }
      });
    }
    c.restore();
  }

  cross(c, x, y, size) {
    c.strokeStyle = this.ink.bad;
    c.lineWidth = 1.8;
    c.beginPath();
    c.moveTo(x - size, y - size);
    c.lineTo(x + size, y + size);
    c.moveTo(x + size, y - size);
    c.lineTo(x - size, y + size);
    c.stroke();
  }

  /** Down from the orchestrator to each stage's longest agent and back: what the episode waited for. */
  drawPath(c) {
    const rows = this.episode.agents;
    const lead = rows.find((a) => a.idx === 0);
    if (!lead) return;
    const place = (row) => this.y(row) + LANE - 3;
    const [from, to] = this.bars(lead);
    const longest = rows.map((agent, row) => ({ agent, row })).filter(({ agent }) => agent.critical && agent.stage !== null);
    const home = rows.indexOf(lead);
    const points = [];
    const spanOf = (agent) => {
      if (this.axis === "time") return agent.time;
      const stage = this.episode.stages.find((s) => s.stage === agent.stage);
      return stage ? [stage.sub, stage.to] : [0, 0];
    };
    const trips = longest.map(({ agent, row }) => ({ row, span: spanOf(agent) })).sort((a, b) => a.span[0] - b.span[0]);
    points.push([from[0] ?? 0, home]);
    for (const { row, span } of trips) points.push([span[0], home], [span[0], row], [span[1], row], [span[1], home]);
    points.push([to[to.length - 1] ?? 0, home]);
    c.strokeStyle = this.ink.path;
    c.lineWidth = 2.4;
    c.lineJoin = "round";
    c.beginPath();
    points.forEach(([value, row], i) => (i ? c.lineTo(this.x(value), place(row)) : c.moveTo(this.x(value), place(row))));
    c.stroke();
  }

  drawPick(c) {
    if (this.call === null) return;
    const [from, to] = this.placeOf(this.row, this.call);
    if (from === undefined) return;
    const a = this.x(from);
    c.strokeStyle = this.ink.pick;
    c.lineWidth = 2;
    c.strokeRect(a - 1.5, this.y(this.row) + 2, Math.max(4, this.x(to) - a) + 3, LANE - 4);
  }

  /** Row and model call under the pointer; the nearest call of the lane. */
  under(event) {
    const bounds = this.scroller.getBoundingClientRect();
    const row = Math.floor((event.clientY - bounds.top - TOP + this.scroller.scrollTop) / LANE);
    if (!this.episode || row < 0 || row >= this.episode.agents.length || event.clientY - bounds.top < TOP) return null;
    const value = this.valueAt(event.clientX);
    const [from, to] = this.bars(this.episode.agents[row]);
    let nearest = null;
    let distance = Infinity;
    for (let i = 0; i < from.length; i += 1) {
      const away = value < from[i] ? from[i] - value : value > to[i] ? value - to[i] : 0;
      if (away < distance) { distance = away; nearest = i; }
    }
    return { row, call: nearest, value };
  }

  grab(event) {
    this.grabbed = { x: event.clientX, y: event.clientY, view: [...this.view], moved: false };
  }

  release(event) {
    const moved = !this.grabbed || this.grabbed.moved;
    this.grabbed = null;
    const hit = moved ? null : this.under(event);
    if (hit) this.choose(hit.row, hit.call, true);
  }

  hover(event) {
    if (this.grabbed && event.buttons) {
      const by = event.clientX - this.grabbed.x;
      if (Math.abs(by) > 4 || Math.abs(event.clientY - this.grabbed.y) > 4) this.grabbed.moved = true;
      if (this.grabbed.moved && event.pointerType === "mouse") {
        const [a, b] = this.grabbed.view;
        this.moveTo(a - (by / (this.width - this.left - 10)) * (b - a), b - a);
      }
      return;
    }
    const hit = event.pointerType === "mouse" ? this.under(event) : null;
    this.tip.hidden = !hit;
    if (!hit) return;
    this.tip.textContent = visible(this.words(hit.row, hit.call));
    const bounds = this.scroller.getBoundingClientRect();
    const x = event.clientX - bounds.left;
    this.tip.style.left = `${x > bounds.width / 2 ? Math.max(4, x - this.tip.offsetWidth - 12) : x + 14}px`;
    this.tip.style.top = `${Math.min(event.clientY - bounds.top + 16, bounds.height - this.tip.offsetHeight - 4)}px`;
  }

  words(row, call) {
    const agent = this.episode.agents[row];
    const lines = [`${agent.idx} ${agent.name}${agent.finished ? "" : `, ${agent.finish_reason}`}${agent.critical ? ", on the critical path" : ""}`];
    if (call === null) return `${lines[0]}\nmade no model call`;
    lines.push(`model call ${call + 1} of ${agent.steps.end.length}, ${shown(agent.steps.start[call], "ms")} to ${shown(agent.steps.end[call], "ms")}, ${count(agent.steps.drawn[call], "token")}`);
    const tools = new Map();
    agent.calls.of.forEach((of, i) => {
      if (of !== call) return;
      const name = `${this.episode.tools[agent.calls.tool[i]]}${agent.calls.error[i] ? " (failed)" : ""}`;
      tools.set(name, (tools.get(name) || 0) + 1);
    });
    if (tools.size) lines.push([...tools].map(([name, n]) => (n > 1 ? `${n} × ${name}` : name)).join(", "));
    return lines.join("\n");
  }

  /** Selects a call and, where asked for, shows what was said in it. */
  choose(row, call, read) {
    this.row = row;
    this.call = call;
    const y = row * LANE;
    const seen = this.scroller.clientHeight - TOP - LANE;
    if (y < this.scroller.scrollTop) this.scroller.scrollTop = y;
    else if (y > this.scroller.scrollTop + seen) this.scroller.scrollTop = y - seen;
    if (call !== null) {
      const [from, to] = this.placeOf(row, call);
      const [a, b] = this.view;
      if (to < a || from > b) this.moveTo(from - (b - a) / 2, b - a);
    }
    this.said.textContent = visible(this.words(row, call));
    this.later();
    if (read) this.read();
  }

  async read() {
    const { at, episode, row, call } = this;
    const agent = episode.agents[row];
    let parts;
    try {
      const texts = await this.load(at, agent.idx);
      parts = detail(episode, agent, call, texts);
    } catch (error) {
      parts = [el("p", { class: "muted" }, `This cannot be shown: ${error.message}`)];
    }
    // Meanwhile something else may have been chosen.
    if (this.episode !== episode || this.row !== row || this.call !== call) return;
    const n = agent.steps.end.length;
    const go = (label, to, off) => el("button", { type: "button", disabled: off, onclick: () => this.choose(row, to, true) }, label);
    if (n > 1 && call !== null) parts.splice(1, 0, el("div", { class: "go" }, go("‹ call before", call - 1, call === 0), go("call after ›", call + 1, call === n - 1)));
    this.panel.replaceChildren(...parts);
    this.panel.scrollTop = 0;
    if (this.panel.getBoundingClientRect().top > window.innerHeight - 80) this.panel.scrollIntoView({ block: "nearest" });
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const rows = this.episode.agents.length;
    const n = (row) => this.episode.agents[row].steps.end.length;
    const inLane = (row, call) => (n(row) ? Math.max(0, Math.min(n(row) - 1, call ?? 0)) : null);
    const moves = {
      ArrowUp: () => this.choose(Math.max(0, this.row - 1), inLane(Math.max(0, this.row - 1), this.call), true),
      ArrowDown: () => this.choose(Math.min(rows - 1, this.row + 1), inLane(Math.min(rows - 1, this.row + 1), this.call), true),
      ArrowLeft: () => this.choose(this.row, inLane(this.row, (this.call ?? 1) - 1), true),
      ArrowRight: () => this.choose(this.row, inLane(this.row, this.call === null ? 0 : this.call + 1), true),
      PageUp: () => this.choose(Math.max(0, this.row - 10), inLane(Math.max(0, this.row - 10), this.call), true),
      PageDown: () => this.choose(Math.min(rows - 1, this.row + 10), inLane(Math.min(rows - 1, this.row + 10), this.call), true),
      Home: () => this.choose(this.row, inLane(this.row, 0), true),
      End: () => this.choose(this.row, inLane(this.row, n(this.row) - 1), true),
      Enter: () => { this.read(); this.panel.focus(); },
      "+": () => this.zoom(1 / 1.6), "=": () => this.zoom(1 / 1.6), "-": () => this.zoom(1.6), 0: () => this.fit(),
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    move();
  }

  showTable() {
    if (!this.table.open) return;
    const names = ["agent", "stage", "ended", "environment calls", "model calls", "tokens in", "tokens drawn", "from", "to", "critical"];
    const row = (agent, i) => el("tr", {}, el("th", { scope: "row" }, el("button", { type: "button", onclick: () => this.choose(i, agent.steps.end.length ? 0 : null, true) }, `${agent.idx} ${agent.name}`)),
      [agent.stage ?? "–", agent.finish_reason, agent.n_steps, agent.steps.end.length, agent.tokens_in, agent.tokens_out, shown(agent.time[0], "ms"), shown(agent.time[1], "ms"), agent.critical ? "yes" : ""].map((v) => el("td", {}, String(v))));
    this.table.lastElementChild.replaceChildren(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Agents" }, el("table", {},
      el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, this.episode.agents.map(row)))));
  }
}
