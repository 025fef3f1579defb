//! Episodes as the verifiers library saves them: a trace for each agent, and in a trace a chain of messages each of
//! which holds the tokens that it added to the context.

use std::cmp::Reverse;
use std::ops::Range;

use parl_rollout::trajectory::record::{
    AgentRecord, EpisodeRecord, MessageRecord, Status, StepRecord, TokenBranch,
};
use serde_json::{Map, Value, json};

use super::origin::{Origin, PRODUCER};

/// Version of the trace's schema.
const TRACE_VERSION: u32 = 1;

/// The line of an episode; `opens` says whether a message of a context begins with an id.
pub fn episode(record: &EpisodeRecord, origin: Origin<'_>, opens: &dyn Fn(u32) -> bool) -> Value {
    let task = task(record);
    // In the order in which they ended; the orchestrator is last whatever the clock says.
    let mut agents: Vec<&AgentRecord> = record.agents.iter().collect();
    agents.sort_by_key(|a| (Reverse(a.agent_idx.min(1)), a.t_end_ms, a.agent_idx));
    let traces: Vec<Value> = agents.into_iter().map(|agent| trace(record, agent, &task, opens)).collect();
    json!({
        "id": record.episode_id,
        "env": {"id": record.env_id},
        "task": task,
        "group": {"id": record.group_id},
        "run": {
            "type": "train", "id": origin.run_id,
            "work": {
                "type": "train", "step": origin.step,
                "policy": {"start": record.policy_version_min, "end": record.policy_version_max},
            },
        },
        "ok": record.status != Status::Error,
        "is_timeout": record.failure_kind.as_deref() == Some("deadline"),
        "errors": errors(record.error.as_deref(), "infrastructure"),
        "traces": traces,
    })
}

fn task(record: &EpisodeRecord) -> Value {
    let orchestrator = record.agents.iter().find(|a| a.agent_idx == 0);
    json!({
        "type": record.env_id,
        "key": record.task_id,
        "data": {
            "id": record.task_id, "prompt": orchestrator.map(|a| &a.assigned_prompt),
            "system_prompt": orchestrator.map(|a| &a.system_prompt), "kind": record.task_kind.name(),
            "n_items": record.n_items, "split": record.split.name(),
        },
    })
}

fn errors(message: Option<&str>, kind: &str) -> Value {
    message.iter().map(|text| json!({"type": kind, "message": text})).collect()
}

fn trace(record: &EpisodeRecord, agent: &AgentRecord, task: &Value, opens: &dyn Fn(u32) -> bool) -> Value {
    let steps: Vec<&StepRecord> = record.steps.iter().filter(|s| s.agent_idx == agent.agent_idx).collect();
    let context = record.branches.iter().find(|b| b.branch_idx == agent.agent_idx);
    let spans = context.and_then(|branch| spans(branch, &steps, opens));
    let mut nodes: Vec<Value> = Vec::new();
    let mut calls: Vec<Value> = Vec::new();
    for step in &steps {
        for message in &step.messages_delta {
            let mut node = Map::new();
            node.insert("parent".to_owned(), json!(nodes.len().checked_sub(1)));
            node.insert("message".to_owned(), said(message, step));
            node.insert("sampled".to_owned(), json!(message.role == "assistant"));
            node.insert("timestamp".to_owned(), json!(seconds(record, step.t_end_ms)));
            if let (Some(branch), Some(span)) = (context, spans.as_ref().and_then(|s| s.get(nodes.len()))) {
                tokens(branch, span.clone(), agent.trainable, &mut node);
            }
            nodes.push(Value::Object(node));
        }
        calls.push(call(record, agent, step, nodes.len().checked_sub(1)));
    }
    let failed = agent.final_message.is_none().then_some(agent.finish_reason.as_str());
    json!({
        "version": TRACE_VERSION,
        "id": format!("{}-a{}", record.episode_id, agent.agent_idx),
        "verifiers": {"version": PRODUCER},
        "task": task,
        "agent": {"config": {"model": agent.policy}, "name": agent.name, "trainable": agent.trainable},
        "nodes": nodes,
        "calls": calls,
        "rewards": if agent.agent_idx == 0 { rewards(record) } else { json!({}) },
        "metrics": if agent.agent_idx == 0 { metrics(record) } else { json!({"n_steps": f64::from(agent.n_steps)}) },
        "info": {
            "agent_idx": agent.agent_idx, "parent_idx": agent.parent_idx, "stage": agent.stage,
            "assigned_prompt": agent.assigned_prompt, "final_message": agent.final_message,
            "finished": agent.finished, "on_critical_path": agent.on_critical_path,
        },
        "is_completed": true,
        "ok": record.status != Status::Error,
        "stop_condition": agent.finish_reason,
        "is_timeout": agent.finish_reason == "deadline",
        "errors": errors(failed, "agent"),
        "timing": {
            "start": seconds(record, agent.t_start_ms),
            "agent": {"start": seconds(record, agent.t_start_ms), "end": seconds(record, agent.t_end_ms)},
        },
    })
}

fn said(message: &MessageRecord, step: &StepRecord) -> Value {
    match message.role.as_str() {
        "assistant" => {
            let calls = step.tool_calls.iter();
            let calls = calls.map(|c| json!({"id": c.id, "name": c.name, "arguments": c.arguments_json}));
            let calls: Vec<Value> = calls.collect();
            let calls = if calls.is_empty() { Value::Null } else { Value::Array(calls) };
            json!({"role": "assistant", "content": message.content, "tool_calls": calls})
        }
        "tool" => {
            let id = message.tool_call_id.as_deref().unwrap_or_default();
            json!({"role": "tool", "tool_call_id": id, "content": message.content})
        }
        "system" => json!({"role": "system", "content": message.content}),
        _ => json!({"role": "user", "content": message.content}),
    }
}

/// Ids, mask, and over the drawn ids log-probs and advantages. What is not trained has no log-probs worth the name: a
/// script has none at all.
fn tokens(branch: &TokenBranch, span: Range<usize>, trainable: bool, node: &mut Map<String, Value>) {
    let (Some(ids), Some(mask)) = (branch.token_ids.get(span.clone()), branch.loss_mask.get(span.clone()))
    else {
        return;
    };
    node.insert("token_ids".to_owned(), json!(ids));
    node.insert("mask".to_owned(), json!(mask));
    let drawn = |all: &[f32]| -> Option<Vec<f32>> {
        let values = all.get(span.clone())?;
        Some(values.iter().zip(mask).filter(|(_, drawn)| **drawn).map(|(value, _)| *value).collect())
    };
    if trainable && mask.contains(&true) {
        node.insert("logprobs".to_owned(), json!(drawn(&branch.logprobs)));
        node.insert("advantages".to_owned(), json!(branch.advantages.as_deref().and_then(drawn)));
    }
}

/// Which ids of a context each message of its steps added, in the order of the messages; `None` for a context that its
/// steps do not tell of.
///
/// What the template puts before a drawn turn belongs to the turn. The end that it puts after a turn that was cut
/// belongs to the message after it, so that the drawn ids are a turn's last.
fn spans(
    branch: &TokenBranch,
    steps: &[&StepRecord],
    opens: &dyn Fn(u32) -> bool,
) -> Option<Vec<Range<usize>>> {
    let mut spans = Vec::new();
    let mut at = 0;
    for (number, step) in steps.iter().enumerate() {
        let (drawn, read) = step.messages_delta.split_last()?;
        if drawn.role != "assistant" {
            return None;
        }
        let start = *branch.step_offsets.get(number)? as usize;
        let mut end = start.checked_add(step.n_completion as usize)?;
        if number + 1 == steps.len() {
            end = branch.token_ids.len();
        }
        let gap = branch.token_ids.get(at..start)?;
        let begins = gap.iter().enumerate().filter(|(_, id)| opens(**id)).map(|(i, _)| at + i);
        let mut begins: Vec<usize> = begins.collect();
        if begins.len() != read.len() + 1 {
            return None;
        }
        begins[0] = at;
        spans.extend(begins.windows(2).map(|pair| pair[0]..pair[1]));
        spans.push(begins[read.len()]..end);
        at = end;
    }
    Some(spans)
}

fn call(record: &EpisodeRecord, agent: &AgentRecord, step: &StepRecord, node: Option<usize>) -> Value {
    let finish_reason = match step.finish_reason.as_str() {
        "stop" if !step.tool_calls.is_empty() => Some("tool_calls"),
        "stop" => Some("stop"),
        "length" => Some("length"),
        _ => None,
    };
    json!({
        "node": node,
        "model": agent.policy,
        "sampling": {"temperature": f64::from(step.temperature)},
        "finish_reason": finish_reason,
        "usage": {"prompt_tokens": step.n_prompt, "completion_tokens": step.n_completion},
        "time": {"start": seconds(record, step.t_queue_ms), "end": seconds(record, step.t_end_ms)},
    })
}

fn rewards(record: &EpisodeRecord) -> Value {
    let parts = record.scored.iter().flat_map(|s| &s.parts);
    Value::Object(parts.map(|p| (p.component.clone(), json!({"score": p.raw, "weight": p.weight}))).collect())
}

fn metrics(record: &EpisodeRecord) -> Value {
    json!({
        "success": record.scored.as_ref().map(|s| f64::from(u8::from(s.success))),
        "critical_steps": f64::from(record.critical_steps),
        "total_steps": f64::from(record.total_steps),
        "n_assigned": f64::from(record.n_assigned),
        "n_finished": f64::from(record.n_finished),
    })
}

/// A moment of the episode in seconds since 1970.
fn seconds(record: &EpisodeRecord, ms: i64) -> f64 {
    record.started_at_us as f64 / 1e6 + ms as f64 / 1e3
}
