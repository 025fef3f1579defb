use std::collections::HashMap;

use super::*;
use crate::rng::{RngKey, Stream};
use crate::shape::ModelShape;

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let key = RngKey { seed, stream: Stream::Init, episode: 0, agent: 0 };
    (0..count as u32).map(|i| key.uniform_f32(i) * 2.0 - 1.0).collect()
}

/// A set whose tensor `head` is `[outputs, inputs]`.
fn set(outputs: usize, inputs: usize, bf16_weights: bool) -> (WeightSet, Vec<f32>) {
    let shape = ModelShape {
        vocab: outputs,
        hidden: inputs,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        ffn: 1,
        max_positions: 1,
        rope_theta: 1e4,
        rms_eps: 1e-6,
        qkv_bias: false,
        qk_norm: false,
        tied_head: false,
    };
    let tensors: HashMap<String, Vec<f32>> =
        shape.tensors().into_iter().map(|(name, dims)| (name, numbers(dims.iter().product(), 7))).collect();
    let head = tensors["head"].clone();
    if bf16_weights {
        let rounded: HashMap<_, Vec<bf16>> =
            tensors.into_iter().map(|(k, v)| (k, v.into_iter().map(bf16::from_f32).collect())).collect();
        let head = rounded["head"].iter().map(|x| x.to_f32()).collect();
        (WeightSet::from_bf16(shape, 0, rounded).unwrap(), head)
    } else {
        (WeightSet::from_f32(shape, 0, tensors).unwrap(), head)
    }
}

fn product(level: Level, weights: &WeightSet, n: usize, k: usize, x: &[f32], rows: usize) -> Vec<f32> {
    let packed = Packed::new(level, weights, "head", [n, k], k.is_multiple_of(2)).unwrap();
    let stride = packed.output_stride();
    let mut y = vec![0.0; rows * stride];
    packed.multiply(x, k, rows, None, &mut y, Mode::Store);
    y.chunks(stride).flat_map(|row| row[..n].to_vec()).collect()
}

#[test]
fn every_level_agrees_with_f64() {
    for (n, k) in [(1, 1), (33, 7), (70, 64), (200, 130)] {
        for bf in [false, true] {
            let (weights, w) = set(n, k, bf);
            for rows in [1, 2, 3, 5, 6, 7, 12, 13, 29, 50] {
                let x = numbers(rows * k, 3);
                for level in Level::available() {
                    let y = product(level, &weights, n, k, &x, rows);
                    for (i, &got) in y.iter().enumerate() {
                        let (r, c) = (i / n, i % n);
                        let wanted: f64 =
                            (0..k).map(|j| f64::from(x[r * k + j]) * f64::from(w[c * k + j])).sum();
                        assert!(
                            (f64::from(got) - wanted).abs() < 2e-5,
                            "{level:?} {n}x{k} row {r} column {c}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let (n, k, most) = (300, 96, 50);
    let x = numbers(most * k, 5);
    for (level, bf) in Level::available().into_iter().flat_map(|level| [(level, false), (level, true)]) {
        let (weights, _) = set(n, k, bf);
        let all = product(level, &weights, n, k, &x, most);
        for rows in 1..=most {
            let first = most - rows;
            let some = product(level, &weights, n, k, &x[first * k..], rows);
            assert!(
                some.iter().zip(&all[first * n..]).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{rows} rows"
            );
        }
    }
}

#[test]
fn bias_and_residual_are_added() {
    let (n, k) = (40, 8);
    let (weights, _) = set(n, k, false);
    let x = numbers(k, 1);
    let packed = Packed::new(Level::best(), &weights, "head", [n, k], true).unwrap();
    let stride = packed.output_stride();
    let plain = product(Level::best(), &weights, n, k, &x, 1);
    let mut y = vec![1.0; stride];
    packed.multiply(&x, k, 1, Some(&vec![0.5; stride]), &mut y, Mode::Add);
    assert!(y.iter().zip(&plain).all(|(a, b)| (a - (1.0 + (b + 0.5))).abs() < 1e-6));
}

#[test]
fn an_element_is_one_chain_over_ascending_inputs() {
    let (n, k, most) = (40, 333, 30);
    let (x, bias, old) = (numbers(most * k, 11), numbers(padded(n), 12), numbers(most * padded(n), 13));
    for (level, bf) in Level::available().into_iter().flat_map(|level| [(level, false), (level, true)]) {
        let (weights, w) = set(n, k, bf);
        let packed = Packed::new(level, &weights, "head", [n, k], false).unwrap();
        let stride = packed.output_stride();
        let step = |sum: f32, a: f32, b: f32| {
            if level == Level::PORTABLE { a * b + sum } else { a.mul_add(b, sum) }
        };
        let chain = |r: usize, c: usize| (0..k).fold(0.0, |sum, i| step(sum, x[r * k + i], w[c * k + i]));
        let sums: Vec<f32> = (0..most * n).map(|at| chain(at / n, at % n)).collect();
        for (rows, mode) in (1..=most).flat_map(|rows| [(rows, Mode::Store), (rows, Mode::Add)]) {
            let mut y = old[..rows * stride].to_vec();
            packed.multiply(&x, k, rows, Some(&bias), &mut y, mode);
            for (r, c) in (0..rows).flat_map(|r| (0..n).map(move |c| (r, c))) {
                let sum = sums[r * n + c] + bias[c];
                let wanted = if mode == Mode::Add { old[r * stride + c] + sum } else { sum };
                let got = y[r * stride + c];
                assert_eq!(
                    got.to_bits(),
                    wanted.to_bits(),
                    "{level:?} bf16 {bf} {rows} rows {mode:?}: row {r} column {c}"
                );
            }
        }
    }
}

#[test]
fn an_infinite_weight_is_refused_by_name() {
    let (weights, _) = set(4, 4, false);
    let mut tensors: HashMap<String, Vec<f32>> = weights
        .shape()
        .tensors()
        .into_iter()
        .map(|(n, _)| (n.clone(), weights.f32(&n).unwrap().to_vec()))
        .collect();
    tensors.get_mut("head").unwrap()[5] = f32::NEG_INFINITY;
    let weights = WeightSet::from_f32(weights.shape().clone(), 0, tensors).unwrap();
    let refused = Packed::new(Level::best(), &weights, "head", [4, 4], false).err().unwrap();
    assert!(refused.to_string().contains("`head`"), "{refused}");
}
