//! Harbor's Agent Trajectory Interchange Format (ATIF) 1.8: the orchestrator's trajectory, with those of its sub-agents
//! embedded and referred to where their results were read.

use parl_rollout::trajectory::record::{AgentRecord, EpisodeRecord, TokenBranch};
use serde_json::{Value, json};

use super::origin::{Origin, PRODUCER};
use crate::transcript::{Call, Turn, turns};

const SCHEMA: &str = "ATIF-v1.8";

/// The trajectory of an episode.
pub fn trajectory(record: &EpisodeRecord, origin: Origin<'_>) -> Value {
    let subagents: Vec<Value> =
        record.agents.iter().filter(|a| a.agent_idx > 0).map(|a| of_agent(record, a, origin)).collect();
    let mut whole = match record.agents.iter().find(|a| a.agent_idx == 0) {
        Some(agent) => of_agent(record, agent, origin),
        None => json!({}),
    };
    if !subagents.is_empty() {
        whole["subagent_trajectories"] = Value::Array(subagents);
    }
    whole["extra"] = episode_figures(record, origin);
    whole
}

/// What resolves a reference to an agent's trajectory.
fn trajectory_id(record: &EpisodeRecord, agent: &AgentRecord) -> String {
    match agent.agent_idx {
        0 => record.episode_id.clone(),
        n => format!("{}/{n}", record.episode_id),
    }
}

fn of_agent(record: &EpisodeRecord, agent: &AgentRecord, origin: Origin<'_>) -> Value {
    let turns = turns(record, agent.agent_idx);
    let branch = record.branches.iter().find(|b| b.branch_idx == agent.agent_idx && agent.trainable);
    let mut steps = Vec::new();
    for (at, turn) in turns.iter().enumerate() {
        for message in &turn.before {
            steps.push(said_to_it(
                &message.role,
                &message.content,
                stamp(record, turn.step.t_queue_ms).as_deref(),
            ));
        }
        steps.push(agent_step(record, turn, branch.and_then(|b| Drawn::of(b, at, turn.step.n_completion))));
    }
    if steps.is_empty() {
        // It ended before a model call: what it was told is all there is.
        let opening = [("system", &agent.system_prompt), ("user", &agent.assigned_prompt)];
        steps.extend(
            opening.map(|(role, text)| said_to_it(role, text, stamp(record, agent.t_start_ms).as_deref())),
        );
    }
    for (step, id) in steps.iter_mut().zip(1..) {
        step["step_id"] = json!(id);
    }
    let calls = turns.iter().map(|t| t.step);
    let metrics = json!({
        "total_prompt_tokens": calls.clone().map(|s| u64::from(s.n_prompt)).sum::<u64>(),
        "total_completion_tokens": calls.map(|s| u64::from(s.n_completion)).sum::<u64>(),
        "total_steps": steps.len(),
    });
    json!({
        "schema_version": SCHEMA,
        "session_id": origin.run_id,
        "trajectory_id": trajectory_id(record, agent),
        "agent": {
            "name": agent.name, "version": PRODUCER, "model_name": agent.policy,
            "extra": {
                "agent_idx": agent.agent_idx, "trainable": agent.trainable, "stage": agent.stage,
                "finish_reason": agent.finish_reason, "finished": agent.finished, "n_steps": agent.n_steps,
                "on_critical_path": agent.on_critical_path, "final_message": agent.final_message,
            },
        },
        "steps": steps,
        "final_metrics": metrics,
    })
}

/// A step in which the agent was told something.
fn said_to_it(role: &str, text: &str, timestamp: Option<&str>) -> Value {
    let source = if role == "system" { "system" } else { "user" };
    json!({"step_id": 0, "timestamp": timestamp, "source": source, "message": text})
}

fn agent_step(record: &EpisodeRecord, turn: &Turn<'_>, drawn: Option<Drawn<'_>>) -> Value {
    let step = turn.step;
    let mut metrics = json!({
        "prompt_tokens": step.n_prompt,
        "completion_tokens": step.n_completion,
        "extra": {"temperature": f64::from(step.temperature), "policy_version": step.policy_version},
    });
    if let Some(drawn) = drawn {
        metrics["prompt_token_ids"] = json!(drawn.prompt);
        metrics["completion_token_ids"] = json!(drawn.completion);
        metrics["logprobs"] = json!(drawn.logprobs);
    }
    let mut whole = json!({
        "step_id": 0, "timestamp": stamp(record, step.t_end_ms), "source": "agent", "message": turn.said,
        "metrics": metrics, "llm_call_count": 1,
        "extra": {"stage": step.stage, "s_main": step.s_main, "finish_reason": step.finish_reason},
    });
    if !turn.calls.is_empty() {
        let calls = turn.calls.iter().map(|call| {
            let (id, name) = (&call.record.id, &call.record.name);
            json!({"tool_call_id": id, "function_name": name, "arguments": call.arguments()})
        });
        whole["tool_calls"] = calls.collect();
    }
    let remarks = turn.remarks.iter().map(|text| json!({"content": text}));
    let results: Vec<Value> =
        turn.calls.iter().filter_map(|call| result(record, call)).chain(remarks).collect();
    if !results.is_empty() {
        whole["observation"] = json!({"results": results});
    }
    whole
}

/// What came of a call: its text, the agent that it set to work, or nothing that the log knows.
fn result(record: &EpisodeRecord, call: &Call<'_>) -> Option<Value> {
    if call.result.is_none() && call.agent.is_none() {
        return None;
    }
    let mut result = json!({"source_call_id": call.record.id, "content": call.result});
    if let Some(agent) = call.agent {
        result["subagent_trajectory_ref"] = json!([{"trajectory_id": trajectory_id(record, agent)}]);
    }
    Some(result)
}

/// The tokens of one model call.
struct Drawn<'a> {
    prompt: &'a [u32],
    completion: &'a [u32],
    logprobs: &'a [f32],
}

impl<'a> Drawn<'a> {
    /// Those of the call number `at` of a context; `None` where the row does not hold them.
    fn of(branch: &'a TokenBranch, at: usize, n: u32) -> Option<Self> {
        let start = *branch.step_offsets.get(at)? as usize;
        let end = start.checked_add(n as usize)?;
        Some(Self {
            prompt: branch.token_ids.get(..start)?,
            completion: branch.token_ids.get(start..end)?,
            logprobs: branch.logprobs.get(start..end)?,
        })
    }
}

fn episode_figures(record: &EpisodeRecord, origin: Origin<'_>) -> Value {
    let rewards: serde_json::Map<String, Value> = record
        .scored
        .iter()
        .flat_map(|s| &s.parts)
        .map(|p| (p.component.clone(), json!({"raw": p.raw, "weight": p.weight, "value": p.value})))
        .collect();
    let scored = record.scored.as_ref();
    json!({
        "train_step": origin.step, "group_id": record.group_id, "env_id": record.env_id, "task_id": record.task_id,
        "split": record.split.name(), "task_kind": record.task_kind.name(), "n_items": record.n_items,
        "status": record.status.name(), "error": record.error, "failure_kind": record.failure_kind,
        "answer": record.answer, "success": scored.map(|s| s.success), "reward": scored.map(|s| s.reward),
        "advantage": scored.and_then(|s| s.advantage), "rewards": rewards,
        "critical_steps": record.critical_steps, "total_steps": record.total_steps,
    })
}

/// A moment of the episode as RFC 3339 has it; `None` for one that no calendar has.
fn stamp(record: &EpisodeRecord, ms: i64) -> Option<String> {
    let us = record.started_at_us.checked_add(ms.checked_mul(1000)?)?;
    Some(jiff::Timestamp::from_microsecond(us).ok()?.to_string())
}
