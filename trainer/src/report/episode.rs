//! An episode as the page draws it: who worked when, by the clock and by critical steps, and (apart, because it is
//! long and seldom read) what was said.

use parl_rewards::critical::Stage;
use parl_rollout::RolloutError;
use parl_rollout::dialect::Dialect;
use parl_rollout::trajectory::record::{AgentRecord, EpisodeRecord, RewardPart, StepRecord, TokenBranch};
use serde::Serialize;

use super::series::rounded;

/// Characters of a question or an answer that stand at the episode's head; the agents' texts have them whole.
const HEAD_CHARS: usize = 600;

/// An episode without its texts.
#[derive(Debug, Serialize)]
pub struct EpisodeView {
    /// Unique in the run.
    pub id: String,
    /// Training step, from 0.
    pub step: u32,
    /// What it is shown for.
    pub shown_for: String,
    /// The task.
    pub task_id: String,
    /// Its kind.
    pub kind: &'static str,
    /// Items, hops or parts.
    pub n_items: u32,
    /// How it ended.
    pub status: &'static str,
    /// The policy's own failure.
    pub failure_kind: Option<String>,
    /// Infrastructure's words.
    pub error: Option<String>,
    /// What was asked, cut.
    pub question: String,
    /// The final answer, cut.
    pub answer: Option<String>,
    /// Every item right; `None` where it was not scored.
    pub success: Option<bool>,
    /// `None` where it was not scored.
    pub reward: Option<f64>,
    /// `None` where it was never compared.
    pub advantage: Option<f64>,
    /// The reward's components.
    pub parts: Vec<RewardPart>,
    /// Assignments made.
    pub n_assigned: u32,
    /// Of these, finished.
    pub n_finished: u32,
    /// Most assignments at once.
    pub max_concurrent: u32,
    /// Σ over stages of (Σ S_main + max n_steps).
    pub critical_steps: u32,
    /// Steps of all agents.
    pub total_steps: u32,
    /// Milliseconds by the clock.
    pub duration_ms: i64,
    /// Milliseconds of all agents together.
    pub total_ms: i64,
    /// Tokens drawn by all agents.
    pub completion_tokens: u64,
    /// Names of the tools called, which `Calls::tool` points into.
    pub tools: Vec<String>,
    /// Where each stage lies on the axis of critical steps.
    pub stages: Vec<StageSpan>,
    /// In order of `idx`.
    pub agents: Vec<AgentView>,
}

/// A stage on the axis of critical steps: the orchestrator's own, then its longest sub-agent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StageSpan {
    /// Number of the stage.
    pub stage: u32,
    /// Where it begins.
    pub from: u64,
    /// Where its sub-agents begin.
    pub sub: u64,
    /// Where it ends.
    pub to: u64,
}

/// An agent's bars. Times are milliseconds since the episode began.
#[derive(Debug, Serialize)]
pub struct AgentView {
    /// 0 is the orchestrator.
    pub idx: u32,
    /// Name of the configuration.
    pub name: String,
    /// `None` for the orchestrator.
    pub stage: Option<u32>,
    /// `done`, or why not.
    pub finish_reason: String,
    /// Whether it counts as finished.
    pub finished: bool,
    /// Environment calls.
    pub n_steps: u32,
    /// Tokens put into its context.
    pub tokens_in: u64,
    /// Tokens that it drew.
    pub tokens_out: u64,
    /// When it began and ended.
    pub time: [i64; 2],
    /// Whether it is its stage's longest.
    pub critical: bool,
    /// Its model calls, in order, as columns.
    pub steps: Steps,
    /// Its tool calls, in order, as columns.
    pub calls: Calls,
}

/// Model calls as columns.
#[derive(Debug, Default, Serialize)]
pub struct Steps {
    /// When each was asked for.
    pub start: Vec<i64>,
    /// When each was complete.
    pub end: Vec<i64>,
    /// Where each begins on the axis of critical steps.
    pub from: Vec<u64>,
    /// Where each ends there; calls that cost nothing end where they begin.
    pub to: Vec<u64>,
    /// Tokens drawn.
    pub drawn: Vec<u32>,
}

/// Tool calls as columns.
#[derive(Debug, Default, Serialize)]
pub struct Calls {
    /// Index of the model call that made each.
    pub of: Vec<u32>,
    /// When each began.
    pub start: Vec<i64>,
    /// When each came back.
    pub end: Vec<i64>,
    /// Index of its tool in the episode's list.
    pub tool: Vec<usize>,
    /// 1 where it came back with an error.
    pub error: Vec<u8>,
}

/// What an agent read and said.
#[derive(Debug, Serialize)]
pub struct AgentTexts<'r> {
    /// Policy and hash.
    pub policy: &'r str,
    /// Its system prompt.
    pub system_prompt: &'r str,
    /// What it was asked.
    pub assigned_prompt: &'r str,
    /// Its one final message.
    pub final_message: Option<&'r str>,
    /// Its model calls.
    pub steps: Vec<StepTexts<'r>>,
    /// The token ids of its context, spelt out; the orchestrator's alone are kept.
    pub tokens: Vec<BranchTexts>,
}

/// What a model call read and said.
#[derive(Debug, Serialize)]
pub struct StepTexts<'r> {
    /// (role, text, id of the call that it answers).
    pub messages: Vec<(&'r str, &'r str, Option<&'r str>)>,
    /// (id, tool, arguments as JSON).
    pub calls: Vec<(&'r str, &'r str, &'r str)>,
    /// `stop`, `length`, …
    pub finish: &'r str,
    /// Temperature.
    pub temperature: f64,
    /// Tokens in the context when it started.
    pub n_prompt: u32,
    /// Version of the weights.
    pub version: u64,
}

/// A context, token by token.
#[derive(Debug, Serialize)]
pub struct BranchTexts {
    /// The text that each token adds.
    pub pieces: Vec<String>,
    /// `1` where the policy drew the token of its own accord, `0` elsewhere; a digit a token.
    pub mask: String,
    /// Log-probs, nats.
    pub logprobs: Vec<f64>,
    /// First drawn token of each model call.
    pub offsets: Vec<u32>,
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(HEAD_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Where each stage lies on the axis of critical steps; the last one ends at the episode's critical steps.
fn stage_spans(record: &EpisodeRecord) -> Vec<StageSpan> {
    let mut at = 0;
    let span = |(stage, costs): (u32, Stage)| {
        let from = at;
        let sub = from + u64::from(costs.s_main);
        at = sub + u64::from(costs.longest());
        StageSpan { stage, from, sub, to: at }
    };
    record.stages().into_iter().map(span).collect()
}

/// Lays an agent's model calls on the axis of critical steps.
fn lay(agent: &AgentRecord, steps: &[&StepRecord], stages: &[StageSpan]) -> (Vec<u64>, Vec<u64>) {
    let span = |stage: u32| stages.iter().find(|s| s.stage == stage);
    let mut at = agent.stage.and_then(span).map_or(0, |s| s.sub);
    // Refused calls cost nothing, so an agent may have made more calls than it has steps.
    let mut left = u64::from(agent.n_steps);
    let mut of_stage = None;
    let mut places = (Vec::new(), Vec::new());
    for step in steps {
        let cost = if agent.stage.is_some() {
            let calls = (step.tool_calls.len() as u64).min(left);
            left -= calls;
            calls
        } else {
            if of_stage != Some(step.stage) {
                of_stage = Some(step.stage);
                at = span(step.stage).map_or(at, |s| s.from);
            }
            u64::from(step.s_main)
        };
        places.0.push(at);
        at += cost;
        places.1.push(at);
    }
    places
}

/// The view of an episode of training step `step`.
pub fn view(step: u32, record: &EpisodeRecord, shown_for: &str) -> EpisodeView {
    let stages = stage_spans(record);
    let mut tools: Vec<String> = Vec::new();
    let mut agents: Vec<&AgentRecord> = record.agents.iter().collect();
    agents.sort_by_key(|a| a.agent_idx);
    let views =
        agents.iter().map(|agent| agent_view(agent, &steps_of(record, agent.agent_idx), &stages, &mut tools));
    let views = views.collect();
    let scored = record.scored.as_ref();
    let question = agents.first().map_or("", |a| a.assigned_prompt.as_str());
    EpisodeView {
        id: record.episode_id.clone(),
        step,
        shown_for: shown_for.to_owned(),
        task_id: record.task_id.clone(),
        kind: record.task_kind.name(),
        n_items: record.n_items,
        status: record.status.name(),
        failure_kind: record.failure_kind.clone(),
        error: record.error.clone(),
        question: cut(question),
        answer: record.answer.as_deref().map(cut),
        success: scored.map(|s| s.success),
        reward: scored.map(|s| s.reward),
        advantage: scored.and_then(|s| s.advantage),
        parts: scored.map(|s| s.parts.clone()).unwrap_or_default(),
        n_assigned: record.n_assigned,
        n_finished: record.n_finished,
        max_concurrent: record.max_concurrency,
        critical_steps: record.critical_steps,
        total_steps: record.total_steps,
        duration_ms: record.duration_ms,
        total_ms: record.total_ms,
        completion_tokens: record.completion_tokens,
        tools,
        stages,
        agents: views,
    }
}

fn steps_of(record: &EpisodeRecord, agent: u32) -> Vec<&StepRecord> {
    let mut steps: Vec<&StepRecord> = record.steps.iter().filter(|s| s.agent_idx == agent).collect();
    steps.sort_by_key(|s| s.step_idx);
    steps
}

fn agent_view(
    agent: &AgentRecord,
    steps: &[&StepRecord],
    stages: &[StageSpan],
    tools: &mut Vec<String>,
) -> AgentView {
    let (from, to) = lay(agent, steps, stages);
    let mut calls = Calls::default();
    for (of, step) in steps.iter().enumerate() {
        for call in &step.tool_calls {
            let tool = tools.iter().position(|name| *name == call.name).unwrap_or_else(|| {
                tools.push(call.name.clone());
                tools.len() - 1
            });
            calls.of.push(of as u32);
            calls.start.push(call.t_start_ms);
            calls.end.push(call.t_end_ms);
            calls.tool.push(tool);
            calls.error.push(u8::from(call.error));
        }
    }
    AgentView {
        idx: agent.agent_idx,
        name: agent.name.clone(),
        stage: agent.stage,
        finish_reason: agent.finish_reason.clone(),
        finished: agent.finished,
        n_steps: agent.n_steps,
        tokens_in: agent.tokens_in,
        tokens_out: agent.tokens_out,
        time: [agent.t_start_ms, agent.t_end_ms],
        critical: agent.on_critical_path,
        steps: Steps {
            start: steps.iter().map(|s| s.t_queue_ms).collect(),
            end: steps.iter().map(|s| s.t_end_ms).collect(),
            from,
            to,
            drawn: steps.iter().map(|s| s.n_completion).collect(),
        },
        calls,
    }
}

/// What an agent read and said; `None` for an agent that the episode does not have. Without a dialect, tokens are
/// shown by their ids.
pub fn texts<'r>(record: &'r EpisodeRecord, agent: u32, dialect: Option<&Dialect>) -> Option<AgentTexts<'r>> {
    let who = record.agents.iter().find(|a| a.agent_idx == agent)?;
    let step = |step: &&'r StepRecord| StepTexts {
        messages: step
            .messages_delta
            .iter()
            .map(|m| (m.role.as_str(), m.content.as_str(), m.tool_call_id.as_deref()))
            .collect(),
        calls: step
            .tool_calls
            .iter()
            .map(|c| (c.id.as_str(), c.name.as_str(), c.arguments_json.as_str()))
            .collect(),
        finish: &step.finish_reason,
        temperature: rounded(f64::from(step.temperature)),
        n_prompt: step.n_prompt,
        version: step.policy_version,
    };
    let branches = if agent == 0 { record.branches.as_slice() } else { &[] };
    Some(AgentTexts {
        policy: &who.policy,
        system_prompt: &who.system_prompt,
        assigned_prompt: &who.assigned_prompt,
        final_message: who.final_message.as_deref(),
        steps: steps_of(record, agent).iter().map(step).collect(),
        tokens: branches.iter().map(|branch| spelt(branch, dialect)).collect(),
    })
}

fn spelt(branch: &TokenBranch, dialect: Option<&Dialect>) -> BranchTexts {
    let pieces =
        dialect.ok_or(RolloutError::Tokenizer(String::new())).and_then(|d| d.pieces(&branch.token_ids));
    let ids = || branch.token_ids.iter().map(|id| format!("#{id} ")).collect();
    BranchTexts {
        pieces: pieces.unwrap_or_else(|_| ids()),
        mask: branch.loss_mask.iter().map(|drawn| if *drawn { '1' } else { '0' }).collect(),
        logprobs: branch.logprobs.iter().map(|l| rounded(f64::from(*l))).collect(),
        offsets: branch.step_offsets.clone(),
    }
}
