//! A batch of episodes from specs to scored records: run, try infrastructure failures again, score, compare.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parl_rewards::Assignment;
use parl_rewards::advantage::group_advantages;
use parl_rewards::config::RewardsConfig;
use parl_rewards::metrics::Score;
use parl_rollout::policy::Policy;
use parl_rollout::swarm::driver::{self, Progress, Stage};
use parl_rollout::swarm::{EpisodeSpec, Rules};
use parl_rollout::tasks::Task;
use parl_rollout::trajectory::record::{EpisodeRecord, RewardPart, Scored, Status};

use super::environment::Environment;
use super::toggle::Toggled;
use crate::config::Config;
use crate::error::TrainerError;

/// A scored batch.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order of the specs.
    pub records: Vec<EpisodeRecord>,
    /// Groups whose rewards are all equal.
    pub zero_variance_groups: usize,
    /// Groups that an infrastructure failure took out.
    pub dropped_groups: usize,
    /// Groups in all.
    pub groups: usize,
    /// Seconds that the episodes took.
    pub rollout_seconds: f64,
    /// What a budget of tokens did to it, where there is one.
    pub toggled: Option<Toggled>,
}

/// What a run's episodes go on in, `places` of them at a time; `clock_ms` counts from `epoch_us`.
pub fn stage<'a>(
    config: &Config,
    environment: &'a Environment,
    rules: &'a Rules,
    places: usize,
    clock_ms: &'a (dyn Fn() -> i64 + Sync),
    epoch_us: i64,
) -> Stage<'a> {
    Stage {
        rules,
        dialect: &environment.dialect,
        tools: &environment.tools,
        tool_fault_rate: config.rollout.tool_fault_rate,
        max_concurrent_episodes: places,
        keep_subagent_contexts: false,
        clock_ms,
        epoch_us,
    }
}

/// Runs `specs` under `rules` and scores them as of training step `step`.
///
/// # Errors
/// What the rollout fails with.
pub fn run_batch(
    config: &Config,
    environment: &Environment,
    rules: &Rules,
    policy: &mut dyn Policy,
    specs: &[EpisodeSpec],
    step: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<Batch, TrainerError> {
    let started = Instant::now();
    let epoch_us = jiff::Timestamp::now().as_microsecond();
    let clock = move || started.elapsed().as_millis() as i64;
    let places = config.rollout.max_concurrent_episodes as usize;
    let stage = stage(config, environment, rules, places, &clock, epoch_us);
    let mut records = driver::run(&stage, policy, specs.to_vec(), progress)?;
    // Infrastructure failures are nobody's fault: once more, under the same keys.
    let failed: Vec<usize> = (0..records.len()).filter(|i| records[*i].status == Status::Error).collect();
    if !failed.is_empty() {
        let again =
            driver::run(&stage, policy, failed.iter().map(|i| specs[*i].clone()).collect(), progress)?;
        for (i, record) in failed.into_iter().zip(again) {
            records[i] = record;
        }
    }
    let tasks: Vec<Arc<Task>> = specs.iter().map(|s| Arc::clone(&s.task)).collect();
    let mut batch = score(&config.rewards, step, records, &tasks);
    batch.rollout_seconds = started.elapsed().as_secs_f64();
    Ok(batch)
}

/// Scores records against their tasks and takes each group's baseline. A group with an infrastructure failure has
/// no rewards at all: a baseline over part of a group would favour short episodes.
pub fn score(
    config: &RewardsConfig,
    step: u64,
    mut records: Vec<EpisodeRecord>,
    tasks: &[Arc<Task>],
) -> Batch {
    let groups = groups(&records);
    let mut batch = Batch { groups: groups.len(), ..Batch::default() };
    for members in groups {
        if members.iter().any(|i| records[*i].status == Status::Error) {
            batch.dropped_groups += 1;
            continue;
        }
        for i in members {
            records[i].scored = Some(score_one(config, step, &records[i], &tasks[i]));
        }
    }
    batch.records = records;
    compare(config, &mut batch);
    batch
}

/// Takes each scored group's advantages from its rewards, anew where there were some.
pub fn compare(config: &RewardsConfig, batch: &mut Batch) {
    batch.zero_variance_groups = 0;
    for members in groups(&batch.records) {
        let reward = |i: &usize| batch.records[*i].scored.as_ref().map(|scored| scored.reward);
        // A group is scored as a whole or not at all.
        let Some(rewards) = members.iter().map(reward).collect::<Option<Vec<f64>>>() else { continue };
        let compared = group_advantages(&rewards, config.rule());
        batch.zero_variance_groups += usize::from(compared.zero_variance);
        for (i, advantage) in members.into_iter().zip(compared.advantages) {
            let record = &mut batch.records[i];
            for branch in &mut record.branches {
                let per_token = |drawn: &bool| if *drawn { advantage as f32 } else { 0.0 };
                branch.advantages = Some(branch.loss_mask.iter().map(per_token).collect());
            }
            if let Some(scored) = &mut record.scored {
                scored.advantage = Some(advantage);
            }
        }
    }
}

/// Places of each group's episodes, in order of the groups' ids.
pub fn groups(records: &[EpisodeRecord]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, record) in records.iter().enumerate() {
        groups.entry(&record.group_id).or_default().push(i);
    }
    groups.into_values().collect()
}

fn score_one(config: &RewardsConfig, step: u64, record: &EpisodeRecord, task: &Task) -> Scored {
    let answer = record.answer.as_deref();
    let score = answer.map_or(Score { value: 0.0, success: false }, |a| task.metric.score(a, &task.answer));
    let assignments: Vec<Assignment<'_>> = record
        .agents
        .iter()
        .filter_map(|agent| {
            let (prompt, finished) = (agent.assigned_prompt.as_str(), agent.finished);
            agent.stage.map(|stage| Assignment { stage, prompt, finished, env_calls: agent.n_steps })
        })
        .collect();
    let result = config.score(step, score, &assignments);
    let part = |c: &parl_rewards::shaping::Component| RewardPart {
        component: c.component.to_owned(),
        raw: c.raw,
        weight: c.weight,
        value: c.value,
        source: format!("parl-rewards:{}", config.form.name()),
    };
    Scored {
        reward: result.reward,
        advantage: None,
        success: result.parts.success,
        r_perf: result.parts.perf,
        r_parallel: result.parts.parallel,
        r_finish: result.parts.finish,
        lambda_parallel: result.lambdas.parallel,
        lambda_finish: result.lambdas.finish,
        stage: result.stage,
        reward_form: config.form.name().to_owned(),
        parts: result.components.iter().map(part).collect(),
    }
}
