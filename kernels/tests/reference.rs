//! The CPU backend against the f64 reference, at every level of this CPU.

#![allow(clippy::unwrap_used, reason = "tests may panic, helpers of tests too")]

mod fixture;

use fixture::{
    BLOCK_TOKENS, base, draw, log_softmax, logits, plan, ready, reference, rounded, row, run, tensors, tokens,
};
use parl_kernels::backend::Sampling;
use parl_kernels::cpu::Level;
use parl_kernels::shape::ModelShape;
use parl_kernels::weights::WeightSet;

fn grid() -> Vec<(&'static str, ModelShape)> {
    let qwen3 = ModelShape { qkv_bias: false, qk_norm: true, ..base() };
    vec![
        ("qwen2", base()),
        ("llama", ModelShape { qkv_bias: false, ..base() }),
        ("qwen3", qwen3.clone()),
        ("bias and norm, untied", ModelShape { qk_norm: true, tied_head: false, ..base() }),
        ("one kv head of eight", ModelShape { heads: 8, kv_heads: 1, ..base() }),
        ("nine heads on three", ModelShape { heads: 9, kv_heads: 3, head_dim: 32, ..base() }),
        ("no groups", ModelShape { heads: 3, kv_heads: 3, tied_head: false, ..base() }),
        (
            "odd sizes",
            ModelShape {
                vocab: 37,
                hidden: 30,
                heads: 5,
                kv_heads: 5,
                head_dim: 6,
                ffn: 19,
                ..qwen3.clone()
            },
        ),
        (
            "one of each",
            ModelShape {
                vocab: 3,
                hidden: 1,
                layers: 1,
                heads: 1,
                kv_heads: 1,
                head_dim: 2,
                ffn: 1,
                ..base()
            },
        ),
        ("wide heads", ModelShape { heads: 2, kv_heads: 1, head_dim: 80, vocab: 129, ..qwen3 }),
        ("large theta", ModelShape { rope_theta: 1e6, rms_eps: 1e-5, layers: 1, ..base() }),
    ]
}

/// Largest difference of log-probs over all tokens of a sequence, in one prefill and drawn.
fn worst(
    level: Level,
    shape: &ModelShape,
    weights: WeightSet,
    wanted: &[Vec<f64>],
    sequence: &[u32],
    bt: u32,
) -> f64 {
    let mut backend = ready(level, weights, 64, bt);
    let blocks: Vec<u32> =
        (0..(sequence.len() as u32).div_ceil(bt)).map(|b| 61 - 3 * (b % 20) - b / 20).collect();
    let got = logits(&mut backend, &plan(vec![row(sequence, 0, &blocks, None)]));
    let mut worst = 0f64;
    for (got, wanted) in got[0].iter().zip(wanted) {
        assert_eq!(got.len(), shape.vocab);
        let got = log_softmax(&got.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), 1.0);
        for (a, b) in got.iter().zip(log_softmax(wanted, 1.0)) {
            worst = worst.max((a - b).abs());
        }
    }
    for temperature in [0.6, 1.0] {
        let mut wish = draw(1, sequence.len() as u32);
        wish.sampling = Sampling { temperature, top_k: 0, top_p: 1.0 };
        let drawn = run(&mut backend, &plan(vec![row(sequence, 0, &blocks, Some(wish))]))[0].unwrap();
        let wanted = log_softmax(&wanted[sequence.len() - 1], f64::from(temperature))[drawn.id as usize];
        worst = worst.max((f64::from(drawn.logprob) - wanted).abs());
    }
    worst
}

#[test]
fn f32_weights_agree_to_1e_4() {
    for (name, shape) in grid() {
        let w = tensors(&shape, 1);
        let sequence = tokens(&shape, 2, 45);
        let wanted = reference(&shape, &w, &sequence);
        for level in Level::available() {
            for bt in [BLOCK_TOKENS, 5, 32] {
                let weights = WeightSet::from_f32(shape.clone(), 1, w.clone()).unwrap();
                let worst = worst(level, &shape, weights, &wanted, &sequence, bt);
                assert!(worst <= 1e-4, "{name}, {}, blocks of {bt}: {worst}", level.name());
            }
        }
    }
}

#[test]
fn bf16_weights_agree_with_the_same_values_in_f64() {
    for (name, shape) in grid() {
        let (low, same) = rounded(&tensors(&shape, 1));
        let sequence = tokens(&shape, 2, 21);
        let wanted = reference(&shape, &same, &sequence);
        for level in Level::available() {
            let weights = WeightSet::from_bf16(shape.clone(), 1, low.clone()).unwrap();
            let worst = worst(level, &shape, weights, &wanted, &sequence, BLOCK_TOKENS);
            assert!(worst <= 1e-4, "{name}, {}: {worst}", level.name());
        }
    }
}

#[test]
fn rounding_weights_to_bf16_moves_log_probs_little() {
    let shape = base();
    let w = tensors(&shape, 1);
    let sequence = tokens(&shape, 2, 21);
    let wanted = reference(&shape, &w, &sequence);
    let weights = WeightSet::from_bf16(shape.clone(), 1, rounded(&w).0).unwrap();
    let worst = worst(Level::best(), &shape, weights, &wanted, &sequence, BLOCK_TOKENS);
    assert!(worst > 1e-4 && worst < 0.3, "{worst}");
}

#[test]
fn a_long_sequence_agrees_too() {
    let shape = ModelShape { layers: 2, ..base() };
    let w = tensors(&shape, 3);
    let sequence = tokens(&shape, 4, 400);
    let wanted = reference(&shape, &w, &sequence);
    let weights = WeightSet::from_f32(shape.clone(), 1, w).unwrap();
    let worst = worst(Level::best(), &shape, weights, &wanted, &sequence, BLOCK_TOKENS);
    assert!(worst <= 1e-4, "{worst}");
}

#[test]
fn every_level_agrees_with_the_portable_one() {
    let shape = ModelShape { qk_norm: true, ..base() };
    let sequence = tokens(&shape, 2, 60);
    let all = plan(vec![row(&sequence, 0, &[0, 1, 2, 3], None)]);
    let of = |level| {
        let weights = WeightSet::from_f32(shape.clone(), 1, tensors(&shape, 1)).unwrap();
        logits(&mut ready(level, weights, 4, BLOCK_TOKENS), &all).concat().concat()
    };
    let portable = of(Level::PORTABLE);
    for level in Level::available() {
        let worst = of(level).iter().zip(&portable).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
        assert!(worst < 1e-4, "{}: {worst}", level.name());
    }
}
