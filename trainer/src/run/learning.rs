//! From a scored batch to an update: the orchestrator's own tokens, and what becomes of the weights.

use parl_rollout::policy::Policy;
use parl_rollout::swarm::Seat;
use parl_rollout::trajectory::record::{EpisodeRecord, TokenBranch, VersionRun};

use super::rollout::Batch;
use crate::config::Config;
use crate::error::TrainerError;
use crate::learner::{Learner, LearnerError, Sample, StepReport};

/// So many refused updates in a row end the run.
const REFUSALS: u32 = 3;

/// How many weight versions behind the one that it trained each token was.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Staleness {
    /// Tokens.
    pub tokens: u64,
    /// Versions, summed over them.
    pub sum: u64,
    /// The most of one token.
    pub max: u64,
}

impl Staleness {
    fn add(&mut self, runs: &[VersionRun], version: u64) {
        for run in runs {
            let (tokens, behind) = (u64::from(run.end - run.start), version.saturating_sub(run.version));
            self.tokens += tokens;
            self.sum += tokens * behind;
            self.max = self.max.max(behind);
        }
    }

    /// Mean over tokens; 0 without any.
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.tokens.max(1) as f64
    }
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Learned {
    /// The updates that were made; `None` where each was refused.
    pub report: Option<StepReport>,
    /// Why others were not: something was no number, and the weights stayed as they were before each.
    pub refused: Vec<String>,
    /// Of the tokens that the updates were made on.
    pub staleness: Staleness,
}

/// An episode's part in an update.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Lesson {
    /// What the learner gets.
    pub sample: Sample,
    /// Which weights drew its tokens.
    pub versions: Vec<VersionRun>,
}

/// The learner's side of a run.
pub struct Learning {
    /// The learner.
    pub learner: Learner,
    /// Updates in a row that were refused.
    pub refused_in_a_row: u32,
    /// Whether the policy gets copies of the weights, to read while updates are made.
    pub copies: bool,
}

/// The lessons of a batch: each scored episode's orchestrator context, masked to what it drew itself. Sub-agents are
/// frozen: their contexts are no part of it, and what they said is masked like any observation.
pub fn lessons(batch: &Batch) -> Vec<Lesson> {
    let mut groups: Vec<&str> = Vec::new();
    let mut lessons = Vec::new();
    for record in &batch.records {
        let Some((branch, advantage)) = trained(record) else { continue };
        let group = groups.iter().position(|g| *g == record.group_id).unwrap_or_else(|| {
            groups.push(&record.group_id);
            groups.len() - 1
        });
        // What came after the last drawn token bears on none; it may even be what no longer fitted the context.
        let end = branch.loss_mask.iter().rposition(|drawn| *drawn).map_or(0, |last| last + 1);
        let sample = Sample {
            tokens: branch.token_ids[..end].to_vec(),
            mask: branch.loss_mask[..end].to_vec(),
            logprobs: branch.logprobs[..end].to_vec(),
            temperatures: temperatures(branch)[..end].to_vec(),
            advantage: advantage as f32,
            group,
            stale: false,
        };
        lessons.push(Lesson { sample, versions: branch.policy_versions.clone() });
    }
    lessons
}

/// Shares a step's lessons out to `updates` updates, whole groups in their order; fewer where there are fewer groups, and
/// one at least.
fn shared_out(lessons: Vec<Lesson>, updates: u32) -> Vec<Vec<Lesson>> {
    let groups = lessons.iter().map(|l| l.sample.group + 1).max().unwrap_or(0);
    let n = groups.min(updates as usize).max(1);
    let mut parts = vec![Vec::new(); n];
    for lesson in lessons {
        let part = lesson.sample.group * n / groups.max(1);
        parts[part].push(lesson);
    }
    parts
}

fn trained(record: &EpisodeRecord) -> Option<(&TokenBranch, f64)> {
    let branch = record.branches.iter().find(|b| b.branch_idx == 0)?;
    Some((branch, record.scored.as_ref()?.advantage?))
}

/// The temperature of each token: that of its model call, 1 where none was drawn.
fn temperatures(branch: &TokenBranch) -> Vec<f32> {
    let mut all = vec![1.0; branch.token_ids.len()];
    for (i, (from, temperature)) in branch.step_offsets.iter().zip(&branch.temperatures).enumerate() {
        let to = branch.step_offsets.get(i + 1).map_or(all.len(), |next| *next as usize);
        all[*from as usize..to].fill(*temperature);
    }
    all
}

impl Learning {
    /// The updates of a step between two rollouts: the policy gives its lease back, the weights move, and the policy takes
    /// the new ones in.
    ///
    /// # Errors
    /// As [`Learning::learn`].
    pub fn update(
        &mut self,
        config: &Config,
        policy: &mut dyn Policy,
        step: u64,
        batch: &Batch,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Learned, TrainerError> {
        policy.give_back(Seat::Orchestrator);
        let learned = self.learn(config, step, batch, progress)?;
        self.hand_out(policy)?;
        Ok(learned)
    }

    /// Gives the policy the weights as they are now.
    ///
    /// # Errors
    /// When they cannot be leased or copied, or the policy refuses them.
    pub fn hand_out(&mut self, policy: &mut dyn Policy) -> Result<(), TrainerError> {
        let weights = if self.copies {
            policy.give_back(Seat::Orchestrator);
            self.learner.copied()?
        } else {
            self.learner.lease()?
        };
        Ok(policy.publish(Seat::Orchestrator, weights)?)
    }

    /// The updates of a step on `batch`; no lease on the weights may be alive. A part whose update is refused is lost; the
    /// parts after it are learned from all the same.
    ///
    /// # Errors
    /// [`LearnerError::NotFinite`] when it is the third refusal in a row; whatever else the learner fails with.
    pub fn learn(
        &mut self,
        config: &Config,
        step: u64,
        batch: &Batch,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Learned, TrainerError> {
        let (objective, lr) = (config.learner.objective, config.learner.lr_at(step));
        let parts = shared_out(lessons(batch), config.learner.updates_per_step);
        let n = parts.len();
        let begun_at = self.learner.version();
        let (mut reports, mut refused): (Vec<StepReport>, Vec<String>) = (Vec::new(), Vec::new());
        let mut staleness = Staleness::default();
        for (i, part) in parts.into_iter().enumerate() {
            let moved = reports.iter().any(|report| report.trained_tokens > 0);
            let (mut samples, versions): (Vec<Sample>, Vec<Vec<VersionRun>>) =
                part.into_iter().map(|lesson| (lesson.sample, lesson.versions)).unzip();
            for (sample, runs) in samples.iter_mut().zip(&versions) {
                sample.stale = moved || runs.iter().any(|run| run.version < begun_at);
            }
            let version = self.learner.version();
            match self.learner.train_step(&samples, objective, lr, progress) {
                Ok(report) => {
                    self.refused_in_a_row = 0;
                    reports.push(report);
                    for runs in &versions {
                        staleness.add(runs, version);
                    }
                }
                Err(error @ LearnerError::NotFinite { .. }) => {
                    self.refused_in_a_row += 1;
                    if self.refused_in_a_row >= REFUSALS {
                        return Err(error.into());
                    }
                    let which = if n > 1 { format!("update {} of {n}: ", i + 1) } else { String::new() };
                    refused.push(format!("{which}{error}"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Learned { report: StepReport::together(&reports), refused, staleness })
    }
}

#[cfg(test)]
mod tests {
    use parl_kernels::shape::ModelShape;
    use parl_rollout::policy::scripted::Script;

    use super::*;
    use crate::learner::initial;
    use crate::run::environment::Environment;
    use crate::run::rollout::run_batch;
    use crate::run::seats;

    #[test]
    fn each_token_has_the_temperature_of_its_call() {
        let branch = TokenBranch {
            token_ids: vec![0; 7],
            step_offsets: vec![2, 5],
            temperatures: vec![0.6, 1.5],
            ..TokenBranch::default()
        };
        assert_eq!(temperatures(&branch), [1.0, 1.0, 0.6, 0.6, 0.6, 1.5, 1.5]);
    }

    fn scripted() -> (Config, Box<dyn Policy>, Batch, Learning) {
        scripted_tasks(1)
    }

    /// A scripted batch with advantages, and a learner that fits its tokens.
    fn scripted_tasks(tasks: u32) -> (Config, Box<dyn Policy>, Batch, Learning) {
        let mut config = Config::default();
        (config.rollout.tasks_per_step, config.rollout.group_size) = (tasks, 2);
        let environment = Environment::new(&config).unwrap();
        let mut policy = seats::experts(&environment, Script::Parallel);
        let specs = environment.training_specs(&config, 0);
        let rules = &environment.rules;
        let mut batch =
            run_batch(&config, &environment, rules, policy.as_mut(), &specs, 0, &mut |_| {}).unwrap();
        for (record, advantage) in batch.records.iter_mut().zip([0.5, -0.5].into_iter().cycle()) {
            record.scored.as_mut().unwrap().advantage = Some(advantage);
            record.branches[0].temperatures.fill(1.0);
        }
        let shape = ModelShape {
            vocab: environment.dialect.vocab_size(),
            hidden: 8,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            ffn: 8,
            max_positions: 2048,
            rope_theta: 10_000.0,
            rms_eps: 1e-6,
            qkv_bias: false,
            qk_norm: false,
            tied_head: true,
        };
        let learner = Learner::new(shape.clone(), initial(&shape, 0), config.learner.optimizer(), 1).unwrap();
        (config, policy, batch, Learning { learner, refused_in_a_row: 0, copies: false })
    }

    #[test]
    fn three_refusals_in_a_row_end_the_run_and_change_nothing() {
        let (config, mut policy, good, mut learning) = scripted();
        let (_, _, mut bad, _) = scripted();
        let drawn = bad.records[1].branches[0].loss_mask.iter().position(|m| *m).unwrap();
        bad.records[1].branches[0].logprobs[drawn] = f32::NAN;
        let mut update = |batch: &Batch| {
            let learned = learning.update(&config, policy.as_mut(), 0, batch, &|_, _| {});
            (learned, learning.learner.save().unwrap())
        };
        let (learned, before) = update(&good);
        assert!(learned.unwrap().report.is_some());
        for _ in 0..2 {
            let (learned, after) = update(&bad);
            let learned = learned.unwrap();
            assert!(learned.report.is_none() && learned.refused[0].contains("NaN"), "{learned:?}");
            assert_eq!(after, before);
        }
        // One good update and the count begins anew.
        let (_, before) = update(&good);
        assert!(update(&bad).0.is_ok() && update(&bad).0.is_ok());
        let (learned, after) = update(&bad);
        assert_eq!((learned.unwrap_err().exit_code(), after), (6, before));
    }

    #[test]
    fn groups_are_shared_out_whole_and_in_their_order() {
        let groups = |n: usize, updates| {
            let sample = |i| Sample { group: i / 2, ..Sample::default() };
            let lessons = (0..2 * n).map(|i| Lesson { sample: sample(i), ..Lesson::default() }).collect();
            let parts = shared_out(lessons, updates);
            parts.iter().map(|p| p.iter().map(|l| l.sample.group).collect()).collect::<Vec<Vec<usize>>>()
        };
        assert_eq!(groups(3, 1), [[0, 0, 1, 1, 2, 2]]);
        assert_eq!(groups(5, 3), [vec![0, 0, 1, 1], vec![2, 2, 3, 3], vec![4, 4]]);
        // Groups that were dropped leave fewer updates, never one on nothing but the step's only one.
        assert_eq!(groups(2, 4), [[0, 0], [1, 1]]);
        assert_eq!(groups(0, 4), [Vec::<usize>::new()]);
    }

    #[test]
    fn later_updates_of_a_step_see_weights_that_have_moved() {
        let (mut config, mut policy, mut batch, mut learning) = scripted_tasks(2);
        // The second group teaches nothing but τ's square, which pulls once the weights have moved.
        for record in &mut batch.records[2..] {
            record.scored.as_mut().unwrap().advantage = Some(0.0);
        }
        let drawn = |records: &[EpisodeRecord]| -> usize {
            let of = |r: &EpisodeRecord| r.branches[0].loss_mask.iter().filter(|m| **m).count();
            records.iter().map(of).sum()
        };
        let (_, _, _, mut alone) = scripted_tasks(2);
        let one = alone.update(&config, policy.as_mut(), 0, &batch, &|_, _| {}).unwrap().report.unwrap();
        assert_eq!((one.updates, one.trained_tokens), (1, drawn(&batch.records[..2])));
        config.learner.updates_per_step = 2;
        let two = learning.update(&config, policy.as_mut(), 0, &batch, &|_, _| {}).unwrap().report.unwrap();
        assert_eq!((two.updates, two.trained_tokens), (2, drawn(&batch.records)));
        assert_eq!((learning.learner.version(), alone.learner.version()), (2, 1));
        // The first update is the same; what drew the tokens is compared with the learner before it alone.
        assert_eq!(two.mismatch_kl.to_bits(), one.mismatch_kl.to_bits());
        assert_ne!(learning.learner.save().unwrap(), alone.learner.save().unwrap());
    }

    #[test]
    fn what_older_weights_drew_is_stale_and_is_told() {
        let (config, _, mut batch, mut learning) = scripted_tasks(2);
        for record in &mut batch.records[2..] {
            record.scored.as_mut().unwrap().advantage = Some(0.0);
        }
        let fresh = learning.learn(&config, 0, &batch, &|_, _| {}).unwrap();
        let late = learning.learn(&config, 1, &batch, &|_, _| {}).unwrap();
        let told = |learned: &Learned| (learned.staleness.mean(), learned.staleness.max);
        assert_eq!([told(&fresh), told(&late)], [(0.0, 0), (1.0, 1)]);
        // The second group teaches τ's square alone, which pulls at nothing before the weights have moved.
        let trained = |learned: &Learned| learned.report.unwrap().trained_tokens as u64;
        assert!(trained(&fresh) < fresh.staleness.tokens && trained(&late) == late.staleness.tokens);
    }

    #[test]
    fn a_refused_update_costs_its_part_alone() {
        let (mut config, mut policy, good, mut learning) = scripted_tasks(2);
        let (_, _, mut bad, mut other) = scripted_tasks(2);
        let drawn = bad.records[0].branches[0].loss_mask.iter().position(|m| *m).unwrap();
        bad.records[0].branches[0].logprobs[drawn] = f32::NAN;
        config.learner.updates_per_step = 2;
        let learned = learning.update(&config, policy.as_mut(), 0, &bad, &|_, _| {}).unwrap();
        assert!(
            learned.refused.len() == 1 && learned.refused[0].starts_with("update 1 of 2: "),
            "{learned:?}"
        );
        assert_eq!((learned.report.unwrap().updates, learning.refused_in_a_row), (1, 0));
        let second = Batch { records: good.records[2..].to_vec(), ..Batch::default() };
        other.update(&config, policy.as_mut(), 0, &second, &|_, _| {}).unwrap();
        assert_eq!(learning.learner.save().unwrap(), other.learner.save().unwrap());
    }

    #[test]
    fn only_what_the_orchestrator_drew_is_trained() {
        let (_, _, batch, _) = scripted();
        for (Lesson { sample, .. }, record) in lessons(&batch).iter().zip(&batch.records) {
            let branch = &record.branches[0];
            let drawn: Vec<usize> = (0..sample.mask.len()).filter(|i| sample.mask[*i]).collect();
            assert_eq!(drawn.last(), Some(&(sample.mask.len() - 1)));
            assert_eq!(sample.tokens, branch.token_ids[..sample.tokens.len()]);
            assert_eq!(drawn.len() as u64, record.agents[0].tokens_out);
        }
    }
}
