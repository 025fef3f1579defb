//! The five tables: which columns, out of which fields of a record. `docs/log.md` says what each one means.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float32Array, Int32Array, Int64Array, RecordBatch, StringArray};

use super::columns::{Columns, structure};
use super::record::{EpisodeRecord, TokenBranch, VersionRun};
use crate::RolloutError;

/// A table of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// One row a rollout.
    Episodes,
    /// One row an assignment, the orchestrator included.
    Agents,
    /// One row a model call.
    Steps,
    /// One row a trainable context.
    Tokens,
    /// One row a reward component.
    Rewards,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Episodes, Self::Agents, Self::Steps, Self::Tokens, Self::Rewards];

    /// The folder's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Episodes => "episodes",
            Self::Agents => "agents",
            Self::Steps => "steps",
            Self::Tokens => "tokens",
            Self::Rewards => "rewards",
        }
    }
}

/// What every row of a segment has in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys<'a> {
    pub run_id: &'a str,
    pub attempt: u32,
    pub train_step: u32,
}

/// Rows of one table with the episode that each belongs to.
struct Rows<'a, T>(Vec<(&'a EpisodeRecord, &'a T)>);

impl<'a, T> Rows<'a, T> {
    fn of(records: &'a [EpisodeRecord], rows: impl Fn(&'a EpisodeRecord) -> &'a [T]) -> Self {
        Self(records.iter().flat_map(|e| rows(e).iter().map(move |row| (e, row))).collect())
    }

    fn keys(&self, keys: &Keys<'_>) -> Columns {
        key_columns(keys, &self.0.iter().map(|(e, _)| *e))
    }

    fn map<V>(&self, value: impl Fn(&'a T) -> V) -> impl Iterator<Item = V> {
        self.0.iter().map(move |(_, row)| value(row))
    }
}

fn key_columns<'a>(
    keys: &Keys<'_>,
    episodes: &(impl ExactSizeIterator<Item = &'a EpisodeRecord> + Clone),
) -> Columns {
    let n = episodes.len();
    Columns::default()
        .text("run_id", std::iter::repeat_n(keys.run_id, n))
        .int("attempt", std::iter::repeat_n(keys.attempt, n))
        .int("train_step", std::iter::repeat_n(keys.train_step, n))
        .text("episode_id", episodes.clone().map(|e| &e.episode_id))
}

pub(super) fn batch(
    table: Table,
    keys: &Keys<'_>,
    records: &[EpisodeRecord],
    metadata: &[(String, String)],
) -> Result<RecordBatch, RolloutError> {
    let columns = match table {
        Table::Episodes => episodes(keys, records),
        Table::Agents => agents(keys, records),
        Table::Steps => steps(keys, records),
        Table::Tokens => tokens(keys, records),
        Table::Rewards => rewards(keys, records),
    };
    columns.batch(metadata)
}

fn episodes(keys: &Keys<'_>, records: &[EpisodeRecord]) -> Columns {
    let all = || records.iter();
    let scored = || records.iter().map(|e| e.scored.as_ref());
    key_columns(keys, &all())
        .text("group_id", all().map(|e| &e.group_id))
        .text("env_id", all().map(|e| &e.env_id))
        .text("task_id", all().map(|e| &e.task_id))
        .text("split", all().map(|e| e.split.name()))
        .text("task_kind", all().map(|e| e.task_kind.name()))
        .int("n_items", all().map(|e| e.n_items))
        .long("seed", all().map(|e| e.seed as i64))
        .int("rank", all().map(|_| 0))
        .time("started_at", all().map(|e| e.started_at_us))
        .long("duration_ms", all().map(|e| e.duration_ms))
        .text("status", all().map(|e| e.status.name()))
        .maybe_text("error", all().map(|e| e.error.as_ref()))
        .maybe_text("failure_kind", all().map(|e| e.failure_kind.as_ref()))
        .maybe_flag("success", scored().map(|s| s.map(|s| s.success)))
        .maybe_double("reward", scored().map(|s| s.map(|s| s.reward)))
        .maybe_double("advantage", scored().map(|s| s.and_then(|s| s.advantage)))
        .maybe_double("r_perf", scored().map(|s| s.map(|s| s.r_perf)))
        .maybe_double("r_parallel", scored().map(|s| s.map(|s| s.r_parallel)))
        .maybe_double("r_finish", scored().map(|s| s.map(|s| s.r_finish)))
        .maybe_double("lambda_parallel", scored().map(|s| s.map(|s| s.lambda_parallel)))
        .maybe_double("lambda_finish", scored().map(|s| s.map(|s| s.lambda_finish)))
        .maybe_text("stage", scored().map(|s| s.map(|s| &s.stage)))
        .maybe_text("reward_form", scored().map(|s| s.map(|s| &s.reward_form)))
        .int("n_subagents", all().map(|e| e.n_subagents))
        .int("n_assigned", all().map(|e| e.n_assigned))
        .int("n_finished", all().map(|e| e.n_finished))
        .int("max_concurrent", all().map(|e| e.max_concurrency))
        .int("n_stages", all().map(|e| e.n_stages))
        .int("critical_steps", all().map(|e| e.critical_steps))
        .int("total_steps", all().map(|e| e.total_steps))
        .long("critical_ms", all().map(|e| e.critical_ms))
        .long("total_ms", all().map(|e| e.total_ms))
        .long("prompt_tokens", all().map(|e| e.prompt_tokens as i64))
        .long("completion_tokens", all().map(|e| e.completion_tokens as i64))
        .long("policy_version_min", all().map(|e| e.policy_version_min as i64))
        .long("policy_version_max", all().map(|e| e.policy_version_max as i64))
        .maybe_text("answer", all().map(|e| e.answer.as_ref()))
}

fn agents(keys: &Keys<'_>, records: &[EpisodeRecord]) -> Columns {
    let rows = Rows::of(records, |e| &e.agents);
    rows.keys(keys)
        .int("agent_idx", rows.map(|a| a.agent_idx))
        .maybe_int("parent_idx", rows.map(|a| a.parent_idx))
        .text("name", rows.map(|a| &a.name))
        .text("system_prompt", rows.map(|a| &a.system_prompt))
        .text("policy", rows.map(|a| &a.policy))
        .flag("trainable", rows.map(|a| a.trainable))
        .maybe_int("stage", rows.map(|a| a.stage))
        .text("assigned_prompt", rows.map(|a| &a.assigned_prompt))
        .maybe_text("final_message", rows.map(|a| a.final_message.as_ref()))
        .text("finish_reason", rows.map(|a| &a.finish_reason))
        .flag("finished", rows.map(|a| a.finished))
        .int("n_steps", rows.map(|a| a.n_steps))
        .long("tokens_in", rows.map(|a| a.tokens_in as i64))
        .long("tokens_out", rows.map(|a| a.tokens_out as i64))
        .long("start_tick", rows.map(|a| a.start_tick as i64))
        .long("end_tick", rows.map(|a| a.end_tick as i64))
        .long("t_start_ms", rows.map(|a| a.t_start_ms))
        .long("t_end_ms", rows.map(|a| a.t_end_ms))
        .flag("on_critical_path", rows.map(|a| a.on_critical_path))
}

fn steps(keys: &Keys<'_>, records: &[EpisodeRecord]) -> Columns {
    let rows = Rows::of(records, |e| &e.steps);
    let messages: Vec<_> = rows.0.iter().flat_map(|(_, s)| &s.messages_delta).collect();
    let calls: Vec<_> = rows.0.iter().flat_map(|(_, s)| &s.tool_calls).collect();
    let text = |values: Vec<&str>| -> ArrayRef { Arc::new(StringArray::from(values)) };
    let message_elements = structure(vec![
        ("role", false, text(messages.iter().map(|m| m.role.as_str()).collect())),
        ("content", false, text(messages.iter().map(|m| m.content.as_str()).collect())),
        (
            "tool_call_id",
            true,
            Arc::new(messages.iter().map(|m| m.tool_call_id.as_deref()).collect::<StringArray>()),
        ),
    ]);
    let call_elements = structure(vec![
        ("id", false, text(calls.iter().map(|c| c.id.as_str()).collect())),
        ("name", false, text(calls.iter().map(|c| c.name.as_str()).collect())),
        ("arguments_json", false, text(calls.iter().map(|c| c.arguments_json.as_str()).collect())),
        ("t_start_ms", false, Arc::new(Int64Array::from_iter_values(calls.iter().map(|c| c.t_start_ms)))),
        ("t_end_ms", false, Arc::new(Int64Array::from_iter_values(calls.iter().map(|c| c.t_end_ms)))),
        ("error", false, Arc::new(BooleanArray::from(calls.iter().map(|c| c.error).collect::<Vec<_>>()))),
    ]);
    rows.keys(keys)
        .int("agent_idx", rows.map(|s| s.agent_idx))
        .int("step_idx", rows.map(|s| s.step_idx))
        .int("stage", rows.map(|s| s.stage))
        .int("s_main", rows.map(|s| s.s_main))
        .list("messages_delta", rows.map(|s| s.messages_delta.len()), message_elements)
        .list("tool_calls", rows.map(|s| s.tool_calls.len()), call_elements)
        .text("finish_reason", rows.map(|s| &s.finish_reason))
        .float("temperature", rows.map(|s| s.temperature))
        .int("n_prompt", rows.map(|s| s.n_prompt))
        .int("n_completion", rows.map(|s| s.n_completion))
        .long("t_queue_ms", rows.map(|s| s.t_queue_ms))
        .long("t_start_ms", rows.map(|s| s.t_start_ms))
        .long("t_end_ms", rows.map(|s| s.t_end_ms))
        .long("policy_version", rows.map(|s| s.policy_version as i64))
}

fn tokens(keys: &Keys<'_>, records: &[EpisodeRecord]) -> Columns {
    let rows = Rows::of(records, |e| &e.branches);
    let branches = || rows.0.iter().map(|(_, b)| *b);
    let ints = |values: &dyn Fn(&TokenBranch) -> Vec<u32>| -> ArrayRef {
        Arc::new(Int32Array::from_iter_values(branches().flat_map(values).map(|v| v as i32)))
    };
    let floats = |values: &dyn Fn(&TokenBranch) -> Vec<f32>| -> ArrayRef {
        Arc::new(Float32Array::from_iter_values(branches().flat_map(values)))
    };
    let mask: Vec<bool> = branches().flat_map(|b| b.loss_mask.iter().copied()).collect();
    let runs: Vec<VersionRun> = branches().flat_map(|b| b.policy_versions.iter().copied()).collect();
    let run_elements = structure(vec![
        ("start", false, Arc::new(Int32Array::from_iter_values(runs.iter().map(|r| r.start as i32)))),
        ("end", false, Arc::new(Int32Array::from_iter_values(runs.iter().map(|r| r.end as i32)))),
        ("version", false, Arc::new(Int64Array::from_iter_values(runs.iter().map(|r| r.version as i64)))),
    ]);
    let advantages: Vec<Option<usize>> = branches().map(|b| b.advantages.as_ref().map(Vec::len)).collect();
    rows.keys(keys)
        .int("branch_idx", rows.map(|b| b.branch_idx))
        .list("token_ids", rows.map(|b| b.token_ids.len()), ints(&|b| b.token_ids.clone()))
        .list("loss_mask", rows.map(|b| b.loss_mask.len()), Arc::new(BooleanArray::from(mask)))
        .list("logprobs", rows.map(|b| b.logprobs.len()), floats(&|b| b.logprobs.clone()))
        .list("step_offsets", rows.map(|b| b.step_offsets.len()), ints(&|b| b.step_offsets.clone()))
        .list("temperatures", rows.map(|b| b.temperatures.len()), floats(&|b| b.temperatures.clone()))
        .list("policy_versions", rows.map(|b| b.policy_versions.len()), run_elements)
        .maybe_list("advantages", &advantages, floats(&|b| b.advantages.clone().unwrap_or_default()))
}

fn rewards(keys: &Keys<'_>, records: &[EpisodeRecord]) -> Columns {
    let rows = Rows::of(records, |e| e.scored.as_ref().map_or(&[][..], |s| &s.parts));
    rows.keys(keys)
        .text("component", rows.map(|r| &r.component))
        .double("raw", rows.map(|r| r.raw))
        .double("weight", rows.map(|r| r.weight))
        .double("value", rows.map(|r| r.value))
        .text("source", rows.map(|r| &r.source))
}
