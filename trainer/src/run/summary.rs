//! Key figures of a batch of episodes, in all and by kind of task.

use std::collections::BTreeMap;

use parl_rollout::trajectory::record::{AgentRecord, EpisodeRecord};
use serde::{Deserialize, Serialize};

/// Means over episodes. Shares and rewards are from 0 to 1; steps and agents are per episode.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Episodes that were scored.
    pub episodes: usize,
    /// Share with every item right.
    pub success: f64,
    /// Mean r_perf.
    pub r_perf: f64,
    /// Mean r_parallel.
    pub r_parallel: f64,
    /// Mean r_finish over episodes that assigned work; 0 where none did.
    pub finish_rate: f64,
    /// Mean r_finish over all episodes.
    pub r_finish: f64,
    /// Share of failed assignments whose work was assigned again in a later stage; 0 where none failed.
    pub retry_rate: f64,
    /// Mean reward.
    pub reward: f64,
    /// Mean critical steps.
    pub critical_steps: f64,
    /// Mean steps of all agents.
    pub total_steps: f64,
    /// Mean assignments.
    pub agents: f64,
    /// Share of episodes that assigned nothing.
    pub serial: f64,
    /// Mean tokens that the orchestrator's context holds.
    pub context_tokens: f64,
}

impl Figures {
    /// Figures of the scored ones among `records`.
    pub fn of<'a>(records: impl Iterator<Item = &'a EpisodeRecord>) -> Self {
        let mut sum = Self::default();
        let mut assigned = 0usize;
        let (mut failed, mut retried) = (0usize, 0usize);
        for (record, scored) in records.filter_map(|r| r.scored.as_ref().map(|s| (r, s))) {
            sum.episodes += 1;
            sum.success += f64::from(u8::from(scored.success));
            sum.r_perf += scored.r_perf;
            sum.r_parallel += scored.r_parallel;
            sum.r_finish += scored.r_finish;
            sum.reward += scored.reward;
            sum.critical_steps += f64::from(record.critical_steps);
            sum.total_steps += f64::from(record.total_steps);
            sum.agents += f64::from(record.n_assigned);
            sum.serial += f64::from(u8::from(record.n_assigned == 0));
            sum.context_tokens += record.branches.first().map_or(0, |b| b.token_ids.len()) as f64;
            for agent in record.agents.iter().filter(|a| a.stage.is_some() && !a.finished) {
                failed += 1;
                let same =
                    |a: &&AgentRecord| a.assigned_prompt == agent.assigned_prompt && a.stage > agent.stage;
                retried += usize::from(record.agents.iter().any(|a| same(&a)));
            }
            if record.n_assigned > 0 {
                assigned += 1;
                sum.finish_rate += scored.r_finish;
            }
        }
        let n = sum.episodes.max(1) as f64;
        for mean in [
            &mut sum.success,
            &mut sum.r_perf,
            &mut sum.r_parallel,
            &mut sum.r_finish,
            &mut sum.reward,
            &mut sum.critical_steps,
            &mut sum.total_steps,
            &mut sum.agents,
            &mut sum.serial,
            &mut sum.context_tokens,
        ] {
            *mean /= n;
        }
        sum.finish_rate /= assigned.max(1) as f64;
        sum.retry_rate = retried as f64 / failed.max(1) as f64;
        sum
    }
}

/// Figures in all, by kind, and of wide and mixed tasks by number of items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Over all episodes.
    pub all: Figures,
    /// By kind of task.
    pub by_kind: BTreeMap<String, Figures>,
    /// Wide and mixed tasks, by kind and band of n: `wide n<=6`, `wide n=7`, `wide n>=8`, `mixed …`.
    pub by_n: BTreeMap<String, Figures>,
}

impl Summary {
    /// The summary of `records`.
    pub fn of(records: &[EpisodeRecord]) -> Self {
        use parl_rollout::tasks::TaskKind;
        let mut kinds: BTreeMap<&'static str, Vec<&EpisodeRecord>> = BTreeMap::new();
        let mut bands: BTreeMap<String, Vec<&EpisodeRecord>> = BTreeMap::new();
        for record in records {
            kinds.entry(record.task_kind.name()).or_default().push(record);
            if matches!(record.task_kind, TaskKind::Wide | TaskKind::Mixed) {
                let band = match record.n_items {
                    0..=6 => "n<=6",
                    7 => "n=7",
                    _ => "n>=8",
                };
                bands.entry(format!("{} {band}", record.task_kind.name())).or_default().push(record);
            }
        }
        let of = |v: Vec<&EpisodeRecord>| Figures::of(v.into_iter());
        Self {
            all: Figures::of(records.iter()),
            by_kind: kinds.into_iter().map(|(kind, v)| (kind.to_owned(), of(v))).collect(),
            by_n: bands.into_iter().map(|(band, v)| (band, of(v))).collect(),
        }
    }
}
