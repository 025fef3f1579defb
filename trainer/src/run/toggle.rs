//! Toggle in a run: the budgets of its classes of tasks, and what they take away.

use parl_rewards::config::RewardsConfig;
use parl_rewards::toggle::{self, Budgets};
use parl_rollout::tasks::TaskKind;
use parl_rollout::trajectory::record::{EpisodeRecord, RewardPart};

use super::rollout::{Batch, compare, groups};

/// Tasks of a stream are seldom seen twice, so a budget is one of all tasks of a kind with as many items.
type Class = (TaskKind, u32);

/// What the budget did to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Toggled {
    /// Whether it bound at this step.
    pub binds: bool,
    /// Scored episodes that are longer than the budget of their class, whether it bound or not.
    pub over: usize,
    /// Rewards that were taken away, together.
    pub taken: f64,
    /// Tokens that the orchestrators of scored episodes sampled.
    pub tokens: u64,
}

/// The budgets of a run. They depend on the episodes of its first steps alone, which its log holds.
#[derive(Debug)]
pub struct Toggle {
    rules: toggle::Toggle,
    budgets: Budgets<Class>,
}

/// Tokens that the orchestrator sampled: |y|.
fn tokens(record: &EpisodeRecord) -> u64 {
    record.agents.first().map_or(0, |orchestrator| orchestrator.tokens_out)
}

fn class(record: &EpisodeRecord) -> Class {
    (record.task_kind, record.n_items)
}

impl Toggle {
    /// Without a right answer yet; `None` where the config has none.
    pub fn of(config: &RewardsConfig) -> Option<Self> {
        config.toggle.map(|rules| Self { rules, budgets: Budgets::default() })
    }

    /// Whether right answers of this step are measured.
    pub fn estimates(&self, step: u64) -> bool {
        self.rules.estimates(step)
    }

    /// Measures the right answers of a step, if it is one of those that are measured.
    pub fn measure(&mut self, step: u64, records: &[EpisodeRecord]) {
        let right = |r: &&EpisodeRecord| r.scored.as_ref().is_some_and(|scored| scored.success);
        for record in records.iter().filter(|_| self.rules.estimates(step)).filter(right) {
            self.budgets.measure(class(record), tokens(record));
        }
    }

    /// Takes rewards over budget away and compares each group anew; every scored episode gets the component, which is 0
    /// where nothing is taken.
    pub fn apply(&self, config: &RewardsConfig, step: u64, batch: &mut Batch) {
        let mut toggled = Toggled { binds: self.rules.binds(step), ..Toggled::default() };
        for members in groups(&batch.records) {
            let reward = |i: &usize| batch.records[*i].scored.as_ref().map(|scored| scored.reward);
            let rewards: Vec<f64> = members.iter().filter_map(reward).collect();
            let bound = toggled.binds && self.rules.binds_group(&rewards);
            for i in members {
                let record = &mut batch.records[i];
                let (class, length) = (class(record), tokens(record));
                let Some(scored) = &mut record.scored else { continue };
                let over = self.budgets.budget(&class, self.rules.percentile).is_some_and(|b| length > b);
                let term = toggle::component(scored.reward, bound && over);
                toggled.over += usize::from(over);
                toggled.taken += term.value;
                toggled.tokens += length;
                scored.reward += term.value;
                scored.parts.push(RewardPart {
                    component: term.component.to_owned(),
                    raw: term.raw,
                    weight: term.weight,
                    value: term.value,
                    source: format!("parl-rewards:{}", term.source),
                });
            }
        }
        batch.toggled = Some(toggled);
        compare(config, batch);
    }
}

#[cfg(test)]
mod tests {
    use parl_rollout::policy::scripted::Script;

    use super::*;
    use crate::config::Config;
    use crate::run::environment::Environment;
    use crate::run::rollout::run_batch;
    use crate::run::seats;

    /// A batch of the parallel expert, whose every reward is a success's.
    fn solved(config: &Config) -> Batch {
        let environment = Environment::new(config).unwrap();
        let mut policy = seats::experts(&environment, Script::Parallel);
        let specs = environment.training_specs(config, 0);
        run_batch(config, &environment, &environment.rules, policy.as_mut(), &specs, 0, &mut |_| {}).unwrap()
    }

    #[test]
    fn what_is_over_budget_loses_its_reward_and_its_group_is_compared_anew() {
        let mut config = Config::default();
        (config.rollout.tasks_per_step, config.rollout.group_size) = (2, 3);
        config.rollout.subagent.outage_rate = 0.0;
        let rules = toggle::Toggle { phase_steps: 1, estimate_steps: 1, ..toggle::Toggle::default() };
        config.rewards.toggle = Some(rules);
        let mut toggle = Toggle::of(&config.rewards).unwrap();
        let mut batch = solved(&config);
        let plain = batch.records.clone();
        assert!(plain.iter().all(|r| r.scored.as_ref().unwrap().success) && batch.zero_variance_groups == 2);
        toggle.measure(0, &batch.records);
        // Steps that are not measured change nothing.
        batch.records[0].agents[0].tokens_out += 1;
        toggle.measure(1, &batch.records);

        let class_of = |r: &EpisodeRecord| class(r);
        assert_ne!(
            class_of(&plain[0]),
            class_of(&plain[3]),
            "the groups are of one class: another seed is needed"
        );
        let rewards = |batch: &Batch| -> Vec<f64> {
            batch.records.iter().map(|r| r.scored.as_ref().unwrap().reward).collect()
        };
        let before = rewards(&batch);
        // Step 1 is of the phase without the budget, step 2 of the one with it.
        let mut free = Batch { records: batch.records.clone(), groups: 2, ..Batch::default() };
        toggle.apply(&config.rewards, 1, &mut free);
        assert_eq!(rewards(&free), before);
        let told = free.toggled.unwrap();
        assert!(!told.binds && told.over == 1 && told.taken == 0.0, "{told:?}");

        toggle.apply(&config.rewards, 2, &mut batch);
        let told = batch.toggled.unwrap();
        assert!(told.binds && told.over == 1 && told.taken.to_bits() == (-before[0]).to_bits(), "{told:?}");
        let after = rewards(&batch);
        assert_eq!((after[0].to_bits(), &after[1..]), (0, &before[1..]));
        assert_eq!(batch.zero_variance_groups, 1);
        for record in &batch.records {
            let scored = record.scored.as_ref().unwrap();
            let sum: f64 = scored.parts.iter().map(|part| part.value).sum();
            assert_eq!(sum.to_bits(), scored.reward.to_bits());
            assert_eq!(scored.parts.last().unwrap().component, toggle::COMPONENT);
        }
        let advantage = |i: usize| batch.records[i].scored.as_ref().unwrap().advantage.unwrap();
        assert!((advantage(0) + before[0] * 2.0 / 3.0).abs() < 1e-12 && advantage(3) == 0.0);
        let of_tokens = batch.records[0].branches[0].advantages.as_ref().unwrap();
        assert!(of_tokens.contains(&(advantage(0) as f32)));

        // A group that does not do well enough is left alone.
        let strict = toggle::Toggle { mean_limit: 1.9, ..rules };
        let mut weak = Batch { records: free.records.clone(), ..Batch::default() };
        Toggle { rules: strict, budgets: toggle.budgets }.apply(&config.rewards, 2, &mut weak);
        assert_eq!(rewards(&weak), before);
    }
}
