//! Every objective and every choice of parts against plain f64 formulas: loss, and gradient by finite differences.

use std::collections::BTreeMap;
use std::ops::Range;

use parl_kernels::rng::{RngKey, Stream};
use parl_rewards::advantage::group_advantages;

use super::*;

/// An episode: its tokens are a stretch of the batch's.
struct Episode {
    group: usize,
    reward: f64,
    tokens: Range<usize>,
}

struct Batch {
    episodes: Vec<Episode>,
    old: Vec<f64>,
    new: Vec<f64>,
}

/// What is made large, as a function of the log-probs `x`; where a gradient is stopped, they are read from `at`.
type Formula<'f> = dyn Fn(&Batch, &[f64], &[f64]) -> f64 + 'f;

type Reference = fn(&Batch, x: &[f64], at: &[f64]) -> f64;

/// Four groups, the third of which is flat; lengths from none to nine; log ratios up to `spread` on either side.
fn batch(seed: u64, spread: f64) -> Batch {
    let draw =
        |episode: u64, i: u32| RngKey { seed, stream: Stream::Shuffle, episode, agent: 0 }.uniform_f64(i);
    let mut batch = Batch { episodes: Vec::new(), old: Vec::new(), new: Vec::new() };
    for e in 0..16u64 {
        let start = batch.old.len();
        let length = if e % 7 == 3 { 0 } else { 1 + (draw(e, 0) * 9.0) as u32 };
        for t in 0..length {
            let old = -2.0 * draw(e, 10 + t);
            batch.old.push(old);
            batch.new.push(old + spread * (2.0 * draw(e, 30 + t) - 1.0));
        }
        let group = e as usize / 4;
        let reward = if group == 2 { 0.4 } else { (draw(e, 1) * 5.0).floor() / 4.0 };
        batch.episodes.push(Episode { group, reward, tokens: start..batch.old.len() });
    }
    batch
}

impl Batch {
    fn group(&self, g: usize) -> Vec<&Episode> {
        self.episodes.iter().filter(|e| e.group == g).collect()
    }

    /// Reward less the group's mean, and the deviation of the group's rewards.
    fn compared(&self, e: &Episode) -> (f64, f64) {
        let rewards: Vec<f64> = self.group(e.group).iter().map(|e| e.reward).collect();
        let n = rewards.len() as f64;
        let mean = rewards.iter().sum::<f64>() / n;
        let deviation = (rewards.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / (n - 1.0)).sqrt();
        (e.reward - mean, deviation)
    }

    fn scaled(&self, e: &Episode) -> f64 {
        let (difference, deviation) = self.compared(e);
        if deviation < 1e-12 { 0.0 } else { difference / (deviation + 1e-6) }
    }

    fn ratio(&self, x: &[f64], t: usize) -> f64 {
        (x[t] - self.old[t]).exp()
    }

    fn speaking(&self) -> impl Iterator<Item = &Episode> {
        self.episodes.iter().filter(|e| !e.tokens.is_empty())
    }
}

fn ppo(ratio: f64, a: f64, low: f64, high: f64) -> f64 {
    (ratio * a).min(ratio.clamp(low, high) * a)
}

fn k25(b: &Batch, x: &[f64], _: &[f64]) -> f64 {
    let mut groups = Vec::new();
    for g in (0..4).map(|g| b.group(g)) {
        let (mut sum, mut n) = (0.0, 0.0);
        for (e, t) in g.iter().flat_map(|e| e.tokens.clone().map(move |t| (e, t))) {
            let r = b.ratio(x, t);
            let clip = if (0.8..=1.25).contains(&r) { r } else { 0.0 };
            sum += clip * b.compared(e).0 - 1e-3 * r.ln() * r.ln();
            n += 1.0;
        }
        groups.extend((n > 0.0).then(|| sum / n));
    }
    groups.iter().sum::<f64>() / groups.len() as f64
}

fn grpo(b: &Batch, x: &[f64], _: &[f64]) -> f64 {
    let token = |e: &Episode, t| ppo(b.ratio(x, t), b.scaled(e), 0.8, 1.2);
    let mean = |e: &Episode| e.tokens.clone().map(|t| token(e, t)).sum::<f64>() / e.tokens.len() as f64;
    b.speaking().map(mean).sum::<f64>() / b.speaking().count() as f64
}

fn dapo(b: &Batch, x: &[f64], _: &[f64]) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0);
    for e in b.episodes.iter().filter(|e| e.group != 2) {
        sum += e.tokens.clone().map(|t| ppo(b.ratio(x, t), b.scaled(e), 0.8, 1.28)).sum::<f64>();
        n += e.tokens.len() as f64;
    }
    sum / n
}

fn gspo(b: &Batch, x: &[f64], _: &[f64]) -> f64 {
    let s = |e: &Episode| {
        e.tokens.clone().map(|t| b.ratio(x, t)).product::<f64>().powf(1.0 / e.tokens.len() as f64)
    };
    let sum: f64 = b.speaking().map(|e| ppo(s(e), b.scaled(e), 1.0 - 3e-4, 1.0 + 4e-4)).sum();
    sum / b.speaking().count() as f64
}

fn cispo(b: &Batch, x: &[f64], at: &[f64]) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0);
    for e in b.episodes.iter().filter(|e| e.group != 2) {
        sum += e.tokens.clone().map(|t| b.ratio(at, t).min(5.0) * b.scaled(e) * x[t]).sum::<f64>();
        n += e.tokens.len() as f64;
    }
    sum / n
}

fn rloo(b: &Batch, x: &[f64], _: &[f64]) -> f64 {
    let others = |e: &Episode| {
        let rewards: Vec<f64> =
            b.group(e.group).iter().filter(|o| !std::ptr::eq(**o, e)).map(|o| o.reward).collect();
        rewards.iter().sum::<f64>() / rewards.len() as f64
    };
    let sum: f64 = b
        .speaking()
        .map(|e| e.tokens.clone().map(|t| b.ratio(x, t) * (e.reward - others(e))).sum::<f64>())
        .sum();
    sum / b.speaking().count() as f64
}

fn dr_grpo(b: &Batch, x: &[f64], _: &[f64]) -> f64 {
    let token = |e: &Episode, t| ppo(b.ratio(x, t), b.compared(e).0, 0.8, 1.2);
    let sum: f64 = b.speaking().map(|e| e.tokens.clone().map(|t| token(e, t)).sum::<f64>()).sum();
    sum / 50.0 / b.speaking().count() as f64
}

/// The part-wise formula: one loop over tokens.
fn by_parts(p: Parts, b: &Batch, x: &[f64], at: &[f64]) -> f64 {
    let counted: Vec<&Episode> = b.speaking().filter(|e| !(p.skip_flat_groups && e.group == 2)).collect();
    let mut of_group: BTreeMap<usize, usize> = BTreeMap::new();
    for e in &counted {
        *of_group.entry(e.group).or_default() += e.tokens.len();
    }
    let mut total = 0.0;
    for e in &counted {
        let (n, a) = (e.tokens.len() as f64, b.compared(e).0);
        let divisor = match p.aggregation {
            Aggregation::GroupTokens => (of_group[&e.group] * of_group.len()) as f64,
            Aggregation::BatchTokens => of_group.values().sum::<usize>() as f64,
            Aggregation::SequenceMean => n * counted.len() as f64,
            Aggregation::Constant { length } => f64::from(length) * counted.len() as f64,
        };
        for t in e.tokens.clone() {
            let ratio = |x: &[f64]| match p.ratio {
                Ratio::Token => b.ratio(x, t),
                Ratio::Sequence => (e.tokens.clone().map(|t| x[t] - b.old[t]).sum::<f64>() / n).exp(),
            };
            let r = ratio(x);
            let gain = match p.clip {
                Clip::None => r * a,
                Clip::Mask { low, high } => {
                    if (low..=high).contains(&r) {
                        r * a
                    } else {
                        0.0
                    }
                }
                Clip::Ppo { low, high } => ppo(r, a, low, high),
                Clip::Detached { low, high } => ratio(at).clamp(low, high) * a * x[t],
            };
            total += (gain - p.tau * (x[t] - b.old[t]).powi(2)) / divisor;
        }
    }
    total
}

/// Loss, gradient with respect to the log-probs, and tokens below and above the bounds, as the learner computes them.
fn computed(objective: Objective, b: &Batch) -> (f64, Vec<f64>, (f64, f64)) {
    let mut advantages = vec![0.0; b.episodes.len()];
    for g in 0..4 {
        let members: Vec<usize> = (0..b.episodes.len()).filter(|i| b.episodes[*i].group == g).collect();
        let rewards: Vec<f64> = members.iter().map(|i| b.episodes[*i].reward).collect();
        let group = group_advantages(&rewards, objective.rule());
        members.iter().zip(group.advantages).for_each(|(i, a)| advantages[*i] = a);
    }
    let sample = |(e, a): (&Episode, &f64)| Sample {
        // What is read stands before what is drawn.
        mask: [vec![false; 2], vec![true; e.tokens.len()]].concat(),
        advantage: *a as f32,
        group: e.group,
        ..Sample::default()
    };
    let samples: Vec<Sample> = b.episodes.iter().zip(&advantages).map(sample).collect();
    let shares = objective.shares(&samples);
    let of: Vec<usize> = (0..samples.len()).flat_map(|i| vec![i; samples[i].trained()]).collect();
    let each = |values: &[f64]| Tensor::from_slice(&of.iter().map(|i| values[*i]).collect::<Vec<f64>>());
    let logp = Tensor::from_slice(&b.new).set_requires_grad(true);
    let tokens = Tokens {
        logp: &logp,
        old: &Tensor::from_slice(&b.old),
        advantage: &each(&advantages),
        weight: &each(&shares),
        sequence: &Tensor::from_slice(&of.iter().map(|i| *i as i64).collect::<Vec<i64>>()),
        lengths: &Tensor::from_slice(&samples.iter().map(|s| s.trained() as f64).collect::<Vec<f64>>()),
    };
    let loss = objective.loss(&tokens);
    loss.backward();
    let grad = logp.grad();
    let grad = (0..b.new.len()).map(|t| grad.double_value(&[t as i64])).collect();
    (loss.double_value(&[]), grad, objective.outside(&tokens))
}

fn compare(objective: Objective, b: &Batch, reference: &Formula<'_>) {
    let (loss, grad, _) = computed(objective, b);
    let wanted = -reference(b, &b.new, &b.new);
    assert!((loss - wanted).abs() < 1e-11 * wanted.abs().max(1.0), "{objective:?}: {loss} {wanted}");
    for (t, got) in grad.into_iter().enumerate() {
        let at = |h: f64| {
            let mut x = b.new.clone();
            x[t] += h;
            -reference(b, &x, &b.new)
        };
        let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
        assert!((got - slope).abs() < 1e-6 * slope.abs().max(1.0), "{objective:?} token {t}: {got} {slope}");
    }
}

fn read(text: &str) -> Objective {
    serde_json::from_str(text).unwrap()
}

/// Presets by name as a config has them, and their papers' formulas.
fn presets() -> [(Objective, Reference); 7] {
    [
        (read(r#"{"type": "k25"}"#), k25),
        (read(r#"{"type": "grpo"}"#), grpo),
        (read(r#"{"type": "dapo"}"#), dapo),
        (read(r#"{"type": "gspo"}"#), gspo),
        (read(r#"{"type": "cispo"}"#), cispo),
        (read(r#"{"type": "rloo"}"#), rloo),
        (read(r#"{"type": "dr_grpo", "length": 50}"#), dr_grpo),
    ]
}

#[test]
fn presets_are_their_papers_formulas() {
    for (objective, reference) in presets() {
        // Within the narrowest bounds, around the usual ones, and far outside.
        let (mut seen, mut inside) = ((0.0, 0.0), 0.0);
        for (seed, spread) in [(1, 3e-4), (2, 2e-3), (3, 0.4), (4, 2.5)] {
            let b = batch(seed, spread);
            compare(objective, &b, &reference);
            let (low, high) = computed(objective, &b).2;
            seen = (seen.0 + low, seen.1 + high);
            inside += b.old.len() as f64 - low - high;
        }
        let bounded = !matches!(objective, Objective::Rloo);
        let below = bounded && !matches!(objective, Objective::Cispo { .. });
        assert!(
            inside > 20.0 && (seen.0 > 5.0) == below && (seen.1 > 5.0) == bounded,
            "{objective:?} {seen:?}"
        );
    }
}

#[test]
fn every_choice_of_parts_is_the_sum_over_tokens() {
    let (low, high) = (0.8, 1.3);
    let clips = [Clip::None, Clip::Mask { low, high }, Clip::Ppo { low, high }, Clip::Detached { low, high }];
    let aggregations = [
        Aggregation::GroupTokens,
        Aggregation::BatchTokens,
        Aggregation::SequenceMean,
        Aggregation::Constant { length: 7 },
    ];
    let b = batch(5, 0.7);
    for (n, aggregation) in aggregations.into_iter().enumerate() {
        for (m, clip) in clips.into_iter().enumerate() {
            for ratio in [Ratio::Token, Ratio::Sequence] {
                let (tau, skip_flat_groups) = (if m % 2 == n % 2 { 0.3 } else { 0.0 }, m / 2 == n / 2);
                let objective = Objective::Custom { ratio, clip, aggregation, tau, skip_flat_groups };
                let parts = objective.parts().unwrap();
                compare(objective, &b, &|b, x, at| by_parts(parts, b, x, at));
            }
        }
    }
}

#[test]
fn cross_entropy_counts_every_token_alike() {
    let b = batch(6, 0.3);
    compare(Objective::Sft, &b, &|_, x, _| x.iter().sum::<f64>() / x.len() as f64);
}

#[test]
fn clips_tell_what_fell_outside_by_their_grain() {
    let b = batch(7, 0.5);
    let (low, high) = (0.9, 1.1);
    for ratio in [Ratio::Token, Ratio::Sequence] {
        let (clip, aggregation) = (Clip::Mask { low, high }, Aggregation::BatchTokens);
        let objective = Objective::Custom { ratio, clip, aggregation, tau: 0.0, skip_flat_groups: false };
        let mut wanted = (0.0, 0.0);
        for (e, t) in b.episodes.iter().flat_map(|e| e.tokens.clone().map(move |t| (e, t))) {
            let mean = e.tokens.clone().map(|t| b.new[t] - b.old[t]).sum::<f64>() / e.tokens.len() as f64;
            let r = if ratio == Ratio::Token { b.ratio(&b.new, t) } else { mean.exp() };
            wanted = (wanted.0 + f64::from(u8::from(r < low)), wanted.1 + f64::from(u8::from(r > high)));
        }
        assert!(wanted.0 > 0.0 && wanted.1 > 0.0);
        assert_eq!(computed(objective, &b).2, wanted, "{ratio:?}");
    }
}

/// Before an update all ratios are 1: then RLOO is REINFORCE, and no clip tells objectives apart.
#[test]
fn where_nothing_has_moved_rloo_is_reinforce_and_clips_do_nothing() {
    let b = batch(8, 0.0);
    let (_, grad, _) = computed(Objective::Rloo, &b);
    let speaking = b.speaking().count() as f64;
    for e in b.speaking() {
        let (difference, _) = b.compared(e);
        for t in e.tokens.clone() {
            assert!((grad[t] + difference * 4.0 / 3.0 / speaking).abs() < 1e-12);
        }
    }
    let of = |clip| {
        let (ratio, aggregation) = (Ratio::Token, Aggregation::GroupTokens);
        computed(Objective::Custom { ratio, clip, aggregation, tau: 1.0, skip_flat_groups: false }, &b).1
    };
    let free = of(Clip::None);
    for clip in [Clip::Mask { low: 0.9, high: 1.1 }, Clip::Ppo { low: 0.9, high: 1.1 }] {
        assert_eq!(of(clip), free);
    }
    let detached = of(Clip::Detached { low: 0.9, high: 1.1 });
    assert!(detached.iter().zip(&free).all(|(a, b)| (a - b).abs() < 1e-15));
}

#[test]
fn a_sample_without_advantage_asks_only_for_tau_and_once_the_weights_have_moved() {
    let still = Sample { mask: vec![false, true], ..Sample::default() };
    let stale = Sample { stale: true, ..still.clone() };
    let pulled = Sample { advantage: 0.5, ..still.clone() };
    let mute = Sample { mask: vec![false; 2], ..pulled.clone() };
    for (objective, _) in presets() {
        assert_eq!(objective.asks(&stale), matches!(objective, Objective::K25 { .. }), "{objective:?}");
        assert!(
            !objective.asks(&still) && objective.asks(&pulled) && !objective.asks(&mute),
            "{objective:?}"
        );
    }
    assert!(Objective::Sft.asks(&still) && !Objective::Sft.asks(&mute));
}

#[test]
fn faults_name_key_value_and_bound() {
    let cases = [
        (r#"{"type": "sft"}"#, "type: `sft` has no rewards to learn from; use `trainer sft`"),
        (r#"{"type": "k25", "alpha": 1.5}"#, "alpha: 1.5 is not within 0.000001 to 1"),
        (r#"{"type": "gspo", "clip_low": 1.0}"#, "clip_low: 1 is not within 0 to 0.999999"),
        (r#"{"type": "cispo", "clip_high": -0.1}"#, "clip_high: -0.1 is not within 0 to 1000000"),
        (
            r#"{"type": "custom", "ratio": "token", "clip": {"type": "mask", "low": 0.5, "high": 0.9},
                "aggregation": {"type": "group_tokens"}}"#,
            "clip.high: 0.9 is not within 1 to 1000000",
        ),
    ];
    for (text, wanted) in cases {
        let found: Vec<String> = read(text).issues().iter().map(|(k, m)| format!("{k}: {m}")).collect();
        assert_eq!(found, [wanted], "{text}");
    }
    for (objective, _) in presets() {
        assert!(objective.issues().is_empty(), "{objective:?}");
        let text = serde_json::to_string(&objective).unwrap();
        assert_eq!(read(&text), objective);
    }
    for bad in [r#"{"type": "gspo", "tau": 1}"#, r#"{"type": "ppo"}"#, r#"{"type": "custom"}"#] {
        assert!(serde_json::from_str::<Objective>(bad).is_err(), "{bad}");
    }
}
