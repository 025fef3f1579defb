//! The whole forward pass against a plain one in f64, and a row's bits against themselves.

use half::bf16;

use super::*;
use crate::backend::{Draw, Sampling};
use crate::rng::{RngKey, Stream};
use crate::shape::ModelShape;

fn shape(vocab: usize, tied: bool, bias: bool, norm: bool) -> ModelShape {
    ModelShape {
        vocab,
        hidden: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 10,
        ffn: 37,
        max_positions: 64,
        rope_theta: 10_000.0,
        rms_eps: 1e-5,
        qkv_bias: bias,
        qk_norm: norm,
        tied_head: tied,
    }
}

fn tensors(shape: &ModelShape) -> HashMap<String, Vec<f32>> {
    let fill = |(i, (name, dims)): (usize, (String, Vec<usize>))| {
        let key = RngKey { seed: 5, stream: Stream::Init, episode: i as u64, agent: 0 };
        let n: usize = dims.iter().product();
        let centre = if name.contains("norm") { 1.0 } else { 0.0 };
        let values = (0..n as u32).map(|j| centre + 0.6 * (key.uniform_f32(j) - 0.5)).collect();
        (name, values)
    };
    shape.tensors().into_iter().enumerate().map(fill).collect()
}

fn backend(
    shape: &ModelShape,
    level: Level,
    threads: usize,
    tensors: HashMap<String, Vec<f32>>,
) -> CpuBackend {
    let mut backend = CpuBackend::new(level, threads).unwrap();
    backend.reserve_kv(64, 4).unwrap();
    backend.install(SetId(0), WeightSet::from_f32(shape.clone(), 1, tensors).unwrap()).unwrap();
    backend
}

fn row(tokens: &[u32], start: u32, blocks: &[u32]) -> PlanRow {
    let key = RngKey { seed: 9, stream: Stream::Sample, episode: 0, agent: 0 };
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
    let draw = Some(Draw { sampling, key, position: start + tokens.len() as u32 });
    PlanRow { tokens: tokens.to_vec(), start, blocks: blocks.to_vec(), draw }
}

fn plan(rows: Vec<PlanRow>) -> Plan {
    Plan { copies: Vec::new(), groups: vec![PlanGroup { set: SetId(0), rows }] }
}

/// Logits after every token, written as the formulas are, in f64, without a cache.
fn reference(shape: &ModelShape, w: &HashMap<String, Vec<f32>>, tokens: &[u32]) -> Vec<Vec<f64>> {
    let get = |name: &str| -> Vec<f64> { w[name].iter().map(|v| f64::from(*v)).collect() };
    let matmul = |m: &[f64], x: &[f64]| -> Vec<f64> {
        m.chunks(x.len()).map(|r| r.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    };
    let norm = |x: &[f64], weight: &[f64]| -> Vec<f64> {
        let scale = (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + shape.rms_eps).sqrt();
        x.iter().zip(weight).map(|(v, w)| v / scale * w).collect()
    };
    let (hd, heads, kvh) = (shape.head_dim, shape.heads, shape.kv_heads);
    let rope = |x: &[f64], position: usize| -> Vec<f64> {
        let half = hd / 2;
        let angle = |i: usize| position as f64 / shape.rope_theta.powf(2.0 * i as f64 / hd as f64);
        let low = (0..half).map(|i| x[i] * angle(i).cos() - x[i + half] * angle(i).sin());
        let high = (0..half).map(|i| x[i + half] * angle(i).cos() + x[i] * angle(i).sin());
        low.chain(high).collect()
    };
    let embed = get("embed");
    let mut xs: Vec<Vec<f64>> =
        tokens.iter().map(|t| embed[*t as usize * shape.hidden..][..shape.hidden].to_vec()).collect();
    for l in 0..shape.layers {
        let name = |part: &str| format!("layers.{l}.{part}");
        let mut qkv: Vec<Vec<f64>> = Vec::new();
        for (position, x) in xs.iter().enumerate() {
            let mut all = matmul(&get(&name("qkv")), &norm(x, &get(&name("attn_norm"))));
            if shape.qkv_bias {
                all.iter_mut().zip(get(&name("qkv_bias"))).for_each(|(a, b)| *a += b);
            }
            for h in 0..heads + kvh {
                let mut head = all[h * hd..(h + 1) * hd].to_vec();
                if shape.qk_norm {
                    head = norm(&head, &get(&name(if h < heads { "q_norm" } else { "k_norm" })));
                }
                all[h * hd..(h + 1) * hd].copy_from_slice(&rope(&head, position));
            }
            qkv.push(all);
        }
        for i in 0..xs.len() {
            let mut attended = Vec::new();
            for h in 0..heads {
                let group = h / (heads / kvh);
                let key = |j: usize| &qkv[j][(heads + group) * hd..(heads + group + 1) * hd];
                let value = |j: usize| &qkv[j][(heads + kvh + group) * hd..(heads + kvh + group + 1) * hd];
                let query = &qkv[i][h * hd..(h + 1) * hd];
                let score =
                    |j: usize| query.iter().zip(key(j)).map(|(a, b)| a * b).sum::<f64>() / (hd as f64).sqrt();
                let weights: Vec<f64> = (0..=i).map(|j| score(j).exp()).collect();
                let total: f64 = weights.iter().sum();
                attended
                    .extend((0..hd).map(|c| (0..=i).map(|j| weights[j] / total * value(j)[c]).sum::<f64>()));
            }
            let update = matmul(&get(&name("o")), &attended);
            xs[i].iter_mut().zip(update).for_each(|(x, u)| *x += u);
        }
        for x in &mut xs {
            let both = matmul(&get(&name("gate_up")), &norm(x, &get(&name("ffn_norm"))));
            let (gate, up) = both.split_at(shape.ffn);
            let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            x.iter_mut().zip(matmul(&get(&name("down")), &inner)).for_each(|(x, u)| *x += u);
        }
    }
    let head = if shape.tied_head { embed } else { get("head") };
    xs.iter().map(|x| matmul(&head, &norm(x, &get("norm")))).collect()
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln() + top;
    logits.iter().map(|l| l - total).collect()
}

#[test]
fn log_probs_are_those_of_the_formulas() {
    let tokens: Vec<u32> = (0..19).map(|i| i * 7 % 50).collect();
    for (vocab, tied, bias, norm) in
        [(50, true, false, false), (67, false, true, false), (64, true, false, true), (51, false, true, true)]
    {
        let shape = shape(vocab, tied, bias, norm);
        let weights = tensors(&shape);
        let wanted = reference(&shape, &weights, &tokens);
        let rounded = weights
            .iter()
            .map(|(k, v)| (k.clone(), v.iter().map(|x| bf16::from_f32(*x)).collect()))
            .collect();
        let as_f32: HashMap<String, Vec<f32>> = weights
            .iter()
            .map(|(k, v)| (k.clone(), v.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()))
            .collect();
        let wanted_rounded = reference(&shape, &as_f32, &tokens);
        for level in Level::available() {
            let mut f32s = backend(&shape, level, 2, weights.clone());
            let mut bf16s = backend(&shape, level, 2, weights.clone());
            bf16s
                .install(SetId(0), WeightSet::from_bf16(shape.clone(), 2, rounded_clone(&rounded)).unwrap())
                .unwrap();
            for (backend, wanted) in [(&mut f32s, &wanted), (&mut bf16s, &wanted_rounded)] {
                let got = &backend.logits(&plan(vec![row(&tokens, 0, &[3, 9, 1, 20, 7])])).unwrap()[0][0];
                for (got, wanted) in got.iter().zip(wanted) {
                    let got: Vec<f64> = got.iter().map(|l| f64::from(*l)).collect();
                    let worst = log_softmax(&got)
                        .iter()
                        .zip(log_softmax(wanted))
                        .map(|(a, b)| (a - b).abs())
                        .fold(0.0, f64::max);
                    assert!(worst <= 1e-4, "{level:?} {shape:?}: {worst}");
                }
            }
        }
    }
}

fn rounded_clone(rounded: &HashMap<String, Vec<bf16>>) -> HashMap<String, Vec<bf16>> {
    rounded.clone()
}

#[test]
fn a_rows_bits_do_not_depend_on_its_company() {
    let shape = shape(50, true, true, true);
    let sequences: Vec<Vec<u32>> =
        (0..12u32).map(|s| (0..3 + s % 9).map(|i| (s * 11 + i * 5) % 50).collect()).collect();
    for level in Level::available() {
        let mut alone: Vec<Vec<Vec<f32>>> = Vec::new();
        for tokens in &sequences {
            let mut backend = backend(&shape, level, 1, tensors(&shape));
            alone.push(backend.logits(&plan(vec![row(tokens, 0, &[5, 6, 7])])).unwrap()[0][0].clone());
        }
        let same = |a: &[Vec<f32>], b: &[Vec<f32>]| {
            a.iter().flatten().map(|v| v.to_bits()).eq(b.iter().flatten().map(|v| v.to_bits()))
        };
        // Together, on one thread and on two, in both orders.
        for threads in [1, 2] {
            for reverse in [false, true] {
                let mut backend = backend(&shape, level, threads, tensors(&shape));
                let mut order: Vec<usize> = (0..sequences.len()).collect();
                if reverse {
                    order.reverse();
                }
                let rows = order.iter().map(|s| {
                    let first = *s as u32 * 3;
                    row(&sequences[*s], 0, &[first, first + 1, first + 2])
                });
                let got = backend.logits(&plan(rows.collect())).unwrap();
                for (s, got) in order.iter().zip(&got[0]) {
                    assert!(same(&alone[*s], got), "{level:?}, {threads} threads, sequence {s}");
                }
            }
        }
        // In chunks, and token by token.
        for chunk in [1, 2, 5] {
            for (tokens, alone) in sequences.iter().zip(&alone) {
                let mut backend = backend(&shape, level, 1, tensors(&shape));
                let mut got = Vec::new();
                for (i, part) in tokens.chunks(chunk).enumerate() {
                    let rows = vec![row(part, (i * chunk) as u32, &[8, 2, 30])];
                    got.extend(backend.logits(&plan(rows)).unwrap()[0][0].clone());
                }
                assert!(same(alone, &got), "{level:?}, chunks of {chunk}");
            }
        }
    }
}

#[test]
fn draws_are_those_of_the_logits_and_copies_are_read() {
    let shape = shape(50, true, false, false);
    let mut backend = backend(&shape, Level::detect(), 2, tensors(&shape));
    let tokens = [1, 2, 3, 4, 5, 6];
    let ticket = backend.submit(&plan(vec![row(&tokens, 0, &[0, 1])])).unwrap();
    let drawn = backend.collect(ticket).unwrap().draws[0][0].unwrap();
    assert!(backend.collect(ticket).is_err());
    let logits = backend.logits(&plan(vec![row(&tokens, 0, &[4, 5])])).unwrap()[0][0][5].clone();
    let logits: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
    assert!((log_softmax(&logits)[drawn.id as usize] - f64::from(drawn.logprob)).abs() < 1e-5);
    // The second block is copied, and the copy is gone on with.
    let mut copying = plan(vec![row(&[7], 6, &[0, 9])]);
    copying.copies.push((1, 9));
    let copied = backend.logits(&copying).unwrap()[0][0][0].clone();
    let whole =
        backend.logits(&plan(vec![row(&[1, 2, 3, 4, 5, 6, 7], 0, &[11, 12])])).unwrap()[0][0][6].clone();
    assert_eq!(copied, whole);
}

#[test]
fn bad_plans_and_bad_weights_are_refused() {
    let shape = shape(50, true, false, false);
    let mut backend = backend(&shape, Level::detect(), 2, tensors(&shape));
    let cases = [
        (vec![row(&[], 0, &[0])], "has no token"),
        (vec![row(&[50], 0, &[0])], "token 50 is not below the vocabulary (50)"),
        (vec![row(&[1; 5], 0, &[0])], "1 blocks cannot hold 5 positions"),
        (vec![row(&[1], 0, &[64])], "block 64 is outside of the 64 reserved"),
        (vec![row(&[1], 64, &[0; 17])], "position 64 is not below max_positions (64)"),
        (vec![row(&[1], 0, &[3]), row(&[2], 0, &[3])], "two rows write block 3"),
        (vec![row(&[1; 4], 0, &[3]), row(&[2], 4, &[3, 4])], "reads block 3, which another row writes"),
    ];
    for (rows, wanted) in cases {
        let error = backend.submit(&plan(rows)).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let other = Plan {
        copies: Vec::new(),
        groups: vec![PlanGroup { set: SetId(7), rows: vec![row(&[1], 0, &[0])] }],
    };
    assert!(backend.submit(&other).unwrap_err().to_string().contains("set 7"));
    let mut bad = tensors(&shape);
    bad.get_mut("layers.1.down").unwrap()[3] = f32::NAN;
    let weights = WeightSet::from_f32(shape, 1, bad).unwrap();
    let error = backend.install(SetId(0), weights).unwrap_err().to_string();
    assert!(error.contains("`layers.1.down` is NaN at element 3"), "{error}");
    assert!(backend.reserve_kv(0, 4).is_err());
}
