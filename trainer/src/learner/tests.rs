//! The learner against the engine, against finite differences, and against itself.

use parl_kernels::backend::{Backend, Plan, PlanGroup, PlanRow, SetId};
use parl_kernels::cpu::{CpuBackend, Level};
use parl_kernels::rng::{RngKey, Stream};
use parl_kernels::shape::ModelShape;
use parl_kernels::weights::{Dtype, WeightSet};
use tch::{Device, Kind, Tensor};

use super::step::floats;
use super::*;

fn shape(bias: bool, norm: bool, tied: bool) -> ModelShape {
    ModelShape {
        vocab: 61,
        hidden: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 40,
        max_positions: 64,
        rope_theta: 10_000.0,
        rms_eps: 1e-5,
        qkv_bias: bias,
        qk_norm: norm,
        tied_head: tied,
    }
}

fn params(shape: &ModelShape) -> std::collections::HashMap<String, Tensor> {
    // Wider than a fresh model, so that distributions are far from flat.
    initial(shape, 3)
        .into_iter()
        .map(|(n, p)| (n.clone(), if n.contains("norm") { p } else { p * 2.0 }))
        .collect()
}

fn learner(shape: &ModelShape, threads: usize) -> Learner {
    let adamw = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
    let muon = Muon { qk_clip: None, ..Muon::default() };
    let optimizer = Optimizer::new(adamw, shape.qk_norm.then_some(muon));
    let mut learner = Learner::new(shape.clone(), params(shape), optimizer, threads).unwrap();
    learner.micro_batch_tokens = 40;
    learner
}

fn samples(shape: &ModelShape, n: usize) -> Vec<Sample> {
    let draw = |i: usize, j: u32, below: usize| {
        let key = RngKey { seed: 8, stream: Stream::Shuffle, episode: i as u64, agent: 0 };
        (key.uniform_f64(j) * below as f64) as u32
    };
    (0..n)
        .map(|i| {
            let length = 5 + i % 13;
            let tokens: Vec<u32> = (0..length as u32).map(|j| draw(i, j, shape.vocab)).collect();
            let mask: Vec<bool> = (0..length).map(|j| j > 1 && j % 3 != 0).collect();
            let temperatures = mask.iter().map(|m| if *m { 0.7 } else { 1.0 }).collect();
            let logprobs = vec![0.0; length];
            let advantage = (i as f32 - 3.0) / 4.0;
            Sample { tokens, mask, logprobs, temperatures, advantage, group: i / 4, stale: false }
        })
        .collect()
}

/// Samples whose recorded log-probs are the learner's own.
fn recorded(learner: &Learner, n: usize) -> Vec<Sample> {
    let mut samples = samples(learner.shape(), n);
    let all = learner.log_probs(&samples).unwrap();
    for (sample, logprobs) in samples.iter_mut().zip(all) {
        let drawn: Vec<usize> = (0..sample.tokens.len()).filter(|i| sample.mask[*i]).collect();
        drawn.iter().zip(logprobs).for_each(|(i, l)| sample.logprobs[*i] = l);
    }
    samples
}

#[test]
fn the_engine_and_the_learner_agree() {
    for (bias, norm, tied) in [(false, false, true), (true, false, false), (false, true, true)] {
        let shape = shape(bias, norm, tied);
        let mut learner = learner(&shape, 1);
        for level in Level::available() {
            let mut backend = CpuBackend::new(level);
            backend.reserve_kv(16, 8).unwrap();
            backend.install(SetId(0), learner.lease().unwrap()).unwrap();
            let samples = [samples(&shape, 9), grouped(&shape)].concat();
            // What is computed together has the log-probs of what is computed alone.
            let together = learner.log_probs(&samples).unwrap();
            for (sample, together) in samples.into_iter().zip(together) {
                let row = PlanRow {
                    tokens: sample.tokens.clone(),
                    start: 0,
                    blocks: vec![3, 1, 7, 5, 2],
                    draw: None,
                };
                let plan =
                    Plan { copies: Vec::new(), groups: vec![PlanGroup { set: SetId(0), rows: vec![row] }] };
                let logits = backend.logits(&plan).unwrap();
                let mut engine = Vec::new();
                for (t, token) in sample.tokens.iter().enumerate().filter(|(t, _)| sample.mask[*t]) {
                    let scaled: Vec<f64> =
                        logits[0][0][t - 1].iter().map(|l| f64::from(*l) / 0.7f32 as f64).collect();
                    let total = scaled.iter().map(|l| l.exp()).sum::<f64>().ln();
                    engine.push((scaled[*token as usize] - total) as f32);
                }
                let alone = learner.log_probs(std::slice::from_ref(&sample)).unwrap().remove(0);
                assert_eq!([alone.len(), together.len()], [engine.len(); 2]);
                for (a, b) in engine.iter().zip(&alone).chain(engine.iter().zip(&together)) {
                    assert!((a - b).abs() <= 1e-4, "{level:?}: {a} {b}");
                }
            }
        }
    }
}

/// Three groups whose samples share their prompts: of one token, of twenty, and of twenty that go on alike, drawn tokens
/// and all. Suffixes are ragged, some are empty, and one group is of a single sample.
fn grouped(shape: &ModelShape) -> Vec<Sample> {
    let mut all = samples(shape, 12);
    for (i, sample) in all.iter_mut().enumerate() {
        let prompt: &[u32] = match i / 4 {
            0 => &[7],
            1 => &[11; 20],
            _ => &[13; 20],
        };
        let drawn = prompt.len().max(2);
        // The last group has the first one's words: two samples alike, one of them cut short in the other.
        if i >= 8 {
            sample.tokens = vec![5, 6, 7, 8, 9, 10, 12, 14, 15][..[9, 9, 6, 3][i - 8]].to_vec();
        }
        sample.tokens = [prompt, &sample.tokens].concat();
        let n = sample.tokens.len();
        sample.mask = (0..n).map(|j| j >= drawn && j % 4 != 1).collect();
        sample.temperatures = sample.mask.iter().map(|m| if *m { 0.7 } else { 1.0 }).collect();
        sample.logprobs =
            (0..n).map(|j| if sample.mask[j] { -3.0 - (j % 3) as f32 * 0.1 } else { 0.0 }).collect();
    }
    all.push(Sample { group: 3, ..all[4].clone() });
    all.last_mut().unwrap().tokens[0] = 1;
    all
}

/// Loss and gradients in f64, each sample alone, all of it by autograd over the whole of its logits.
fn plainly(
    shape: &ModelShape,
    params: &Params,
    samples: &[Sample],
    objective: Objective,
) -> (f64, Vec<(String, Tensor)>) {
    let shares = objective.shares(samples);
    let leaf = |(n, p): (&String, &Tensor)| (n.clone(), p.detach().set_requires_grad(true));
    let leaves: Params = params.iter().map(leaf).collect();
    let mut total = 0.0;
    for (sample, share) in samples.iter().zip(shares) {
        let ids: Vec<i64> = sample.tokens.iter().map(|t| i64::from(*t)).collect();
        let h = model::hidden(shape, &leaves, &model::Packed::one(&ids, (Kind::Double, Device::Cpu)));
        let at: Vec<i64> = (0..ids.len() as i64).filter(|t| sample.mask[*t as usize]).collect();
        let before = Tensor::from_slice(&at) - 1;
        let drawn: Vec<i64> = at.iter().map(|t| ids[*t as usize]).collect();
        let logits = h.index_select(0, &before).linear::<&Tensor>(&leaves[model::head_name(shape)], None);
        let all = (logits / f64::from(sample.temperatures[at[0] as usize])).log_softmax(-1, None);
        let logp = all.gather(1, &Tensor::from_slice(&drawn).unsqueeze(1), false).squeeze_dim(1);
        let old: Vec<f32> = at.iter().map(|t| sample.logprobs[*t as usize]).collect();
        let loss = objective.loss(&objective::Tokens {
            logp: &logp,
            old: &Tensor::from_slice(&old),
            advantage: &Tensor::full([at.len() as i64], f64::from(sample.advantage), tch::kind::DOUBLE_CPU),
            weight: &Tensor::full([at.len() as i64], f64::from(share as f32), tch::kind::DOUBLE_CPU),
            sequence: &Tensor::zeros([at.len() as i64], tch::kind::INT64_CPU),
            lengths: &Tensor::from_slice(&[at.len() as f64]),
        });
        loss.backward();
        total += loss.double_value(&[]);
    }
    let mut grads: Vec<(String, Tensor)> = leaves.iter().map(|(n, l)| (n.clone(), l.grad())).collect();
    grads.sort_by(|a, b| a.0.cmp(&b.0));
    (total, grads)
}

#[test]
fn what_is_shared_has_the_loss_and_the_gradient_of_what_is_not() {
    let grpo = Objective::Grpo { clip_low: 0.2, clip_high: 0.28 };
    let gspo = Objective::Gspo { clip_low: 0.5, clip_high: 0.5 };
    let cases = [(false, false, true, K25), (true, false, false, grpo), (false, true, true, gspo)];
    for (bias, norm, tied, objective) in cases {
        let shape = shape(bias, norm, tied);
        let double: Params = params(&shape).into_iter().map(|(n, p)| (n, p.to_kind(Kind::Double))).collect();
        let mut samples = grouped(&shape);
        // The same tokens at the same places as another's, and yet other log-probs.
        samples[9].temperatures.fill(1.3);
        let (loss, grads) = plainly(&shape, &double, &samples, objective);
        let shares = objective.shares(&samples);
        let of = |stretches: &[(usize, usize)]| -> Vec<packing::Family> {
            stretches.iter().map(|(a, b)| packing::Family::of(&samples, (*a..*b).collect())).collect()
        };
        let prefixes: Vec<usize> =
            of(&[(0, 4), (4, 8), (8, 12), (12, 13)]).iter().map(|f| f.prefix).collect();
        assert_eq!(prefixes, [1, 20, samples[11].inputs().len(), samples[12].inputs().len()]);
        // Groups whole in one micro-batch; cut over several; all of it apart; as it is planned.
        let asked = (0..samples.len()).collect();
        let planned = packing::families(&samples, asked, 60);
        assert!(planned.iter().any(|family| family.members.len() > 2), "{planned:?}");
        for cut in [
            vec![of(&[(0, 4), (4, 8), (8, 12), (12, 13)])],
            vec![of(&[(0, 2), (8, 12)]), of(&[(2, 4), (4, 5)]), of(&[(5, 8), (12, 13)])],
            (0..13).map(|i| of(&[(i, i + 1)])).collect(),
            packing::micro_batches(&samples, planned, 60),
        ] {
            // By autograd, and by hand.
            for (kind, near) in [(Kind::Double, 1e-11), (Kind::Float, 2e-5)] {
                let mut total = 0.0;
                let mut sums: Params = double.iter().map(|(n, p)| (n.clone(), p.zeros_like())).collect();
                for families in &cut {
                    let alias = double.iter().map(|(n, p)| (n.clone(), p.detach().to_kind(kind))).collect();
                    let batch = micro_batch::MicroBatch::of(&samples, families, &shares, (kind, Device::Cpu));
                    let micro = batch.backward(&shape, alias, objective);
                    total += micro.loss;
                    micro.grads.iter().for_each(|(n, g)| drop(sums.get_mut(n).unwrap().g_add_(g)));
                }
                let off = (total - loss).abs() / loss.abs().max(1.0);
                assert!(off < near, "{kind:?} {objective:?}: {total} {loss}");
                for (name, grad) in &grads {
                    let apart = (&sums[name] - grad).abs().max().double_value(&[]);
                    let size = grad.abs().max().double_value(&[]);
                    assert!(
                        size > 0.0 && apart < near * size,
                        "{kind:?} {objective:?} {name}: {apart} of {size}"
                    );
                }
            }
        }
    }
}

fn bits(learner: &Learner) -> Vec<u32> {
    let mut names: Vec<&String> = learner.params().keys().collect();
    names.sort();
    names.iter().flat_map(|n| floats(&learner.params()[*n])).map(f32::to_bits).collect()
}

const K25: Objective = Objective::K25 { alpha: 0.8, beta: 1.25, tau: 1e-3 };

#[test]
fn bits_do_not_depend_on_the_workers() {
    for shape in [shape(true, false, true), shape(false, true, true)] {
        same_bits(&shape);
    }
}

fn same_bits(shape: &ModelShape) {
    let (mut one, mut two) = (learner(shape, 1), learner(shape, 2));
    let mut samples = recorded(&one, 20);
    samples.extend(grouped(shape).into_iter().map(|s| Sample { group: s.group + 5, ..s }));
    for _ in 0..3 {
        let a = one.train_step(&samples, K25, 1e-3, &|_, _| {}).unwrap();
        let b = two.train_step(&samples, K25, 1e-3, &|_, _| {}).unwrap();
        assert_eq!((a.loss.to_bits(), a.grad_norm.to_bits()), (b.loss.to_bits(), b.grad_norm.to_bits()));
    }
    assert_eq!(bits(&one), bits(&two));
    assert_eq!(one.version(), 3);
}

#[test]
fn recorded_log_probs_match_before_an_update_and_better_ones_follow() {
    let shape = shape(false, false, true);
    let mut learner = learner(&shape, 2);
    let samples = recorded(&learner, 16);
    let first = learner.train_step(&samples, K25, 3e-3, &|_, _| {}).unwrap();
    assert!(first.mismatch_kl.abs() < 1e-9 && first.mismatch_max < 1e-5, "{first:?}");
    let before = learner.log_probs(&samples).unwrap();
    for (sample, after) in samples.iter().zip(before).filter(|(s, _)| s.advantage.abs() > 0.5) {
        let old: f32 = sample.logprobs.iter().sum();
        let new: f32 = after.iter().sum();
        assert!((new - old) * sample.advantage > 0.0, "{} {old} {new}", sample.advantage);
    }
    let mut losses = Vec::new();
    for _ in 0..30 {
        losses.push(learner.train_step(&samples, Objective::Sft, 1e-2, &|_, _| {}).unwrap().loss);
    }
    assert!(losses[29] < losses[0] * 0.5, "{losses:?}");
}

#[test]
fn a_refused_step_changes_nothing() {
    let shape = shape(false, false, true);
    let mut learner = learner(&shape, 2);
    let samples = recorded(&learner, 8);
    learner.train_step(&samples, K25, 1e-3, &|_, _| {}).unwrap();
    let before = bits(&learner);
    let mut bad = samples.clone();
    bad[3].advantage = f32::NAN;
    assert!(matches!(learner.train_step(&bad, K25, 1e-3, &|_, _| {}), Err(LearnerError::NotFinite { .. })));
    let mut far = samples.clone();
    // e^(logp - old) is beyond f32: the loss of GRPO is infinite.
    let mask = far[0].mask.clone();
    far[0].logprobs.iter_mut().zip(&mask).filter(|(_, m)| **m).for_each(|(l, _)| *l = -1e4);
    far[0].advantage = -1.0;
    let grpo = Objective::Grpo { clip_low: 0.2, clip_high: 0.28 };
    assert!(matches!(learner.train_step(&far, grpo, 1e-3, &|_, _| {}), Err(LearnerError::NotFinite { .. })));
    let lease = learner.lease().unwrap();
    assert!(learner.train_step(&samples, K25, 1e-3, &|_, _| {}).unwrap_err().to_string().contains("leased"));
    drop(lease);
    assert_eq!(bits(&learner), before);
    learner.train_step(&samples, K25, 1e-3, &|_, _| {}).unwrap();
    assert_ne!(bits(&learner), before);
}

#[test]
fn a_copy_stays_as_it_was_and_the_next_takes_its_place() {
    let shape = shape(false, false, true);
    let mut learner = learner(&shape, 1);
    let samples = recorded(&learner, 8);
    let first = learner.copied().unwrap();
    let read = |set: &WeightSet| set.f32("layers.0.down").unwrap().to_vec();
    let (place, before) = (first.f32("layers.0.down").unwrap().as_ptr(), read(&first));
    learner.train_step(&samples, K25, 1e-2, &|_, _| {}).unwrap();
    assert_eq!((read(&first), first.version()), (before.clone(), 0));
    assert!(learner.copied().err().unwrap().to_string().contains("leased"));
    drop(first);
    let second = learner.copied().unwrap();
    assert_eq!((second.f32("layers.0.down").unwrap().as_ptr(), second.version()), (place, 1));
    assert_eq!(read(&second), floats(&learner.params()["layers.0.down"]));
    assert_ne!(read(&second), before);
}

#[test]
fn weights_go_to_disk_and_back() {
    for (bias, norm, tied) in [(true, false, true), (false, true, false)] {
        let shape = shape(bias, norm, tied);
        let params = params(&shape);
        let bytes = export(&shape, &params).unwrap();
        let back = import(&shape, &bytes).unwrap();
        for (name, tensor) in &params {
            let rounded = tensor.to_kind(Kind::BFloat16).to_kind(Kind::Float);
            assert_eq!(floats(&rounded), floats(&back[name]), "{name}");
        }
        assert_eq!(export(&shape, &back).unwrap(), bytes);
        let other = ModelShape { ffn: 41, ..shape.clone() };
        let error = import(&other, &bytes).unwrap_err().to_string();
        assert!(error.contains("mlp.gate_proj.weight") && error.contains("[40, 32]"), "{error}");
        assert!(import(&shape, &bytes[..bytes.len() - 1]).is_err() && import(&shape, b"x").is_err());
        let more = ModelShape { layers: 1, ..shape };
        assert!(import(&more, &bytes).unwrap_err().to_string().contains("tensors, the model has"));
    }
}

#[test]
fn a_saved_state_goes_on_with_the_same_bits() {
    let shape = shape(true, true, false);
    let mut whole = learner(&shape, 2);
    let samples = recorded(&whole, 12);
    for _ in 0..2 {
        whole.train_step(&samples, K25, 1e-3, &|_, _| {}).unwrap();
    }
    let saved = whole.save().unwrap();
    let mut resumed = Learner::new(shape.clone(), initial(&shape, 99), muon(), 1).unwrap();
    resumed.micro_batch_tokens = whole.micro_batch_tokens;
    resumed.restore(&saved).unwrap();
    assert_eq!(resumed.version(), 2);
    assert_eq!(resumed.save().unwrap(), saved);
    for learner in [&mut whole, &mut resumed] {
        learner.train_step(&samples, K25, 1e-3, &|_, _| {}).unwrap();
    }
    assert_eq!(whole.save().unwrap(), resumed.save().unwrap());
    // Without the optimizer's part it would go another way.
    let mut forgetful = Learner::new(shape.clone(), initial(&shape, 99), muon(), 1).unwrap();
    forgetful.restore(&saved).unwrap();
    forgetful.optimizer = muon();
    forgetful.train_step(&samples, K25, 1e-3, &|_, _| {}).unwrap();
    assert_ne!(whole.save().unwrap(), forgetful.save().unwrap());
}

fn muon() -> Optimizer {
    let adamw = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
    Optimizer::new(adamw, Some(Muon { qk_clip: None, ..Muon::default() }))
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing() {
    let shape = shape(true, true, false);
    let mut learner = learner(&shape, 1);
    let before = learner.save().unwrap();
    let other = ModelShape { ffn: 48, ..shape.clone() };
    let mut refused = |bytes: &[u8], wanted: &str| {
        let error = learner.restore(bytes).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        assert_eq!(learner.save().unwrap(), before);
    };
    refused(b"junk", "not a safetensors file");
    refused(&before[..before.len() - 3], "not a safetensors file");
    let wider = Learner::new(other.clone(), initial(&other, 1), muon(), 1).unwrap().save().unwrap();
    refused(&wider, "is of shape");
    let mut nan = before.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(&nan, "is NaN at element");
}

#[test]
fn qk_clip_brings_logits_down_to_the_bound_and_leaves_others_alone() {
    for bias in [false, true] {
        let shape = shape(bias, false, true);
        let params = params(&shape);
        let sequences = [vec![1i64, 5, 9, 2, 7, 30, 11], vec![4, 4, 8]];
        let before = qk_clip::peaks(&shape, &params, &sequences);
        let mut all: Vec<f64> = before.iter().flatten().copied().collect();
        all.sort_by(f64::total_cmp);
        // A bound that the largest group of the first layer alone passes: later layers see other inputs after it.
        let limit = before[0].iter().copied().fold(f64::INFINITY, f64::min) + 1e-3;
        let first_only = vec![before[0].clone()];
        assert_eq!(qk_clip::clip(&shape, &params, &first_only, limit), 1);
        let after = qk_clip::peaks(&shape, &params, &sequences);
        for (b, a) in before[0].iter().zip(&after[0]) {
            let wanted = b.min(limit);
            assert!((a - wanted).abs() < 1e-4 * wanted.abs().max(1.0), "{b} became {a}, bound {limit}");
        }
    }
}

#[test]
fn weights_in_bf16_move_by_less_than_their_last_bit_and_are_put_back_exactly() {
    for place in [Place::cpu, Place::cpu_like_card] {
        move_in_bf16(place);
    }
}

fn move_in_bf16(place: fn(Dtype) -> Place) {
    // Projections by Muon, the rest by AdamW.
    let shape = shape(false, true, true);
    let objective = Objective::Grpo { clip_low: 0.2, clip_high: 0.2 };
    let at = |dtype, params: Params| {
        let optimizer = learner(&shape, 1).optimizer;
        let mut learner = Learner::at(place(dtype), shape.clone(), params, optimizer, 2).unwrap();
        learner.micro_batch_tokens = 40;
        learner
    };
    let rounded = |learner: &Learner| -> Params {
        learner.params().iter().map(|(name, p)| (name.clone(), p.to_kind(Kind::Float))).collect()
    };
    let mut low = at(Dtype::Bf16, params(&shape));
    let start = rounded(&low);
    let mut full = at(Dtype::F32, start.iter().map(|(name, p)| (name.clone(), p.copy())).collect());
    assert!(low.params().values().all(|p| p.kind() == Kind::BFloat16));
    let samples = recorded(&full, 12);
    let (mut losses, steps) = ((0.0, 0.0), 40);
    for _ in 0..steps {
        let report = low.train_step(&samples, objective, 2e-5, &|_, _| {}).unwrap();
        assert!(report.mismatch_max < 0.2, "{report:?}");
        losses = (report.loss, full.train_step(&samples, objective, 2e-5, &|_, _| {}).unwrap().loss);
    }
    assert!((losses.0 - losses.1).abs() < 0.05 * losses.1.abs() + 1e-3, "{losses:?}");
    // A step is below the last bit of most weights; together they go where those of f32 go.
    let (mut along, mut own, mut theirs) = (0.0, 0.0, 0.0);
    for (name, master) in low.optimizer.masters() {
        let (a, b) = (master - &start[&name], &full.params()[&name] - &start[&name]);
        let product = |x: &Tensor, y: &Tensor| (x * y).sum(Kind::Double).double_value(&[]);
        (along, own, theirs) = (along + product(&a, &b), own + product(&a, &a), theirs + product(&b, &b));
    }
    let cosine = along / (own * theirs).sqrt();
    assert!(cosine > 0.9, "{cosine}");
    let moved = rounded(&low).iter().any(|(name, p)| *p != start[name]);
    assert!(moved);

    let saved = low.save().unwrap();
    let mut resumed = at(Dtype::Bf16, initial(&shape, 99));
    resumed.restore(&saved).unwrap();
    assert_eq!(resumed.save().unwrap(), saved);
    for learner in [&mut low, &mut resumed] {
        learner.train_step(&samples, objective, 2e-5, &|_, _| {}).unwrap();
    }
    assert_eq!(resumed.save().unwrap(), low.save().unwrap());
}

#[test]
fn the_engine_reads_weights_in_bf16_where_they_lie() {
    let shape = shape(true, false, true);
    let optimizer = learner(&shape, 1).optimizer;
    let mut learner =
        Learner::at(Place::cpu(Dtype::Bf16), shape.clone(), params(&shape), optimizer, 1).unwrap();
    let lease = learner.lease().unwrap();
    let own = learner.params()["layers.1.down"].data_ptr();
    assert_eq!(lease.bf16("layers.1.down").unwrap().as_ptr().cast(), own.cast_const());
    let mut backend = CpuBackend::default();
    backend.reserve_kv(16, 8).unwrap();
    backend.install(SetId(0), lease).unwrap();
    for sample in samples(&shape, 6) {
        let row = PlanRow { tokens: sample.tokens.clone(), start: 0, blocks: vec![3, 1, 7], draw: None };
        let groups = vec![PlanGroup { set: SetId(0), rows: vec![row] }];
        let logits = backend.logits(&Plan { copies: Vec::new(), groups }).unwrap().remove(0).remove(0);
        let learned = learner.log_probs(std::slice::from_ref(&sample)).unwrap().remove(0);
        let drawn = (0..sample.tokens.len()).filter(|t| sample.mask[*t]);
        for (t, learned) in drawn.zip(learned) {
            let scaled: Vec<f64> = logits[t - 1].iter().map(|l| f64::from(*l) / 0.7).collect();
            let total = scaled.iter().map(|l| l.exp()).sum::<f64>().ln();
            let engine = scaled[sample.tokens[t] as usize] - total;
            // Both compute in f32.
            assert!((engine - f64::from(learned)).abs() < 1e-4, "{engine} {learned}");
        }
    }
}

#[test]
fn a_card_without_room_names_the_key_to_lower() {
    let error =
        guarded(|| panic!("Torch(\"CUDA out of memory. Tried to allocate 2.00 GiB.\\nmore\")")).unwrap_err();
    assert!(matches!(error, LearnerError::Memory(_)));
    assert!(
        error.to_string().ends_with("it was for the learner: lower learner.micro_batch_tokens"),
        "{error}"
    );
}
