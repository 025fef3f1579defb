// The run in figures: tiles, the tables of held-out tasks, which curves there are, the config, the notes.

const lastOf = (series, key, n) => mean((series.columns[key] || []).slice(-n));
const rowNamed = (rows, name) => (Array.isArray(rows) ? rows : []).find((row) => row && row.name === name);
const figure = (row, key) => (row && row.summary && row.summary.all ? row.summary.all[key] : null);

function showTiles(data) {
  const { series, config } = data;
  const n = series.steps.length;
  const serial = rowNamed(data.final_eval, "serial expert, budget lifted");
  const end = rowNamed(data.final_eval, "end") || rowNamed(data.final_eval, "this run's policy");
  const start = rowNamed(data.final_eval, "start") || data.start_eval;
  const tiles = [];
  const tile = (name, value, small, more) =>
    tiles.push(el("div", { class: "tile" }, el("div", { class: "name" }, name),
      el("div", { class: "value" }, value, small ? el("small", {}, ` ${small}`) : null), el("div", { class: "more" }, more || "")));
  const done = n ? Math.round(series.steps[n - 1]) + 1 : 0;
  const planned = config && config.run ? config.run.max_steps : null;
  const spent = Object.keys(series.columns).filter((key) => key.startsWith("time/"))
    .reduce((sum, key) => sum + (mean(series.columns[key]) || 0) * series.columns[key].filter(isNumber).length * series.lines_a_point, 0);
  tile("Training steps", String(done), planned ? `of ${planned}` : "", spent > 0 ? `${spent >= 120 ? `${(spent / 60).toFixed(1)} min` : `${spent.toFixed(1)} s`} in rollouts and updates` : "");
  if (end) {
    tile("Success, held-out tasks", shown(figure(end, "success"), "share"), "", isNumber(figure(start, "success")) ? `${shown(figure(start, "success"), "share")} before training` : "");
  } else if (n) {
    tile("Success, training tasks", shown(lastOf(series, "success/mean", 10), "share"), "", `last ${count(Math.min(10, n), "step")}${isNumber(figure(start, "success")) ? `; held-out ${shown(figure(start, "success"), "share")} before training` : ""}`);
  }
  const critical = end ? figure(end, "critical_steps") : lastOf(series, "parl/critical_steps", 10);
  const alone = figure(serial, "critical_steps");
  if (isNumber(critical)) {
    tile("Critical steps a task", shown(critical), isNumber(alone) && critical > 0 ? `${(alone / critical).toFixed(1)}× fewer` : "", isNumber(alone) ? `a serial expert takes ${shown(alone)}` : `last ${count(Math.min(10, n), "step")}`);
  }
  const agents = end ? figure(end, "agents") : lastOf(series, "parl/num_subagents", 10);
  if (isNumber(agents)) tile("Sub-agents a task", shown(agents), "", isNumber(lastOf(series, "parl/serial_frac", 10)) ? `${shown(lastOf(series, "parl/serial_frac", 10), "share")} of episodes use none` : "");
  const speed = lastOf(series, "perf/throughput", 10);
  if (isNumber(speed)) tile("Rollout throughput", shown(speed), "tokens/s", `${shown(lastOf(series, "time/rollout", 10))} s a step`);
  const learn = lastOf(series, "perf/learn_throughput", 10);
  if (isNumber(learn)) tile("Learner throughput", shown(learn), "tokens/s", `${shown(lastOf(series, "time/learn", 10))} s a step`);
  byId("tiles").replaceChildren(...tiles);
}

function showTables(data) {
  byId("tables").replaceChildren(...[heldOut(data), ...ablations(data)].filter(Boolean));
}

const scrolled = (label, caption, head, rows) =>
  el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows)));

/** Tables over this run and others, which a script put beside their folders. */
function ablations(data) {
  const list = (value) => (Array.isArray(value) ? value : []);
  return list(data.ablations).filter((table) => table && typeof table === "object").map((table) =>
    scrolled("Ablations", String(table.caption || "Ablations"), ["", ...list(table.columns).map(String)],
      list(table.rows).filter((row) => row && typeof row === "object").map((row) =>
        el("tr", { class: list(row.runs).includes(data.folder) ? "own" : null },
          el("th", { scope: "row" }, String(row.name)), list(row.cells).map((cell) => el("td", {}, String(cell)))))));
}

function heldOut(data) {
  const rows = Array.isArray(data.final_eval) ? data.final_eval.filter((row) => row && row.summary && row.summary.all) : [];
  if (!rows.length) return null;
  const kinds = [...new Set(rows.flatMap((row) => Object.keys(row.summary.by_kind || {})))].sort().reverse();
  const columns = [
    ["success", (s) => shown(s.all.success, "share")],
    ...kinds.map((kind) => [`${kind}`, (s) => shown((s.by_kind[kind] || {}).success, "share")]),
    ["r_perf", (s) => shown(s.all.r_perf)],
    ["critical steps", (s) => shown(s.all.critical_steps)],
    ...kinds.map((kind) => [`critical, ${kind}`, (s) => shown((s.by_kind[kind] || {}).critical_steps)]),
    ["steps of all", (s) => shown(s.all.total_steps)],
    ["agents", (s) => shown(s.all.agents)],
    ["finish rate", (s) => (s.all.agents > 0 ? shown(s.all.finish_rate, "share") : "–")],
  ];
  const own = (name) => ["end", "this run's policy"].includes(name);
  return scrolled("Held-out tasks", `${count(rows[0].summary.all.episodes, "held-out task")}: this run beside the scripted experts`,
    ["who", ...columns.map(([name]) => name)],
    rows.map((row) => el("tr", { class: own(row.name) ? "own" : null },
      el("th", { scope: "row" }, String(row.name)), columns.map(([, value]) => el("td", {}, value(row.summary))))));
}

/** The main charts: each is drawn when the run has one of its lines. */
function chartSpecs(data) {
  const names = Object.keys(data.series.columns);
  const kinds = (before, after) => names.filter((n) => n.startsWith(before) && n.endsWith(after) && n.length > before.length + after.length)
    .map((key) => ({ key, name: key.slice(before.length, key.length - after.length) })).sort((a, b) => b.name.localeCompare(a.name));
  const expert = (name) => figure(rowNamed(data.final_eval, name), "critical_steps");
  return [
    { title: "Reward and its parts", hint: "Parts are before their weights λ; the reward is their weighted sum.", low: 0, high: 1, lines: [
      { key: "reward/mean", name: "reward" }, { key: "parl/r_perf/mean", name: "r_perf" },
      { key: "parl/r_parallel/mean", name: "r_parallel" }, { key: "parl/r_finish/mean", name: "r_finish" }] },
    { title: "Success by kind of task", kind: "share", low: 0, high: 1, lines: [{ key: "success/mean", name: "all" }, ...kinds("success/", "/mean")] },
    { title: "Critical steps", unit: "per task", low: 0, hint: data.final_eval ? "The experts' lines are over held-out tasks." : "", lines: [
      { key: "parl/critical_steps", name: "critical steps" }, { key: "parl/total_steps", name: "steps of all agents" }],
      references: [{ value: expert("serial expert, budget lifted"), name: "serial expert, budget lifted" },
        { value: expert("serial expert"), name: "serial expert" }, { value: expert("parallel expert"), name: "parallel expert" }] },
    { title: "Critical steps by kind", unit: "per task", low: 0, lines: kinds("parl/critical_steps/", "") },
    { title: "Parallelism", unit: "agents per task", low: 0, lines: [
      { key: "parl/num_subagents", name: "assignments" }, { key: "parl/max_concurrency", name: "most at once" },
      ...kinds("parl/num_subagents/", "").map((l) => ({ ...l, name: `assignments, ${l.name}` }))] },
    { title: "Finishing and retrying", kind: "share", low: 0, high: 1, lines: [
      { key: "parl/finish_rate", name: "assignments that finish" }, { key: "parl/retry_rate", name: "failed ones tried again" },
      { key: "parl/serial_frac", name: "episodes without help" }] },
    { title: "Shaping weights λ", low: 0, lines: [
      { key: "parl/lambda_parallel", name: "λ of r_parallel" }, { key: "parl/lambda_finish", name: "λ of r_finish" }] },
    { title: "Time by phase", unit: "seconds per step", low: 0, lines: kinds("time/", "") },
    { title: "Throughput", unit: "tokens/s", low: 0, lines: [
      { key: "perf/throughput", name: "rollout" }, { key: "perf/learn_throughput", name: "learner" }] },
    { title: "Entropy of the policy", unit: "nats per token", low: 0, lines: [{ key: "entropy/mean", name: "entropy" }] },
  ];
}

function showCurves(data) {
  const specs = chartSpecs(data);
  const n = data.series.steps.length;
  const window = windowOf(n);
  byId("curves-note").textContent = n === 0 ? "No step is done yet."
    : window > 1 ? `Thin: every step. Thick: mean over ${window} steps around it. Point at a curve, or go along it with the arrow keys.`
      : "Point at a curve, or go along it with the arrow keys.";
  showCharts(byId("charts"), specs, data.series);
  const used = new Set(specs.flatMap((spec) => spec.lines.map((line) => line.key)));
  const others = Object.keys(data.series.columns).filter((key) => !used.has(key));
  const more = byId("more");
  more.hidden = !others.length;
  const draw = () => more.open && showCharts(more.lastElementChild, others.map((key) => ({ title: key, small: true, lines: [{ key, name: "mean" }] })), data.series);
  more.ontoggle = draw;
  draw();
}

function flat(value, path, found) {
  if (value !== null && typeof value === "object" && Object.keys(value).length) {
    for (const [key, inner] of Object.entries(value)) flat(inner, path ? `${path}.${key}` : key, found);
  } else {
    found.push([path, typeof value === "string" ? value : JSON.stringify(value)]);
  }
  return found;
}

function showConfig(data) {
  const body = byId("config-body");
  if (body.childElementCount || !data.config) return;
  const groups = Object.entries(data.config).map(([name, value]) => {
    const rows = flat(value, "", []).map(([path, text]) => el("div", {}, el("dt", {}, path || name), el("dd", {}, text)));
    return { name, rows, root: el("details", {}, el("summary", {}, name), el("dl", {}, rows)) };
  });
  const filter = el("input", { type: "search", placeholder: "find a key or value", "aria-label": "Find in the config", oninput: () => {
    const wanted = filter.value.trim().toLowerCase();
    for (const group of groups) {
      const hits = group.rows.filter((row) => {
        row.hidden = !`${group.name}.${row.textContent}`.toLowerCase().includes(wanted);
        return !row.hidden;
      });
      group.root.hidden = !hits.length;
      group.root.open = wanted !== "" && hits.length > 0;
    }
  } });
  body.replaceChildren(filter, el("div", { class: "config" }, groups.map((group) => group.root)));
}

function showHead(data) {
  const name = data.run ? data.run.run_id : "waiting for the run";
  document.title = `${name} – PARL run`;
  byId("name").textContent = visible(name);
  const about = data.run ? [`made ${String(data.run.made_at).slice(0, 16).replace("T", " ")} UTC by ${data.run.made_by}`] : [];
  if (data.run && data.run.overrides.length) about.push(`with ${data.run.overrides.join(" ")}`);
  byId("about").textContent = visible(about.join(" · "));
  const notes = byId("notes");
  const all = data.notes.concat(data.episode_notes);
  notes.hidden = !all.length;
  notes.replaceChildren(el("div", { class: "note" }, el("h3", {}, "Please note"), el("ul", {}, all.map((note) => el("li", {}, note)))));
}
