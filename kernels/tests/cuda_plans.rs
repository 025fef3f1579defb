//! What the CUDA backend tells its driver: a driver that records stands for the card.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic, helpers of tests too")]
#![allow(unsafe_code, reason = "it leases memory of its own making")]

mod emulated;
mod fixture;

use std::collections::HashMap;
use std::sync::Arc;

use emulated::{Emulated, Event};
use fixture::{BLOCK_TOKENS, SET, base, draw, plan, row, tensors};
use parl_kernels::KernelError;
use parl_kernels::backend::{Backend, Plan, PlanGroup, PlanRow, Sampling, SetId};
use parl_kernels::cuda::CudaBackend;
use parl_kernels::cuda::driver::{Chip, Launch, Types};
use parl_kernels::cuda::memory::MemoryPlan;
use parl_kernels::cuda::step::Limits;
use parl_kernels::shape::ModelShape;
use parl_kernels::weights::{Dtype, View, WeightSet};

const LIMITS: Limits = Limits { tokens: 64, rows: 16 };

fn weights(shape: &ModelShape) -> WeightSet {
    WeightSet::from_f32(shape.clone(), 1, tensors(shape, 1)).unwrap()
}

fn ready(driver: Emulated) -> CudaBackend<Emulated> {
    let mut backend = CudaBackend::new(driver, LIMITS).unwrap();
    backend.reserve_kv(64, BLOCK_TOKENS).unwrap();
    backend.install(SET, weights(&base())).unwrap();
    backend
}

fn decode_rows(count: u32) -> Vec<PlanRow> {
    (0..count).map(|i| row(&[3], 16, &[2 * i, 2 * i + 1], Some(draw(0, 17)))).collect()
}

fn submit(backend: &mut CudaBackend<Emulated>, plan: &Plan) {
    let ticket = backend.submit(plan).unwrap();
    // Nothing was computed, so nothing finite was drawn.
    let _ = backend.collect(ticket);
}

/// Kernels since the events before `from`.
fn since(backend: &mut CudaBackend<Emulated>, from: usize) -> Vec<&'static str> {
    backend.driver().kernels().split_off(from)
}

const LAYER: [&str; 10] = [
    "rms_norm",
    "multiply",
    "turn_heads",
    "attend_decode",
    "merge_splits",
    "multiply",
    "rms_norm",
    "multiply",
    "swiglu",
    "multiply",
];

#[test]
fn kernels_come_in_the_order_of_the_forward_pass() {
    let mut backend = ready(Emulated::recording());
    let layer = |attention: &[&'static str]| -> Vec<&'static str> {
        let body = [&LAYER[..3], attention, &LAYER[5..]].concat();
        [&["embed"][..], &body.repeat(3)].concat()
    };
    let head = ["rms_norm", "multiply", "survey_logits", "weigh_logits", "draw_tokens"];

    submit(&mut backend, &plan(decode_rows(2)));
    let wanted = [&layer(&LAYER[3..5])[..], &head].concat();
    assert_eq!(since(&mut backend, 0), wanted);
    let mut seen = wanted.len();

    let prefill = row(&[1, 2, 3], 0, &[40], None);
    submit(&mut backend, &plan(vec![prefill.clone()]));
    assert_eq!(since(&mut backend, seen), layer(&["attend_prefill"]));
    seen = backend.driver().kernels().len();

    // Rows of one token come first, whatever their place in the plan; copies before everything, and in an order that
    // lets none read what another of its launch writes.
    let rows = [vec![prefill], decode_rows(1)].concat();
    let copies = vec![(50, 51), (50, 52), (51, 53)];
    submit(&mut backend, &Plan { copies, ..plan(rows) });
    let attention = ["attend_decode", "merge_splits", "attend_prefill"];
    let wanted = [&["copy_blocks", "copy_blocks"][..], &layer(&attention), &head].concat();
    assert_eq!(since(&mut backend, seen), wanted);
    let copied = launches(&mut backend, "copy_blocks");
    assert_eq!(copied.iter().map(|l| l.blocks[1]).collect::<Vec<_>>(), [2, 1]);
}

/// A model in bf16, wide enough for segments, over a driver that records.
fn wide(library: bool) -> CudaBackend<Emulated> {
    let shape = ModelShape { hidden: 512, ffn: 1024, ..base() };
    let all = tensors(&shape, 1).into_iter();
    let all = all.map(|(name, x)| (name, x.into_iter().map(half::bf16::from_f32).collect())).collect();
    let mut driver = Emulated::recording();
    driver.library = library;
    let mut backend = CudaBackend::new(driver, Limits { tokens: 512, rows: 512 }).unwrap();
    backend.reserve_kv(1024, BLOCK_TOKENS).unwrap();
    backend.install(SET, WeightSet::from_bf16(shape, 1, all).unwrap()).unwrap();
    backend
}

#[test]
fn products_are_tiled_by_the_rows_and_cut_by_the_weights() {
    let mut backend = wide(false);
    let layer = |size: &str| {
        ["rms_norm", "sums", "attend_decode", "sums", "rms_norm", "gate", "sums"].map(|name| match name {
            "sums" => format!("multiply_{size}"),
            "gate" => format!("gate_{size}"),
            other => other.to_owned(),
        })
    };
    for (rows, size) in [(1, "few"), (16, "few"), (24, "some"), (64, "more"), (96, "many"), (512, "many")] {
        let from = backend.driver().kernels().len();
        submit(&mut backend, &plan(decode_rows(rows)));
        assert_eq!(since(&mut backend, from)[1..8], layer(size), "{rows} rows");
        // 1024 inputs of 512 outputs: eight segments, each with blocks of its own.
        let down = launches(&mut backend, &format!("multiply_{size}"));
        assert_eq!(down[2].blocks[2], 8, "{rows} rows");
        assert!(down.iter().all(|launch| launch.instead.is_none()));
    }
}

/// The driver refuses launches that take more than the card has.
#[test]
fn launches_fit_the_card_that_there_is() {
    let shapes = [
        ModelShape { hidden: 4096, ffn: 64, layers: 1, heads: 32, kv_heads: 2, head_dim: 128, ..base() },
        ModelShape { hidden: 64, ffn: 9000, layers: 1, heads: 8, kv_heads: 8, head_dim: 64, ..base() },
    ];
    let mut seen = std::collections::BTreeSet::new();
    for shape in shapes {
        let zeros = |dims: &[usize]| vec![half::bf16::ZERO; dims.iter().product()];
        let all: HashMap<_, _> =
            shape.tensors().into_iter().map(|(name, dims)| (name, zeros(&dims))).collect();
        for chip in [
            Chip { multiprocessors: 132, shared_bytes: 227 << 10 },
            Chip { multiprocessors: 108, shared_bytes: 163 << 10 },
            Chip { multiprocessors: 2, shared_bytes: 99 << 10 },
        ] {
            let mut driver = Emulated::recording();
            driver.chip = chip;
            let mut backend = CudaBackend::new(driver, Limits { tokens: 64, rows: 64 }).unwrap();
            backend.reserve_kv(1024, BLOCK_TOKENS).unwrap();
            backend.install(SET, WeightSet::from_bf16(shape.clone(), 1, all.clone()).unwrap()).unwrap();
            for rows in [1, 3, 16, 17, 32, 33, 64] {
                submit(&mut backend, &plan(decode_rows(rows)));
            }
            for event in &backend.driver().events {
                if let Event::Launch(launch) = event {
                    seen.insert((launch.kernel, launch.threads));
                }
            }
        }
    }
    // Attention of one warp and of eight were among them, and products with one warp that multiplies.
    for wanted in [32, 256].map(|t| ("attend_decode", t)).into_iter().chain([("multiply_few", 160)]) {
        assert!(seen.contains(&wanted), "{wanted:?} {seen:?}");
    }
}

#[test]
fn a_library_multiplies_for_many_rows_and_is_not_met_in_a_capture() {
    let mut backend = wide(true);
    submit(&mut backend, &plan(decode_rows(64)));
    assert!(launches(&mut backend, "multiply_more").iter().all(|launch| launch.instead.is_none()));
    let from = backend.driver().kernels().len();
    submit(&mut backend, &plan(decode_rows(96)));
    assert_eq!(backend.driver().graphs(), 0);
    let many = [launches(&mut backend, "multiply_many"), launches(&mut backend, "multiply_whole")].concat();
    // The sums of all inputs at once, where the next kernel looks for them.
    let whole = |l: &Launch| {
        l.instead.is_some_and(|p| p.rows == 96 && p.y == l.arguments[3].0[0]) && l.blocks[2] == 1
    };
    assert!(many.len() == 4 * 3 + 1 && many.iter().all(whole), "{many:?}");
    let layer = ["rms_norm", "multiply_many", "swiglu", "multiply_whole"];
    assert_eq!(since(&mut backend, from)[5..9], layer);
    for graphs in [1, 1] {
        submit(&mut backend, &plan(decode_rows(96)));
        assert_eq!(backend.driver().graphs(), graphs);
    }
}

fn launches(backend: &mut CudaBackend<Emulated>, kernel: &str) -> Vec<Launch> {
    let events = backend.driver().events.iter();
    events
        .filter_map(|e| match e {
            Event::Launch(launch) if launch.kernel == kernel => Some(launch.clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn blocks_cover_every_element() {
    let mut backend = ready(Emulated::recording());
    let tokens: Vec<u32> = (0..50).collect();
    let rows =
        vec![row(&tokens, 300, &[0; 22].map(|_| 0), None), row(&[1], 299, &[1; 19], Some(draw(0, 300)))];
    let rows = distinct(rows);
    submit(&mut backend, &plan(rows));
    let blocks = |backend: &mut CudaBackend<Emulated>, kernel: &str| launches(backend, kernel)[0].blocks;
    assert_eq!(blocks(&mut backend, "embed"), [51, 1, 1]);
    // 8 heads in all, four a block.
    assert_eq!(blocks(&mut backend, "turn_heads"), [51, 2, 1]);
    // 128 rows of the fused projection, 64 a block; 51 tokens, 64 a block.
    assert_eq!(blocks(&mut backend, "multiply"), [2, 1, 1]);
    // 300 positions are three splits.
    assert_eq!(blocks(&mut backend, "attend_decode"), [1, 2, 3]);
    assert_eq!(blocks(&mut backend, "merge_splits"), [1, 4, 1]);
    // 50 tokens of two heads are 100 queries, 64 a block.
    assert_eq!(blocks(&mut backend, "attend_prefill"), [2, 2, 1]);
    assert_eq!(blocks(&mut backend, "swiglu"), [1, 51, 1]);
    assert_eq!(blocks(&mut backend, "draw_tokens"), [1, 1, 1]);
}

/// The rows with blocks of their own.
fn distinct(mut rows: Vec<PlanRow>) -> Vec<PlanRow> {
    for (next, block) in rows.iter_mut().flat_map(|r| &mut r.blocks).enumerate() {
        *block = next as u32;
    }
    rows
}

#[test]
fn decode_steps_share_graphs_by_bucket() {
    let mut backend = ready(Emulated::recording());
    for (rows, graphs) in [(3, 1), (4, 1), (3, 1), (5, 2), (8, 2), (9, 3), (16, 3), (2, 4), (1, 5)] {
        submit(&mut backend, &plan(decode_rows(rows)));
        assert_eq!(backend.driver().graphs(), graphs, "{rows} rows");
    }
    // A graph's blocks are those of its bucket.
    let blocks: Vec<u32> = launches(&mut backend, "embed").iter().map(|l| l.blocks[0]).collect();
    assert_eq!(blocks, [4, 8, 16, 2, 1]);
    // Other blocks of memory, other addresses: the old graphs are forgotten.
    backend.reserve_kv(64, BLOCK_TOKENS).unwrap();
    assert_eq!(backend.driver().graphs(), 0);
    submit(&mut backend, &plan(decode_rows(1)));
    assert_eq!(backend.driver().graphs(), 1);
    backend.release(SET);
    assert_eq!(backend.driver().graphs(), 0);
}

#[test]
fn what_a_plan_must_not_do_reaches_no_driver() {
    let mut backend = ready(Emulated::recording());
    let good = row(&[1], 0, &[60], Some(draw(0, 1)));
    let mut odd = good.clone();
    odd.draw = Some(parl_kernels::backend::Draw {
        sampling: Sampling { temperature: f32::NAN, ..Sampling::GREEDY },
        ..draw(0, 1)
    });
    let bad = [
        row(&[], 0, &[0], None),
        row(&[1], 0, &[64], None),
        row(&[1; 17], 0, &[0], None),
        row(&[100], 0, &[0], None),
        row(&[1], u32::MAX, &[0], None),
        odd,
    ];
    let before = backend.driver().events.len();
    for bad in bad {
        for rows in [vec![bad.clone()], vec![good.clone(), bad]] {
            assert!(backend.submit(&plan(rows.clone())).is_err(), "{rows:?}");
            assert!(backend.logits(&plan(rows)).is_err());
        }
    }
    let absent =
        Plan { copies: Vec::new(), groups: vec![PlanGroup { set: SetId(7), rows: vec![good.clone()] }] };
    assert!(backend.submit(&absent).unwrap_err().to_string().contains("set 7 is not installed"));
    assert_eq!(backend.driver().events.len(), before);
    backend.release(SET);
    let after = backend.driver().events.len();
    assert!(backend.submit(&plan(vec![good])).is_err());
    assert_eq!(backend.driver().events.len(), after);
}

#[test]
fn what_does_not_fit_is_refused_by_line_before_anything_is_taken() {
    let mut small = Emulated::recording();
    small.free = 3_000_000;
    let mut backend = CudaBackend::new(small, LIMITS).unwrap();
    backend.reserve_kv(10_000, BLOCK_TOKENS).unwrap();
    let error = backend.install(SET, weights(&base())).unwrap_err();
    assert!(matches!(error, KernelError::Memory(_)));
    for wanted in [
        "3000000 are free",
        "most of it is keys and values: lower rollout.engine.kv_blocks",
        "keys and values: 10000 blocks of 16 positions × 3 layers × 2 × 2 KV heads × 16 elements of 4 bytes",
        "engine's activations: 64 tokens",
    ] {
        assert!(error.to_string().contains(wanted), "{error}");
    }
    assert_eq!(backend.driver().held(), 0);
    backend.reserve_kv(100, BLOCK_TOKENS).unwrap();
    backend.install(SET, weights(&base())).unwrap();
    let error = backend.reserve_kv(10_000, BLOCK_TOKENS).unwrap_err().to_string();
    assert!(error.contains("lower rollout.engine.kv_blocks"), "{error}");
    // What the plan could not know is told by line too.
    backend.driver().promised = 1 << 40;
    let error = backend.reserve_kv(10_000, BLOCK_TOKENS).unwrap_err().to_string();
    assert!(error.contains("it was for keys and values: lower rollout.engine.kv_blocks"), "{error}");
}

#[test]
fn weights_that_the_kernels_are_not_made_for_are_refused() {
    let mut backend = CudaBackend::new(Emulated::recording(), LIMITS).unwrap();
    let shape = ModelShape { head_dim: 130, ..base() };
    let error = backend.install(SET, weights(&shape)).unwrap_err().to_string();
    assert!(error.contains("head_dim is 130, on a card it must be at most 128"), "{error}");
    let mut all = tensors(&base(), 1);
    all.get_mut("layers.1.o").unwrap()[5] = f32::NAN;
    let stray = WeightSet::from_f32(base(), 1, all).unwrap();
    let error = backend.install(SET, stray).unwrap_err().to_string();
    assert!(error.contains("`layers.1.o` has an element that is not finite"), "{error}");
    assert_eq!(backend.driver().held(), 0);
    for (tokens, rows) in [(0, 1), (1, 0), (65_536, 1)] {
        assert!(CudaBackend::new(Emulated::recording(), Limits { tokens, rows }).is_err());
    }
}

/// A lease on tensors that lie "on the card": in this program's memory, whose addresses the emulator takes.
fn leased(shape: &ModelShape, all: &Arc<HashMap<String, Vec<f32>>>, version: u64) -> WeightSet {
    let view = |v: &Vec<f32>| View::on_card(v.as_ptr() as u64, v.len(), Dtype::F32);
    let views = all.iter().map(|(k, v)| (k.clone(), view(v))).collect();
    // SAFETY: the tensors are the owner.
    unsafe { WeightSet::lease(shape.clone(), version, views, all.clone()) }.unwrap()
}

#[test]
fn weights_on_the_card_are_read_where_they_lie_and_an_update_moves_nothing() {
    let all = Arc::new(tensors(&base(), 1));
    let mut backend = CudaBackend::new(Emulated::running(), LIMITS).unwrap();
    backend.reserve_kv(64, BLOCK_TOKENS).unwrap();
    backend.install(SET, leased(&base(), &all, 1)).unwrap();
    let rows = plan(vec![row(&[3], 0, &[0], Some(draw(0, 1))), row(&[4], 0, &[1], Some(draw(1, 1)))]);
    let first = backend.submit(&rows).unwrap();
    let first = backend.collect(first).unwrap();
    assert!(Arc::strong_count(&all) > 1);
    let before = backend.driver().events.len();
    backend.release(SET);
    // Waited, and the lease is given back: the learner may write now.
    assert_eq!(backend.driver().events[before..], [Event::Synchronize]);
    assert_eq!(Arc::strong_count(&all), 1);
    let before = backend.driver().events.len();
    backend.install(SET, leased(&base(), &all, 2)).unwrap();
    // A tensor has one piece here: a record, and a word that says whether it is finite.
    let (records, flags) = (16 * base().tensors().len(), 4 * base().tensors().len());
    // Before anything of the weights is read, what the learner has written of them is done.
    assert_eq!(backend.driver().events[before], Event::Join);
    for event in &backend.driver().events[before + 1..] {
        match event {
            Event::Allocate(bytes) => assert_eq!(*bytes, (records + flags) as u64),
            Event::Free => {}
            Event::Upload(_, bytes) => assert!(*bytes <= records),
            Event::Download(_, bytes) => assert!(*bytes <= flags as u64),
            Event::Launch(launch) => assert_eq!(launch.kernel, "find_strays"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(backend.driver().graphs(), 1);
    let again = backend.submit(&rows).unwrap();
    assert_eq!(backend.collect(again).unwrap(), first);
    assert_eq!(backend.driver().graphs(), 1);

    // Elsewhere in memory the graph is of no use, and what is not finite is found on the card.
    let mut moved = (*all).clone();
    moved.get_mut("layers.2.down").unwrap()[7] = f32::INFINITY;
    let moved = Arc::new(moved);
    let error = backend.install(SET, leased(&base(), &moved, 3)).unwrap_err().to_string();
    assert!(error.contains("`layers.2.down` has an element that is not finite"), "{error}");
    // What was there stays, until something good takes its place.
    let again = backend.submit(&rows).unwrap();
    assert_eq!(backend.collect(again).unwrap(), first);
    let elsewhere = Arc::new((*all).clone());
    backend.install(SET, leased(&base(), &elsewhere, 3)).unwrap();
    assert_eq!((Arc::strong_count(&all), backend.driver().graphs()), (1, 0));
    let again = backend.submit(&rows).unwrap();
    assert_eq!(backend.collect(again).unwrap(), first);
    // The CPU cannot read there, and says so.
    let error = parl_kernels::cpu::CpuBackend::default().install(SET, leased(&base(), &all, 1)).unwrap_err();
    assert!(error.to_string().contains("is not in the host's memory"), "{error}");
}

#[test]
fn lines_add_up_and_what_does_not_fit_is_refused_with_them() {
    let mut plan = MemoryPlan::default();
    plan.weights("set 0", &base(), Dtype::Bf16);
    plan.optimizer(&base(), 12);
    plan.learner(&base(), Dtype::Bf16, 1000);
    plan.steps(&base(), Dtype::Bf16, Limits { tokens: 128, rows: 8 }, 16, false);
    plan.keys_values(&base(), Types::plain(Dtype::Bf16), 1000, 16);
    // 3 layers × (64 + 64·128 + 128 + 64·64 + 64 + 192·64 + 64·96) + 100·64 + 64.
    let parameters = 3 * (64 + 64 * 128 + 128 + 64 * 64 + 64 + 192 * 64 + 64 * 96) + 100 * 64 + 64;
    assert_eq!(plan.lines[0].bytes, 2 * parameters);
    assert_eq!(plan.lines[2].bytes, 12 * parameters);
    let kv = plan.lines.last().unwrap();
    assert_eq!(kv.bytes, 1000 * 16 * 3 * 2 * 2 * 16 * 2);
    assert_eq!(plan.total(), plan.lines.iter().map(|l| l.bytes).sum());
    assert!(plan.check(plan.total()).is_ok());
    let error = plan.check(plan.total() - 1).unwrap_err().to_string();
    for wanted in [
        &format!("{} bytes are needed, {} are free", plan.total(), plan.total() - 1),
        "most of it is keys and values: lower rollout.engine.kv_blocks",
        "keys and values: 1000 blocks of 16 positions × 3 layers × 2 × 2 KV heads × 16 elements of 2 bytes",
        "MiB  in all",
    ] {
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn models_of_one_geometry_share_blocks_and_the_widest_step_counts() {
    let limits = Limits { tokens: 128, rows: 8 };
    let of = |shapes: &[&ModelShape]| {
        let mut plan = MemoryPlan::default();
        plan.engine(shapes, Types::plain(Dtype::Bf16), limits, (100, 16), false);
        plan
    };
    let (small, wide) = (base(), ModelShape { hidden: 128, ffn: 384, vocab: 50, ..base() });
    let (alone, both) = (of(&[&small]), of(&[&small, &wide]));
    assert_eq!(both.lines.len(), alone.lines.len());
    assert_eq!(both.lines.last(), alone.lines.last());
    let names = |name: &str| both.lines.iter().find(|l| l.name == name).cloned();
    let line = |plan: &MemoryPlan, name: &str| plan.lines.iter().find(|l| l.name == name).cloned();
    assert_eq!(names("engine's activations"), line(&of(&[&wide]), "engine's activations"));
    assert_eq!(names("logits"), line(&alone, "logits"));
    let deep = ModelShape { layers: 4, ..base() };
    assert_eq!(of(&[&small, &deep, &small]).lines.len(), alone.lines.len() + 1);
}

#[test]
fn a_lost_card_is_an_error_at_every_call_and_no_panic() {
    let mut backend = ready(Emulated::recording());
    let rows = plan(decode_rows(2));
    submit(&mut backend, &rows);
    let open = backend.submit(&rows).unwrap();
    backend.driver().lost = true;
    let text = |error: KernelError| assert!(error.to_string().contains("the device is lost"), "{error}");
    text(backend.collect(open).unwrap_err());
    text(backend.submit(&rows).unwrap_err());
    text(backend.logits(&rows).unwrap_err());
    text(backend.reserve_kv(10, BLOCK_TOKENS).unwrap_err());
    text(backend.install(SET, weights(&base())).unwrap_err());
    backend.release(SET);
    // Dropped: what there was is given back, as far as the driver goes along.
}
