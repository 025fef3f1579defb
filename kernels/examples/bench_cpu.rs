//! Measures the CPU backend on two shapes and prints one JSON line: tokens per second of prefill (32 sequences of
//! 64 tokens) and of decode (after 64 tokens, with draws) at batch 1, 32 and 256.
//!
//! `cargo run --release -p parl-kernels --example bench_cpu [f32|bf16]`
#![expect(clippy::print_stdout, reason = "the line is the program's output")]

use std::collections::HashMap;
use std::time::Instant;

use half::bf16;
use parl_kernels::KernelError;
use parl_kernels::backend::{Backend, Draw, Plan, PlanGroup, PlanRow, Sampling, SetId};
use parl_kernels::cpu::CpuBackend;
use parl_kernels::rng::{RngKey, Stream};
use parl_kernels::shape::ModelShape;
use parl_kernels::weights::WeightSet;

const SET: SetId = SetId(0);
const BLOCK_TOKENS: u32 = 16;
const PROMPT: u32 = 64;
/// Decode steps of one measurement.
const STEPS: u32 = 32;
/// Measurements; the best counts.
const TIMES: usize = 7;

fn shape(hidden: usize, head_dim: usize, ffn: usize, vocab: usize, qkv_bias: bool) -> ModelShape {
    ModelShape {
        vocab,
        hidden,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        head_dim,
        ffn,
        max_positions: 2048,
        rope_theta: 1e4,
        rms_eps: 1e-6,
        qkv_bias,
        qk_norm: false,
        tied_head: true,
    }
}

fn weights(shape: &ModelShape, low: bool) -> Result<WeightSet, KernelError> {
    let tensors = shape.tensors().into_iter().enumerate().map(|(n, (name, dims))| {
        let key = RngKey { seed: n as u64, stream: Stream::Init, episode: 0, agent: 0 };
        let count = dims.iter().product::<usize>() as u32;
        (name, (0..count).map(|i| 0.1 * (key.uniform_f32(i) - 0.5)).collect::<Vec<f32>>())
    });
    if low {
        let round = |v: Vec<f32>| v.into_iter().map(bf16::from_f32).collect();
        WeightSet::from_bf16(shape.clone(), 0, tensors.map(|(k, v)| (k, round(v))).collect())
    } else {
        WeightSet::from_f32(shape.clone(), 0, tensors.collect::<HashMap<_, _>>())
    }
}

/// One row of `count` tokens from `start` on for each sequence of the batch.
fn plan(batch: u32, start: u32, count: u32) -> Plan {
    let blocks_each = (PROMPT + STEPS).div_ceil(BLOCK_TOKENS);
    let rows = (0..batch).map(|s| PlanRow {
        tokens: (start..start + count).map(|i| (s * 131 + i * 17) % 700).collect(),
        start,
        blocks: (s * blocks_each..(s + 1) * blocks_each).collect(),
        draw: Some(Draw {
            sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
            key: RngKey { seed: 1, stream: Stream::Sample, episode: u64::from(s), agent: 0 },
            position: start + count,
        }),
    });
    Plan { copies: Vec::new(), groups: vec![PlanGroup { set: SET, rows: rows.collect() }] }
}

/// Tokens per second of the best of several runs through `plans`.
fn speed(backend: &mut CpuBackend, plans: &[Plan]) -> Result<f64, KernelError> {
    let tokens: usize = plans.iter().flat_map(|p| &p.groups[0].rows).map(|r| r.tokens.len()).sum();
    let mut best = 0f64;
    for _ in 0..TIMES {
        let start = Instant::now();
        for plan in plans {
            let ticket = backend.submit(plan)?;
            backend.collect(ticket)?;
        }
        best = best.max(tokens as f64 / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn measure(shape: &ModelShape, low: bool) -> Result<String, KernelError> {
    let mut backend = CpuBackend::default();
    backend.reserve_kv(256 * (PROMPT + STEPS).div_ceil(BLOCK_TOKENS), BLOCK_TOKENS)?;
    let report = backend.install(SET, weights(shape, low)?)?;
    let prefill = speed(&mut backend, &[plan(32, 0, PROMPT)])?;
    speed(&mut backend, &[plan(256, 0, PROMPT)])?;
    let mut decode = [0.0; 3];
    for (speed_of, batch) in decode.iter_mut().zip([1, 32, 256]) {
        let steps: Vec<Plan> = (0..STEPS).map(|s| plan(batch, PROMPT + s, 1)).collect();
        *speed_of = speed(&mut backend, &steps)?;
    }
    let [one, some, many] = decode;
    Ok(format!(
        r#"{{"pack_seconds":{:.5},"prefill_32x64":{prefill:.0},"decode_1":{one:.0},"decode_32":{some:.0},"decode_256":{many:.0}}}"#,
        report.pack_seconds
    ))
}

fn main() -> Result<(), KernelError> {
    let low = std::env::args().any(|a| a == "bf16");
    let tiny = measure(&shape(128, 32, 384, 704, false), low)?;
    let qwen2 = measure(&shape(256, 64, 704, 4096, true), low)?;
    println!(
        r#"{{"unit":"tokens/s","level":"{}","weights":"{}","threads":{},"tiny":{tiny},"qwen2_like":{qwen2}}}"#,
        CpuBackend::default().level().name(),
        if low { "bf16" } else { "f32" },
        rayon::current_num_threads()
    );
    Ok(())
}
