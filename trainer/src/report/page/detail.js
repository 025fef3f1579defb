// What one agent read and said at one model call. Made when it is asked for, never before.

const MOST_CHARS = 4000;
const MOST_TOKENS = 3000;

/** Text of any length: the rest of a long one comes on demand. */
function longText(text) {
  const all = text === null || text === undefined ? "" : String(text);
  const pre = el("pre", {}, all.length > MOST_CHARS ? `${all.slice(0, MOST_CHARS)}…` : all);
  if (all.length <= MOST_CHARS) return pre;
  const more = el("button", { type: "button", onclick: () => { pre.textContent = visible(all); more.remove(); } }, `show all ${count(all.length, "character")}`);
  return el("div", {}, pre, more);
}

const said = (kind, who, ...body) => el("div", { class: `said ${kind}` }, el("div", { class: "who" }, who), body);

function pretty(json) {
  try {
    const value = JSON.parse(json);
    const entries = value && typeof value === "object" ? Object.entries(value) : [];
    return entries.map(([key, inner]) => `${key}: ${typeof inner === "string" ? inner : JSON.stringify(inner)}`).join("\n");
  } catch {
    return json;
  }
}

const SHADES = [[0.99, "p0", "≥ 99 %"], [0.9, "p1", "90–99 %"], [0.5, "p2", "50–90 %"], [0.1, "p3", "10–50 %"], [0, "p4", "< 10 %"]];
const shade = (p) => (SHADES.find(([least]) => p >= least) || SHADES[4])[1];

/** Tokens [from, to) of a context, coloured by the probability with which they were drawn; greyed off the mask. */
function tokens(branch, from, to) {
  const box = el("div", { class: "tokens" });
  const add = (begin, end) => {
    for (let i = begin; i < end; i += 1) {
      const drawn = branch.mask[i] === "1";
      const p = Math.exp(branch.logprobs[i]);
      const text = branch.pieces[i].replaceAll("\n", "↵\n");
      box.append(el("span", drawn
        ? { class: shade(p), title: `token ${i}: log-prob ${branch.logprobs[i].toFixed(3)}, probability ${(100 * p).toFixed(1)} %` }
        : { class: "off", title: `token ${i}: placed by the template or read, not trained on` }, text));
    }
  };
  const first = Math.min(to, from + MOST_TOKENS);
  add(from, first);
  if (first === to) return box;
  const more = el("button", { type: "button", onclick: () => { add(first, to); more.remove(); } }, `show ${count(to - first, "more token")}`);
  return el("div", {}, box, more);
}

const tokenKey = () => el("div", { class: "tokens key", "aria-label": "Colours of the tokens" },
  el("span", {}, "probability"), SHADES.map(([, name, label]) => el("span", { class: name }, label)), el("span", { class: "off" }, "off the mask"));

/** The slice of a context that belongs to model call k: what was put in front of it, and what it drew. */
function slice(branch, k, drawn) {
  const begin = k === 0 ? 0 : branch.offsets[k - 1] + drawn[k - 1];
  const end = Math.min(branch.pieces.length, (branch.offsets[k] ?? branch.pieces.length) + drawn[k]);
  return [Math.min(begin, end), end];
}

function tokenSection(branch, agent, k) {
  const drawn = agent.steps.drawn;
  const [from, to] = slice(branch, k, drawn);
  const own = [];
  for (let i = from; i < to; i += 1) if (branch.mask[i] === "1") own.push(branch.logprobs[i]);
  const whole = el("button", { type: "button", onclick: () => {
    body.replaceChildren(tokens(branch, 0, branch.pieces.length));
    whole.remove();
  } }, `show the whole context, ${count(branch.pieces.length, "token")}`);
  const body = el("div", {}, tokens(branch, from, to));
  return [el("h4", {}, "Tokens of this call"),
    facts([["drawn", String(own.length)], ["mean log-prob", own.length ? shown(mean(own)) : null], ["least likely", own.length ? shown(Math.exp(least(own)), "share") : null]]),
    tokenKey(), body, whole];
}

/** The panel for call k of an agent (or for the agent as a whole where k is null). */
function detail(episode, agent, k, texts) {
  const calls = agent.steps.end.length;
  const step = k === null ? null : texts.steps[k];
  const parts = [el("h3", {}, `${agent.idx} · ${agent.name}${k === null ? "" : ` · model call ${k + 1} of ${calls}`}`),
    facts([
      ["stage", agent.stage === null ? null : String(agent.stage)], ["ended", agent.finish_reason],
      ["environment calls", String(agent.n_steps)], ["tokens in, drawn", `${agent.tokens_in}, ${agent.tokens_out}`],
      ["on the critical path", agent.critical ? "yes" : "no"], ["policy", texts.policy]])];
  if (k === null || k === 0) {
    if (texts.system_prompt) parts.push(el("h4", {}, "System prompt"), longText(texts.system_prompt));
    parts.push(el("h4", {}, agent.idx === 0 ? "Task" : "Assigned prompt"), longText(texts.assigned_prompt));
  }
  if (step) {
    parts.push(el("h4", {}, "This call"), facts([
      ["asked", shown(agent.steps.start[k], "ms")], ["complete", shown(agent.steps.end[k], "ms")], ["context", `${step.n_prompt} tokens`],
      ["drawn", count(agent.steps.drawn[k], "token")], ["ended by", step.finish], ["temperature", shown(step.temperature)], ["weights", `version ${step.version}`]]));
    parts.push(el("h4", {}, "Messages and tool calls"));
    for (const [role, text, answers] of step.messages) {
      // The opening stands above already.
      if (k === 0 && (role === "system" || role === "user")) continue;
      if (role === "assistant" && !text) continue;
      parts.push(said(role, role === "tool" ? `tool, answer to call ${answers}` : role, longText(text)));
    }
    const first = agent.calls.of.indexOf(k);
    step.calls.forEach(([id, tool, json], i) => {
      const at = first + i;
      const failed = agent.calls.error[at] === 1;
      const time = `${shown(agent.calls.start[at], "ms")} to ${shown(agent.calls.end[at], "ms")}`;
      parts.push(said(failed ? "call error" : "call", `call ${id}: ${tool}, ${time}${failed ? ", came back with an error" : ""}`, longText(pretty(json))));
    });
    if (step.messages.every(([role, text]) => role !== "assistant" || !text) && !step.calls.length) parts.push(el("p", { class: "muted" }, "It said nothing."));
  }
  if (texts.final_message !== null && (k === null || k === calls - 1)) parts.push(said("final", "final message", longText(texts.final_message)));
  if (texts.final_message === null && k === calls - 1) parts.push(el("p", { class: "muted" }, `No final message: ${agent.finish_reason}.`));
  if (step && texts.tokens.length) parts.push(...tokenSection(texts.tokens[0], agent, k));
  return parts;
}
