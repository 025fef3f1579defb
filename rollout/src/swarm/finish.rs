//! From a finished episode to its record.

use super::Moment;
use super::agent::Agent;
use super::episode::Episode;
use crate::RolloutError;
use crate::policy::Identity;
use crate::trajectory::record::{AgentRecord, EpisodeRecord, StepRecord, TokenBranch};
use parl_rewards::critical::{critical_steps, total_steps};

/// Who sat in the two seats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seats {
    pub orchestrator: Identity,
    pub subagent: Identity,
}

impl Episode<'_> {
    /// The record of an episode that is over. `epoch_us` is the wall clock at which the rollout began,
    /// microseconds since 1970.
    pub(super) fn into_record(
        self,
        seats: &Seats,
        epoch_us: i64,
        keep_subagent_contexts: bool,
    ) -> Result<EpisodeRecord, RolloutError> {
        let Some(outcome) = self.outcome else {
            return Err(RolloutError::Internal(format!("episode {} is not over", self.spec.episode_id)));
        };
        let began = self.began;
        let longest = longest_of_stages(&self.agents, self.stages.len());
        let ended = self.agents.iter().map(|a| a.ended.ms).max().unwrap_or(began.ms);
        let agents: Vec<AgentRecord> = self
            .agents
            .iter()
            .map(|a| {
                agent_record(
                    a,
                    if a.idx == 0 { &seats.orchestrator } else { &seats.subagent },
                    &longest,
                    began,
                )
            })
            .collect();
        let orchestrator_branch = self.agents[0].branch.clone();
        let kept = if keep_subagent_contexts { self.agents.len() } else { 1 };
        let branches = self.agents[..kept]
            .iter()
            .map(|a| TokenBranch { branch_idx: a.idx, ..a.branch.clone() })
            .collect();
        let versions = || orchestrator_branch.policy_versions.iter().map(|v| v.version);
        let assigned: Vec<&AgentRecord> = agents.iter().skip(1).collect();
        let concurrent = |stage: u32| assigned.iter().filter(|a| a.stage == Some(stage)).count() as u32;
        let n_stages = self.stages.len() as u32;
        Ok(EpisodeRecord {
            seed: self.spec.stream_id,
            started_at_us: epoch_us + began.ms * 1000,
            duration_ms: ended - began.ms,
            status: outcome.status,
            error: outcome.error,
            failure_kind: outcome.failure.map(str::to_owned),
            answer: outcome.answer,
            scored: None,
            n_subagents: self.agents[0]
                .messages
                .iter()
                .filter(|m| m.call_id.is_some() && m.text == super::observation::READY)
                .count() as u32,
            n_assigned: assigned.len() as u32,
            n_finished: assigned.iter().filter(|a| a.finished).count() as u32,
            max_concurrency: (0..n_stages).map(concurrent).max().unwrap_or(0),
            n_stages,
            critical_steps: critical_steps(&self.stages) as u32,
            total_steps: total_steps(&self.stages) as u32,
            critical_ms: ended - began.ms,
            total_ms: agents.iter().map(|a| a.t_end_ms - a.t_start_ms).sum(),
            prompt_tokens: agents.iter().map(|a| a.tokens_in).sum(),
            completion_tokens: agents.iter().map(|a| a.tokens_out).sum(),
            policy_version_min: versions().min().unwrap_or(0),
            policy_version_max: versions().max().unwrap_or(0),
            steps: self.agents.iter().flat_map(|a| a.steps.iter().map(|s| relative(s, began))).collect(),
            branches,
            agents,
            episode_id: self.spec.episode_id,
            group_id: self.spec.group_id,
            env_id: self.spec.env_id,
            task_id: self.spec.task.id.clone(),
            split: self.spec.task.split,
            task_kind: self.spec.task.kind,
            n_items: self.spec.task.n_items,
        })
    }
}

/// For each stage, the index of the sub-agent with the most steps (the first of equals).
fn longest_of_stages(agents: &[Agent], stages: usize) -> Vec<Option<u32>> {
    let mut longest: Vec<Option<(u32, u32)>> = vec![None; stages];
    for agent in agents {
        let Some(slot) = agent.stage.and_then(|s| longest.get_mut(s as usize)) else { continue };
        if slot.is_none_or(|(_, steps)| agent.steps_used > steps) {
            *slot = Some((agent.idx, agent.steps_used));
        }
    }
    longest.into_iter().map(|slot| slot.map(|s| s.0)).collect()
}

fn agent_record(agent: &Agent, identity: &Identity, longest: &[Option<u32>], began: Moment) -> AgentRecord {
    let done = agent.finish_reason == Some("done");
    AgentRecord {
        agent_idx: agent.idx,
        parent_idx: (agent.idx > 0).then_some(0),
        name: agent.name.clone(),
        system_prompt: agent.system_prompt.clone(),
        policy: identity.name.clone(),
        trainable: identity.trainable,
        stage: agent.stage,
        assigned_prompt: agent.prompt.clone(),
        final_message: agent.final_message.clone(),
        finish_reason: agent.finish_reason.unwrap_or("running").to_owned(),
        // An orchestrator may answer out of its own head; an assignment without an environment call is no work.
        finished: done && (agent.idx == 0 || agent.steps_used > 0),
        n_steps: agent.steps_used,
        tokens_in: agent.tokens_in,
        tokens_out: agent.tokens_out,
        start_tick: agent.started.tick,
        end_tick: agent.ended.tick,
        t_start_ms: agent.started.ms - began.ms,
        t_end_ms: agent.ended.ms - began.ms,
        on_critical_path: agent
            .stage
            .is_none_or(|s| longest.get(s as usize).copied().flatten() == Some(agent.idx)),
    }
}

fn relative(step: &StepRecord, began: Moment) -> StepRecord {
    let mut step = step.clone();
    for ms in [&mut step.t_queue_ms, &mut step.t_start_ms, &mut step.t_end_ms] {
        *ms -= began.ms;
    }
    for call in &mut step.tool_calls {
        call.t_start_ms -= began.ms;
        call.t_end_ms -= began.ms;
    }
    step
}
