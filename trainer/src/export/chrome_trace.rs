//! Timelines in Chrome's trace event format, which Perfetto opens: an episode is a process, an agent a thread, spawn and
//! join are flows, and the critical path is a track of its own.
//!
//! The log has milliseconds, the format microseconds, and its slices must nest and have a length. So the slices of an
//! episode are laid out in the order of cause and effect: each begins no earlier than what it waited for, and lasts for
//! a microsecond at least. The log's own times stand in the arguments.

use parl_rollout::trajectory::record::{AgentRecord, EpisodeRecord, StepRecord};
use serde_json::{Value, json};

use super::origin::{Origin, PRODUCER};
use crate::transcript::{Call, Turn, turns};

/// The trace of the episodes of one step, on one clock.
pub fn trace(records: &[EpisodeRecord], origin: Origin<'_>) -> Value {
    let first = records.iter().map(|r| r.started_at_us).min().unwrap_or(0);
    let mut events = Vec::new();
    let mut flows = 0;
    // Importers differ in whether threads of two processes may share an id, and take a thread with its process's id for
    // the main one: here all ids are different.
    let mut tid = records.len() as u64 + 1;
    for (record, pid) in records.iter().zip(1..) {
        let begin = record.started_at_us.saturating_sub(first);
        let mut sheet =
            Sheet { pid, critical: tid, begin, slices: Vec::new(), flows: Vec::new(), ids: flows };
        names(record, &sheet, &mut events);
        lay_out(record, &mut sheet);
        flows = sheet.ids;
        tid += record.agents.len() as u64 + 1;
        events.append(&mut sheet.slices);
        // After every slice that they bind to.
        events.append(&mut sheet.flows);
    }
    json!({
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"run": origin.run_id, "step": origin.step, "producer": PRODUCER},
    })
}

/// What the process and its threads are called, and in which order they stand.
fn names(record: &EpisodeRecord, sheet: &Sheet, events: &mut Vec<Value>) {
    let (pid, critical) = (sheet.pid, sheet.critical);
    let mut meta = |name: &str, tid: u64, args: Value| {
        events.push(json!({"ph": "M", "name": name, "pid": pid, "tid": tid, "ts": 0, "args": args}));
    };
    let outcome = match &record.scored {
        Some(scored) => {
            format!("reward {:.3} {}", scored.reward, if scored.success { "success" } else { "no success" })
        }
        None => format!("no reward ({})", record.status.name()),
    };
    let title = format!("{} {} {} {outcome}", record.episode_id, record.task_kind.name(), record.task_id);
    meta("process_name", critical, json!({"name": title}));
    meta("process_sort_index", critical, json!({"sort_index": pid}));
    meta("thread_name", critical, json!({"name": "critical path"}));
    meta("thread_sort_index", critical, json!({"sort_index": critical}));
    for agent in &record.agents {
        let tid = sheet.thread(agent.agent_idx);
        meta("thread_name", tid, json!({"name": format!("{} {}", agent.agent_idx, agent.name)}));
        meta("thread_sort_index", tid, json!({"sort_index": tid}));
    }
}

/// A stretch of an episode, in microseconds since it began.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    start: i64,
    end: i64,
}

impl Stretch {
    /// From milliseconds as logged, no earlier than `after` and a microsecond long at least.
    fn new(after: i64, start_ms: i64, end_ms: i64) -> Self {
        let start = after.max(start_ms.saturating_mul(1000));
        Self { start, end: end_ms.saturating_mul(1000).max(start.saturating_add(1)) }
    }
}

/// The events of one episode.
struct Sheet {
    pid: u64,
    /// The thread of the critical path; the agents' follow.
    critical: u64,
    /// Microseconds from the file's first episode to this one.
    begin: i64,
    slices: Vec<Value>,
    flows: Vec<Value>,
    /// Flows so far in the file: their ids are numbers.
    ids: u64,
}

impl Sheet {
    fn thread(&self, agent_idx: u32) -> u64 {
        self.critical + 1 + u64::from(agent_idx)
    }

    fn slice(&mut self, tid: u64, category: &str, name: &str, at: Stretch, args: &Value) {
        self.slices.push(json!({
            "ph": "X", "name": name, "cat": category, "pid": self.pid, "tid": tid,
            "ts": self.begin.saturating_add(at.start), "dur": at.end.saturating_sub(at.start), "args": args,
        }));
    }

    /// An arrow from the last microsecond of a stretch to the beginning of another thread's.
    fn flow(&mut self, name: &str, from: (u64, Stretch), to: (u64, i64)) {
        self.ids += 1;
        let (pid, id) = (self.pid, self.ids);
        let at = |us: i64| self.begin.saturating_add(us);
        let (start, end) = (at(from.1.end.saturating_sub(1)), at(to.1));
        self.flows.push(json!({
            "ph": "s", "name": name, "cat": "swarm", "id": id, "pid": pid, "tid": from.0, "ts": start,
        }));
        self.flows.push(json!({
            "ph": "f", "bp": "e", "name": name, "cat": "swarm", "id": id, "pid": pid, "tid": to.0, "ts": end,
        }));
    }
}

fn lay_out(record: &EpisodeRecord, sheet: &mut Sheet) {
    let lead = sheet.thread(0);
    let mut cursor = 0;
    // Sub-agents whose results the next turn reads.
    let mut joining: Vec<(u64, Stretch)> = Vec::new();
    for turn in turns(record, 0) {
        let at = Stretch::new(cursor, turn.step.t_queue_ms, turn.step.t_end_ms);
        sheet.slice(lead, "model", &format!("turn {}", turn.step.step_idx), at, &model_call(&turn));
        for from in joining.drain(..) {
            sheet.flow("join", from, (lead, at.start));
        }
        let mut critical = None;
        let mut calls: Vec<(&Call<'_>, Stretch)> = Vec::new();
        for call in &turn.calls {
            let mut came_back = Stretch::new(at.end, call.record.t_start_ms, call.record.t_end_ms);
            if let Some(agent) = call.agent {
                let span = lay_agent(record, agent, at.end, sheet);
                let tid = sheet.thread(agent.agent_idx);
                sheet.flow("spawn", (lead, at), (tid, span.start));
                joining.push((tid, span));
                came_back.end = came_back.end.max(span.end);
                if agent.on_critical_path {
                    critical = Some((agent, span));
                }
            }
            calls.push((call, came_back));
        }
        cursor = lay_calls(lead, at.end, calls, sheet);
        critical_path(turn.step, Stretch { start: at.start, end: cursor }, at, critical, sheet);
    }
}

/// Lays out a sub-agent that starts no earlier than `after`; gives its stretch.
fn lay_agent(record: &EpisodeRecord, agent: &AgentRecord, after: i64, sheet: &mut Sheet) -> Stretch {
    let tid = sheet.thread(agent.agent_idx);
    let turns = turns(record, agent.agent_idx);
    // The whole comes before its parts in the file; its end is known after them.
    let place = sheet.slices.len();
    let mut cursor = after;
    for turn in &turns {
        let at = Stretch::new(cursor, turn.step.t_queue_ms, turn.step.t_end_ms);
        sheet.slice(tid, "model", &format!("turn {}", turn.step.step_idx), at, &model_call(turn));
        let calls = turn.calls.iter();
        let calls =
            calls.map(|call| (call, Stretch::new(at.end, call.record.t_start_ms, call.record.t_end_ms)));
        cursor = lay_calls(tid, at.end, calls.collect(), sheet);
    }
    let whole = Stretch {
        start: after,
        end: cursor.max(agent.t_end_ms.saturating_mul(1000)).max(after.saturating_add(1)),
    };
    let args = json!({
        "assigned_prompt": agent.assigned_prompt, "final_message": agent.final_message,
        "finish_reason": agent.finish_reason, "finished": agent.finished, "n_steps": agent.n_steps,
        "policy": agent.policy, "on_critical_path": agent.on_critical_path,
    });
    sheet.slice(tid, "agent", &agent.name, whole, &args);
    if let Some(own) = sheet.slices.pop() {
        sheet.slices.insert(place, own);
    }
    whole
}

/// Lays the calls of a turn out from `after` on, the longest around the others: they run side by side, and slices of one
/// thread may only nest. Gives the end of the last.
fn lay_calls(tid: u64, after: i64, mut calls: Vec<(&Call<'_>, Stretch)>, sheet: &mut Sheet) -> i64 {
    calls.sort_by_key(|(_, at)| std::cmp::Reverse(at.end));
    let last = calls.first().map_or(after, |(_, at)| at.end);
    for (call, at) in calls {
        let args = json!({
            "arguments": call.arguments(), "result": call.result, "error": call.record.error,
            "t_start_ms": call.record.t_start_ms, "t_end_ms": call.record.t_end_ms,
        });
        sheet.slice(tid, "tool", &call.record.name, Stretch { start: after, end: at.end }, &args);
    }
    last
}

fn model_call(turn: &Turn<'_>) -> Value {
    let step = turn.step;
    let read: Vec<Value> =
        turn.before.iter().map(|m| json!({"role": m.role, "content": m.content})).collect();
    json!({
        "read": read, "said": turn.said, "remarks": turn.remarks, "finish_reason": step.finish_reason,
        "stage": step.stage, "s_main": step.s_main, "prompt_tokens": step.n_prompt,
        "completion_tokens": step.n_completion, "temperature": f64::from(step.temperature),
        "policy_version": step.policy_version, "t_queue_ms": step.t_queue_ms, "t_start_ms": step.t_start_ms,
        "t_end_ms": step.t_end_ms,
    })
}

/// The stage on the critical path's track: the orchestrator's turn, then the sub-agent with the most steps or the
/// orchestrator's own calls.
fn critical_path(
    step: &StepRecord,
    whole: Stretch,
    turn: Stretch,
    longest: Option<(&AgentRecord, Stretch)>,
    sheet: &mut Sheet,
) {
    let tid = sheet.critical;
    let sub = longest.map_or(0, |(agent, _)| agent.n_steps);
    let args = json!({"s_main": step.s_main, "s_sub": sub, "critical_steps": step.s_main + sub});
    sheet.slice(tid, "critical", &format!("stage {}", step.stage), whole, &args);
    sheet.slice(tid, "critical", "orchestrator", turn, &json!({"steps": step.s_main}));
    if let Some((agent, span)) = longest {
        let name = format!("{} {}", agent.agent_idx, agent.name);
        sheet.slice(tid, "critical", &name, span, &json!({"steps": agent.n_steps}));
    } else if whole.end > turn.end {
        let own = Stretch { start: turn.end, end: whole.end };
        sheet.slice(tid, "critical", "calls", own, &json!({}));
    }
}
