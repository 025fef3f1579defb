//! Tokens a second of the CPU backend on random weights: prefill, and decode at several batch sizes. One JSON line a
//! shape. Run it alone on the machine: `cargo run --release -p parl-kernels --example bench_cpu`.

use std::collections::HashMap;
use std::time::Instant;

use parl_kernels::KernelError;
use parl_kernels::backend::{Backend, Draw, Plan, PlanGroup, PlanRow, Sampling, SetId};
use parl_kernels::cpu::{CpuBackend, Level};
use parl_kernels::rng::{RngKey, Stream};
use parl_kernels::shape::ModelShape;
use parl_kernels::weights::WeightSet;

const BLOCK: u32 = 8;
const PROMPT: u32 = 64;

fn shape(hidden: usize, kv: (usize, usize), head_dim: usize, ffn: usize, vocab: usize) -> ModelShape {
    ModelShape {
        vocab,
        hidden,
        layers: 4,
        heads: kv.0,
        kv_heads: kv.1,
        head_dim,
        ffn,
        max_positions: 1024,
        rope_theta: 10_000.0,
        rms_eps: 1e-6,
        qkv_bias: false,
        qk_norm: false,
        tied_head: true,
    }
}

fn rows(batch: u32, start: u32, tokens: u32) -> Plan {
    let per_sequence = (PROMPT * 2).div_ceil(BLOCK);
    let row = |s: u32| {
        let key = RngKey { seed: 1, stream: Stream::Sample, episode: u64::from(s), agent: 0 };
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
        PlanRow {
            tokens: (0..tokens).map(|i| (i * 7 + s) % 700).collect(),
            start,
            blocks: (s * per_sequence..(s + 1) * per_sequence).collect(),
            draw: Some(Draw { sampling, key, position: start + tokens }),
        }
    };
    Plan {
        copies: Vec::new(),
        groups: vec![PlanGroup { set: SetId(0), rows: (0..batch).map(row).collect() }],
    }
}

/// Median tokens a second over repetitions.
fn measure(backend: &mut CpuBackend, plans: &[Plan], repetitions: usize) -> Result<f64, KernelError> {
    let tokens: usize = plans.iter().flat_map(|p| &p.groups[0].rows).map(|r| r.tokens.len()).sum();
    let mut seconds = Vec::new();
    for _ in 0..repetitions {
        let started = Instant::now();
        for plan in plans {
            let ticket = backend.submit(plan)?;
            backend.collect(ticket)?;
        }
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(tokens as f64 / seconds[seconds.len() / 2])
}

fn main() -> Result<(), KernelError> {
    let shapes = [("d128", shape(128, (4, 2), 32, 384, 704)), ("d256", shape(256, (4, 2), 64, 704, 4096))];
    for (name, shape) in shapes {
        let mut tensors = HashMap::new();
        for (i, (tensor, dims)) in shape.tensors().into_iter().enumerate() {
            let key = RngKey { seed: 2, stream: Stream::Init, episode: i as u64, agent: 0 };
            let n: usize = dims.iter().product();
            tensors.insert(tensor, (0..n as u32).map(|j| 0.1 * (key.uniform_f32(j) - 0.5)).collect());
        }
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut backend = CpuBackend::new(Level::detect(), threads)?;
        backend.reserve_kv(256 * PROMPT * 2 / BLOCK, BLOCK)?;
        backend.install(SetId(0), WeightSet::from_f32(shape, 1, tensors)?)?;
        let mut figures =
            vec![format!("\"prefill_32x64\":{:.0}", measure(&mut backend, &[rows(32, 0, PROMPT)], 7)?)];
        for batch in [1, 32, 256] {
            let plans: Vec<Plan> = (0..PROMPT).map(|i| rows(batch, PROMPT + i, 1)).collect();
            figures.push(format!("\"decode_{batch}\":{:.0}", measure(&mut backend, &plans, 5)?));
        }
        #[expect(clippy::print_stdout, reason = "a bench program's result")]
        {
            println!(
                "{{\"shape\":\"{name}\",\"level\":\"{}\",\"threads\":{threads},{}}}",
                backend.level().name(),
                figures.join(",")
            );
        }
    }
    Ok(())
}
