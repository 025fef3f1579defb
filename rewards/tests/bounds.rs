//! The bounds of the method (§2) as properties, at every λ of every kind of schedule and in both forms:
//! (i) an episode with nothing right never out-scores a solved one, whatever its bonuses;
//! (ii) at equal r_perf bonuses move the reward by λ1 + λ2 at most, and by exactly nothing once annealed;
//! (iii) copies of one prompt count once, work without an environment call is not finished, and so against a
//! balanced expert spam gains nothing.

use parl_rewards::Assignment;
use parl_rewards::config::{EpisodeScore, Perf, RewardsConfig};
use parl_rewards::metrics::{Metric, Score};
use parl_rewards::schedule::{Schedule, StageValue, every_lambda};
use parl_rewards::shaping::RewardForm;
use proptest::prelude::*;
use serde_json::json;

/// Steps at which every config is looked at: past the end of every schedule.
const STEPS: u64 = 50;
/// From here on all annealed schedules are over.
const ANNEALED_FROM: u64 = 40;

/// Schedules of every kind whose largest weight is `peak`; the first four end at 0, the last two do not.
fn schedules(peak: f64) -> Vec<Schedule> {
    let (from, to, steps) = (peak, 0.0, ANNEALED_FROM);
    let stage = |until_step, value| StageValue { until_step, value };
    vec![
        Schedule::Linear { from, to, steps },
        Schedule::Cosine { from, to, steps },
        Schedule::Exponential { from, to, steps },
        Schedule::Stages {
            stages: vec![stage(10, peak / 2.0), stage(30, peak), stage(40, peak / 10.0)],
            then: 0.0,
        },
        Schedule::Linear { from: 0.0, to: peak, steps },
        Schedule::Constant { value: peak },
    ]
}

/// Valid configs up to the widest limits: both forms, every pair of schedules, every r_perf.
fn configs() -> Vec<RewardsConfig> {
    let mut configs = vec![RewardsConfig::default()];
    // Peaks of λ1 and λ2, and the limit that admits them; the blog form takes λ1 alone, below 0.5.
    let peaks = [
        (RewardForm::K25, 0.1, 0.1, 0.2),
        (RewardForm::K25, 0.6, 0.0, 0.6),
        (RewardForm::K25, 0.2, 0.4, 0.6),
        (RewardForm::Blog, 0.1, 0.1, 0.2),
        (RewardForm::Blog, 0.49, 0.1, 0.6),
    ];
    let perfs = [Perf::Metric, Perf::Success, Perf::Mix { success_weight: 0.7 }];
    for (form, parallel, finish, lambda_sum_limit) in peaks {
        for (i, lambda_parallel) in schedules(parallel).into_iter().enumerate() {
            for (j, lambda_finish) in schedules(finish).into_iter().enumerate() {
                configs.push(RewardsConfig {
                    form,
                    lambda_parallel: lambda_parallel.clone(),
                    lambda_finish,
                    lambda_sum_limit,
                    perf: perfs[(i + j) % 3],
                    ..RewardsConfig::default()
                });
            }
        }
    }
    configs
}

/// An assignment before its prompt is borrowed: stage, number of the prompt, finished, environment calls.
type Work = (u32, u8, bool, u32);

fn work() -> impl Strategy<Value = Vec<Work>> {
    prop::collection::vec((0u32..3, 0u8..8, any::<bool>(), 0u32..3), 0..12)
}

fn assigned<'a>(prompts: &'a [String], work: &[Work]) -> Vec<Assignment<'a>> {
    work.iter()
        .map(|(stage, prompt, finished, env_calls)| Assignment {
            stage: *stage,
            prompt: &prompts[usize::from(*prompt)],
            finished: *finished,
            env_calls: *env_calls,
        })
        .collect()
}

fn prompts(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("find item {i}")).collect()
}

/// λ1 + λ2 at a step, as used.
fn bonus_weight(config: &RewardsConfig, step: u64) -> f64 {
    let lambdas = config.lambdas(step);
    lambdas.parallel + lambdas.finish
}

fn agree(episode: &EpisodeScore) -> bool {
    let sum: f64 = episode.components.iter().map(|c| c.value).sum();
    sum.to_bits() == episode.reward.to_bits()
}

#[test]
fn the_configs_under_test_are_all_accepted() {
    for config in configs() {
        assert_eq!(config.issues(), [], "{config:?}");
    }
}

#[test]
fn the_sum_of_lambdas_is_bounded_at_every_step() {
    for config in configs() {
        let both =
            every_lambda(&config.lambda_parallel, STEPS).zip(every_lambda(&config.lambda_finish, STEPS));
        for (step, (parallel, finish)) in both.enumerate() {
            let used = if config.form == RewardForm::Blog { parallel } else { parallel + finish };
            assert!(used <= config.lambda_sum_limit + 1e-9 && used <= 0.6 + 1e-9, "{config:?} at {step}");
        }
    }
    let default = RewardsConfig::default();
    assert!((0..STEPS).all(|step| bonus_weight(&default, step) <= 0.2));
}

#[test]
fn annealed_weights_are_exactly_zero_for_the_last_fifth() {
    for schedule in &schedules(0.1)[..4] {
        let weights: Vec<f64> = every_lambda(schedule, STEPS).collect();
        let (before, after) = weights.split_at(ANNEALED_FROM as usize);
        assert!(before.iter().all(|w| *w > 0.0), "{schedule:?}");
        assert!(after.len() == 10 && after.iter().all(|w| w.to_bits() == 0), "{schedule:?}");
    }
}

#[test]
fn spam_gains_nothing_against_a_balanced_expert() {
    let prompts = prompts(100);
    let solved = Score { value: 1.0, success: true };
    let order = |prompt, finished, env_calls| Assignment { stage: 0, prompt, finished, env_calls };
    let idle: Vec<Assignment<'_>> = prompts.iter().map(|p| order(p, true, 0)).collect();
    let copies: Vec<Assignment<'_>> = (0..100).map(|_| order(&prompts[0], true, 1)).collect();
    let unfinished: Vec<Assignment<'_>> = prompts.iter().map(|p| order(p, false, 3)).collect();
    for n_items in [4usize, 7, 24] {
        // Balanced: an agent an item, or four agents that share them.
        for n_agents in [4, n_items] {
            let expert: Vec<Assignment<'_>> = prompts[..n_agents].iter().map(|p| order(p, true, 2)).collect();
            for config in configs() {
                for step in 0..STEPS {
                    let best = config.score(step, solved, &expert);
                    assert!(
                        (best.parts.parallel - 1.0).abs() < 1e-15 && (best.parts.finish - 1.0).abs() < 1e-15
                    );
                    for (spam, earns) in
                        [(&idle, (1.0, 0.0)), (&copies, (0.25, 1.0)), (&unfinished, (1.0, 0.0))]
                    {
                        // Even with the same answer, and even on top of the expert's own work.
                        let alone = config.score(step, solved, spam);
                        let padded: Vec<Assignment<'_>> = expert.iter().chain(spam).copied().collect();
                        assert!(alone.reward <= best.reward, "{config:?} at {step}");
                        assert!(
                            config.score(step, solved, &padded).reward <= best.reward,
                            "{config:?} at {step}"
                        );
                        assert!((alone.parts.parallel - earns.0).abs() < 1e-15, "{:?}", alone.parts);
                        assert!((alone.parts.finish - earns.1).abs() < 1e-15, "{:?}", alone.parts);
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Bound (i), with scores as the metrics give them.
    #[test]
    fn nothing_right_never_outscores_solved(wrong_work in work(), solved_work in work()) {
        let (prompts, reference) = (prompts(8), json!(["oak", "iron"]));
        let (wrong, solved) = (Metric::ItemF1.score("elm", &reference), Metric::ItemF1.score("iron; oak", &reference));
        let (wrong_work, solved_work) = (assigned(&prompts, &wrong_work), assigned(&prompts, &solved_work));
        for config in configs() {
            for step in 0..STEPS {
                let loser = config.score(step, wrong, &wrong_work);
                let winner = config.score(step, solved, &solved_work);
                prop_assert!(loser.reward < winner.reward, "{config:?} at {step}: {loser:?} {winner:?}");
                prop_assert!(agree(&loser) && agree(&winner));
            }
        }
    }

    /// Bound (ii).
    #[test]
    fn bonuses_move_the_reward_by_their_weight_at_most(
        value in 0.0..=1.0f64, one in work(), other in work(),
    ) {
        let (prompts, score) = (prompts(8), Score { value, success: value >= 1.0 });
        let (one, other) = (assigned(&prompts, &one), assigned(&prompts, &other));
        for config in configs() {
            for step in 0..STEPS {
                let (a, b) = (config.score(step, score, &one), config.score(step, score, &other));
                let weight = bonus_weight(&config, step);
                prop_assert!((a.reward - b.reward).abs() <= weight + 1e-12, "{config:?} at {step}: {a:?} {b:?}");
                if weight == 0.0 {
                    prop_assert_eq!(a.reward.to_bits(), b.reward.to_bits());
                }
                prop_assert!(agree(&a) && agree(&b));
            }
        }
    }

    /// Bound (iii) on any work: nobody earns more in bonuses than who spreads work over `n_cap` agents and gets it
    /// done, and neither a copy of an order nor an idle assignment adds anything.
    #[test]
    fn copies_and_idle_work_add_nothing(work in work(), copied in 0usize..12, idle in 0u8..8) {
        let prompts = prompts(8);
        let work = assigned(&prompts, &work);
        for config in configs().iter().step_by(7) {
            let nothing = Score { value: 0.0, success: false };
            let before = config.score(0, nothing, &work);
            let mut more = work.clone();
            more.extend(work.get(copied).copied());
            prop_assert_eq!(config.score(0, nothing, &more).parts.parallel.to_bits(), before.parts.parallel.to_bits());
            more.clone_from(&work);
            more.push(Assignment { stage: 0, prompt: &prompts[usize::from(idle)], finished: true, env_calls: 0 });
            prop_assert!(config.score(0, nothing, &more).parts.finish <= before.parts.finish);
        }
    }
}
