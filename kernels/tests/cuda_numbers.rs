//! The CUDA sources, run as plain C++ by the emulator beside this file, against the CPU backend and an f64 forward.
//! What tensor cores round, and what threads may race for, only a card tells: `PARL_CARD=0` runs the same tests on it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic, helpers of tests too")]
#![allow(unsafe_code, reason = "it calls C++")]

mod emulated;
mod fixture;

use std::ffi::c_void;

use emulated::{Library, driver};
use fixture::{
    BLOCK_TOKENS, SET, base, bits, decode, draw, drawn_bits, log_softmax, plan, reference, reference_with,
    rounded, row, rows, tensors, tokens, uniform,
};
use half::bf16;
use parl_kernels::KernelError;
use parl_kernels::backend::{Backend, Draw, Drawn, Plan, PlanRow, Sampling};
use parl_kernels::cpu::{CpuBackend, Level};
use parl_kernels::cuda::CudaBackend;
use parl_kernels::cuda::driver::{Argument, Driver, Launch, Types};
use parl_kernels::cuda::step::Limits;
use parl_kernels::rng::philox4x32;
use parl_kernels::shape::ModelShape;
use parl_kernels::weights::{Dtype, WeightSet};

const F32: Types = Types { element: Dtype::F32, kv_fp8: false };
const BF16: Types = Types { element: Dtype::Bf16, kv_fp8: false };
const FP8: Types = Types { element: Dtype::Bf16, kv_fp8: true };
const ALL: [Types; 3] = [F32, BF16, FP8];

fn on_card(
    (shape, types): (&ModelShape, Types),
    blocks: u32,
    block_tokens: u32,
    limits: Limits,
) -> CudaBackend<Box<dyn Driver>> {
    with_weights(weights(shape, types.element), types.kv_fp8, blocks, block_tokens, limits)
}

fn with_weights(
    weights: WeightSet,
    kv_fp8: bool,
    blocks: u32,
    block_tokens: u32,
    limits: Limits,
) -> CudaBackend<Box<dyn Driver>> {
    let mut backend = CudaBackend::new(driver(), limits).unwrap();
    if kv_fp8 {
        backend.keep_fp8();
    }
    backend.reserve_kv(blocks, block_tokens).unwrap();
    backend.install(SET, weights).unwrap();
    backend
}

const LIMITS: Limits = Limits { tokens: 96, rows: 24 };

fn weights(shape: &ModelShape, element: Dtype) -> WeightSet {
    let tensors = tensors(shape, 1);
    match element {
        Dtype::F32 => WeightSet::from_f32(shape.clone(), 1, tensors).unwrap(),
        Dtype::Bf16 => WeightSet::from_bf16(shape.clone(), 1, rounded(&tensors).0).unwrap(),
    }
}

fn drawn(backend: &mut impl Backend, plan: &Plan) -> Vec<Option<Drawn>> {
    let ticket = backend.submit(plan).unwrap();
    backend.collect(ticket).unwrap().draws.concat()
}

fn logits(backend: &mut impl Backend, plan: &Plan) -> Vec<Vec<Vec<f32>>> {
    backend.logits(plan).unwrap().concat()
}

/// The value of a number in fp8 (E4M3), but of 0x7f and 0xff.
fn fp8(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
    let size =
        if exponent == 0 { fraction * 2f32.powi(-6) } else { (1.0 + fraction) * 2f32.powi(exponent - 7) };
    if code < 0x80 { size } else { -size }
}

/// The nearest number, of two as near the even one, by looking at all.
fn nearest_fp8(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let from = |code: &u8| (f64::from(fp8(*code)) - f64::from(x.abs())).abs();
    let least = (0..=0x7e).min_by(|a, b| from(a).total_cmp(&from(b)).then((a % 2).cmp(&(b % 2))));
    least.unwrap() | sign
}

#[test]
fn random_words_exponentials_and_roundings_are_those_of_rust() {
    if std::env::var("PARL_CARD").is_ok() {
        return; // It calls functions of the C++ build, whose compiler and sources a card's machine need not have.
    }
    let library = Library::get(F32, 16);
    // SAFETY: kernels.cpp gives them these types.
    let (words, exponential, round, round_fp8) = unsafe {
        (
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const u32, *const u32, *mut u32)>(
                library.function("philox_words"),
            ),
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(f32) -> f32>(
                library.function("exponential_of"),
            ),
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(f32) -> u32>(library.function("bf16_of")),
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(f32) -> u32>(library.function("fp8_of")),
        )
    };
    for i in 0..1000u32 {
        let mix = |n: u32| philox4x32([i, n, 0, 0], [7, 7])[0];
        let (counter, key) = ([mix(0), mix(1), mix(2), mix(3)], [mix(4), mix(5)]);
        let mut found = [0; 4];
        // SAFETY: the pointers are to as many words as it reads and writes.
        unsafe { words(counter.as_ptr(), key.as_ptr(), found.as_mut_ptr()) };
        assert_eq!(found, philox4x32(counter, key));
        // SAFETY: numbers in, numbers out.
        let (any, low) = (f32::from_bits(mix(6)), -100.0 * (i as f32) / 1000.0);
        // Of every size that fp8 has, and beyond.
        let narrow = f32::from_bits(mix(7) & 0x807f_ffff | (115 + i % 23) << 23);
        assert_eq!(unsafe { round_fp8(narrow) } as u8, nearest_fp8(narrow), "{narrow}");
        assert_eq!(unsafe { round(any) } as u16, bf16::from_f32(any).to_bits(), "{any}");
        for x in [low, -low * 0.8] {
            let (got, wanted) = (f64::from(unsafe { exponential(x) }), f64::from(x).exp());
            assert!(x < -87.0 && got == 0.0 || (got - wanted).abs() <= 3e-7 * wanted, "{x}: {got} {wanted}");
        }
    }
    // Every number, and half way to the next one.
    for code in 0..0x7eu8 {
        for x in [fp8(code), f32::midpoint(fp8(code), fp8(code + 1)), -fp8(code)] {
            // SAFETY: as above.
            assert_eq!(unsafe { round_fp8(x) } as u8, nearest_fp8(x), "{x}");
        }
    }
    for (special, code) in [(f32::INFINITY, 0x7e), (f32::NEG_INFINITY, 0xfe), (-1e9, 0xfe), (1e-9, 0)] {
        // SAFETY: as above.
        assert_eq!(unsafe { round_fp8(special) }, code);
    }
    // SAFETY: as above.
    unsafe {
        assert_eq!(exponential(f32::NEG_INFINITY).to_bits(), 0.0f32.to_bits());
        assert_eq!(exponential(0.0).to_bits(), 1.0f32.to_bits());
        for special in
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::MIN_POSITIVE / 2.0]
        {
            let wanted = bf16::from_f32(special);
            assert!(
                round(special) as u16 == wanted.to_bits() || special.is_nan() && wanted.is_nan(),
                "{special}"
            );
        }
    }
}

/// Largest difference of the logits from the f64 forward's, and the mean divergence KL(f64's ‖ ours) of the
/// distributions.
fn apart(got: &[Vec<f32>], wanted: &[Vec<f64>]) -> (f64, f64) {
    let (mut farthest, mut divergence) = (0.0f64, 0.0);
    for (got, wanted) in got.iter().zip(wanted) {
        let got: Vec<f64> = got.iter().map(|&x| f64::from(x)).collect();
        assert_eq!(got.len(), wanted.len());
        farthest = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(farthest, f64::max);
        let (ours, theirs) = (log_softmax(&got, 1.0), log_softmax(wanted, 1.0));
        divergence += ours.iter().zip(&theirs).map(|(a, b)| b.exp() * (b - a)).sum::<f64>();
    }
    (farthest, divergence / wanted.len() as f64)
}

#[test]
fn logits_are_those_of_the_f64_forward() {
    let shapes = [
        base(),
        // Groups of one and of more than a decode block takes, odd sizes, norms of q and k, a head of its own.
        ModelShape { heads: 2, kv_heads: 2, hidden: 33, ffn: 67, vocab: 71, qkv_bias: false, ..base() },
        ModelShape { heads: 18, kv_heads: 1, layers: 1, qk_norm: true, tied_head: false, ..base() },
        ModelShape { head_dim: 10, qk_norm: true, layers: 2, ..base() },
        // Rows whose elements trade places in shared memory.
        ModelShape { head_dim: 64, layers: 1, ..base() },
        ModelShape { head_dim: 128, heads: 3, kv_heads: 1, layers: 1, ..base() },
    ];
    for shape in shapes {
        let sequence = tokens(&shape, 3, 41);
        for types in ALL {
            let plain = match types.element {
                Dtype::F32 => tensors(&shape, 1),
                Dtype::Bf16 => rounded(&tensors(&shape, 1)).1,
            };
            let kept = |x: f64| if types.kv_fp8 { f64::from(fp8(nearest_fp8(x as f32))) } else { x };
            let wanted = reference_with(&shape, &plain, &sequence, kept);
            let mut backend = on_card((&shape, types), 8, BLOCK_TOKENS, LIMITS);
            let got = logits(&mut backend, &plan(vec![row(&sequence, 0, &[6, 1, 4], None)]));
            let (farthest, divergence) = apart(&got[0], &wanted);
            println!("{types:?}: logits {farthest:.2e}, divergence {divergence:.2e}");
            let good = match types {
                F32 => farthest <= 1e-4,
                BF16 => divergence <= 1e-3,
                // A number near the middle of two is rounded the other way now and then.
                _ => divergence <= 1e-2,
            };
            assert!(good, "{types:?} {farthest} {divergence} {shape:?}");
        }
    }
}

fn with(sampling: Sampling, episode: u64) -> Draw {
    Draw { sampling, ..draw(episode, 9) }
}

#[test]
fn draws_are_those_of_the_cpu() {
    let shape = base();
    let mut cpu = CpuBackend::new(Level::best());
    cpu.reserve_kv(64, BLOCK_TOKENS).unwrap();
    cpu.install(SET, weights(&shape, Dtype::F32)).unwrap();
    let mut card = on_card((&shape, F32), 64, BLOCK_TOKENS, LIMITS);
    let mut rows = Vec::new();
    for (i, (temperature, top_k, top_p)) in [
        (0.0, 0, 1.0),
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (3.0, 0, 1.0),
        (1.0, 1, 1.0),
        (2.0, 5, 1.0),
        (2.0, 99, 1.0),
        (2.0, 100, 1.0),
        (2.0, 0, 0.5),
        (3.0, 0, 0.95),
        (1.0, 0, 1e-6),
        (3.0, 20, 0.8),
    ]
    .into_iter()
    .enumerate()
    {
        for episode in 0..5 {
            let sampling = Sampling { temperature, top_k, top_p };
            let block = rows.len() as u32;
            rows.push(row(&tokens(&shape, i as u64, 9), 0, &[block], Some(with(sampling, episode))));
        }
    }
    let (got, wanted) = (drawn(&mut card, &plan(rows.clone())), drawn(&mut cpu, &plan(rows.clone())));
    for ((row, got), wanted) in rows.iter().zip(&got).zip(&wanted) {
        let (got, wanted) = (got.unwrap(), wanted.unwrap());
        assert_eq!(got.id, wanted.id, "{:?}", row.draw);
        assert!((got.logprob - wanted.logprob).abs() < 1e-4, "{got:?} {wanted:?}");
    }
    let different: std::collections::BTreeSet<u32> = got.iter().map(|d| d.unwrap().id).collect();
    assert!(different.len() > 10, "{different:?}");
}

#[test]
fn alone_or_in_company_a_row_has_the_same_bits() {
    let shape = base();
    let all = rows(&shape, 9, 60);
    let after = decode(&shape, &all);
    for types in ALL {
        let fresh = |limits| on_card((&shape, types), 72, BLOCK_TOKENS, limits);
        let mut apart = fresh(LIMITS);
        let wanted: Vec<_> = all
            .iter()
            .zip(&after)
            .map(|(a, b)| {
                let first = drawn(&mut apart, &plan(vec![a.clone()]));
                drawn_bits(&[first, drawn(&mut apart, &plan(vec![b.clone()]))].concat())
            })
            .collect();
        // Small limits cut the plan into steps, and rows into pieces.
        for limits in [LIMITS, Limits { tokens: 7, rows: 3 }] {
            let mut backend = fresh(limits);
            let first = drawn_bits(&drawn(&mut backend, &plan(all[..6].to_vec())));
            // Prefill and decode rows of one plan.
            let mixed = [&after[..6], &all[6..]].concat();
            let then = drawn_bits(&drawn(&mut backend, &plan(mixed)));
            let last = drawn_bits(&drawn(&mut backend, &plan(after[6..].to_vec())));
            let (firsts, seconds) = ([&first[..], &then[6..]].concat(), [&then[..6], &last[..]].concat());
            for (i, (a, b)) in firsts.into_iter().zip(seconds).enumerate() {
                assert_eq!([a, b], wanted[i][..], "{types:?} row {i} {limits:?}");
            }
        }
    }
}

#[test]
fn a_prefill_may_be_cut_anywhere_and_decode_has_its_bits() {
    // Long enough for three splits of attention.
    let shape = ModelShape { layers: 2, max_positions: 600, ..base() };
    let sequence = tokens(&shape, 8, 530);
    for types in ALL {
        let pieces = |sizes: &[usize], block_tokens: u32| {
            let count = 530u32.div_ceil(block_tokens);
            let mut backend =
                on_card((&shape, types), 2 * count, block_tokens, Limits { tokens: 300, rows: 300 });
            let blocks: Vec<u32> = (count..2 * count).rev().collect();
            let (mut at, mut all) = (0, Vec::new());
            for &size in sizes {
                let piece = plan(vec![row(&sequence[at..at + size], at as u32, &blocks, None)]);
                all.extend(logits(&mut backend, &piece).remove(0));
                at += size;
            }
            assert_eq!(at, 530);
            all.split_off(508)
        };
        let whole = pieces(&[530], 16);
        let mut cpu = CpuBackend::new(Level::best());
        cpu.reserve_kv(34, 16).unwrap();
        cpu.install(SET, weights(&shape, types.element)).unwrap();
        let blocks: Vec<u32> = (0..34).collect();
        let theirs = logits(&mut cpu, &plan(vec![row(&sequence, 0, &blocks, None)])).remove(0).split_off(508);
        let theirs: Vec<Vec<f64>> =
            theirs.iter().map(|l| l.iter().map(|&x| f64::from(x)).collect()).collect();
        let (farthest, divergence) = apart(&whole, &theirs);
        println!("{types:?}: logits {farthest:.2e}, divergence {divergence:.2e}");
        let (far, diverse) = match types {
            F32 => (1e-4, 1e-3),
            BF16 => (1.0, 1e-3),
            // What rounding keys and values costs here.
            _ => (4.0, 1e-1),
        };
        assert!(farthest <= far && divergence <= diverse, "{types:?} {farthest} {divergence}");
        let pieces = |sizes: &[usize], block_tokens: u32| bits(&pieces(sizes, block_tokens));
        let wanted = bits(&whole);
        assert_eq!(pieces(&[3, 250, 259, 1, 1, 1, 15], 16), wanted, "{types:?}");
        assert_eq!(pieces(&[&[500][..], &[1; 30]].concat(), 7), wanted, "{types:?}");
    }
}

#[test]
fn a_long_row_is_shared_out_among_blocks() {
    let last = |types: Types, head_dim: usize, sizes: &[usize]| {
        let shape = ModelShape { layers: 1, max_positions: 2200, head_dim, ..base() };
        let sequence = tokens(&shape, 9, 2090);
        let mut backend = on_card((&shape, types), 131, 16, Limits { tokens: 1100, rows: 1100 });
        let blocks: Vec<u32> = (0..131).collect();
        let mut at = 0;
        for &size in &sizes[..sizes.len() - 1] {
            let piece = row(&sequence[at..at + size], at as u32, &blocks, None);
            drawn(&mut backend, &plan(vec![piece]));
            at += size;
        }
        let piece = row(&sequence[at..], at as u32, &blocks, None);
        bits(&[logits(&mut backend, &plan(vec![piece])).remove(0).pop().unwrap()])
    };
    for (types, head_dim) in [(BF16, 16), (BF16, 128), (FP8, 16), (FP8, 64)] {
        let of = |sizes: &[usize]| last(types, head_dim, sizes);
        assert_eq!(of(&[1000, 1089, 1]), of(&[1000, 1090]), "{types:?} {head_dim}");
    }
}

#[test]
fn every_tiling_sums_in_one_order() {
    // Wide enough for segments of inputs in all products, whose last ones are short.
    let shape =
        ModelShape { hidden: 288, ffn: 424, heads: 9, kv_heads: 3, head_dim: 32, layers: 1, ..base() };
    let sequence = tokens(&shape, 4, 150);
    let plain = rounded(&tensors(&shape, 1)).1;
    let of = |sizes: &[usize]| {
        let mut backend = on_card((&shape, BF16), 10, BLOCK_TOKENS, Limits { tokens: 150, rows: 150 });
        let (mut at, mut all) = (0, Vec::new());
        for &size in sizes {
            let blocks: Vec<u32> = (0..10).collect();
            let piece = plan(vec![row(&sequence[at..at + size], at as u32, &blocks, None)]);
            all.extend(logits(&mut backend, &piece).remove(0));
            at += size;
        }
        all
    };
    let whole = of(&[150]);
    let (farthest, divergence) = apart(&whole, &reference(&shape, &plain, &sequence));
    assert!(divergence <= 1e-3, "{farthest} {divergence}");
    assert_eq!(bits(&of(&[66, 34, 17, 16, 1, 15, 1])), bits(&whole));
}

#[test]
fn segments_are_added_in_order_inside_of_a_block_and_outside() {
    let mut driver = driver();
    let kernels = driver.kernels(BF16, 16).unwrap();
    // Four segments, the last one short; the last tiles too.
    let (rows, outputs, inputs, segment) = (20u32, 40u32, 200u32, 64u32);
    let elements = |seed: u64, count: u32| -> Vec<bf16> {
        (0..count as usize).map(|i| bf16::from_f32(2.0 * uniform(seed, i) - 1.0)).collect()
    };
    let (x, w) = (elements(1, rows * inputs), elements(2, outputs * inputs));
    let mut place = |bytes: &[u8]| {
        let place = driver.allocate(bytes.len() as u64).unwrap();
        driver.upload(place, bytes).unwrap();
        place
    };
    let count = place(&rows.to_le_bytes());
    let (at_x, at_w) = (place(bytemuck::cast_slice(&x)), place(bytemuck::cast_slice(&w)));
    let size = 4 * rows * outputs;
    let y = place(&vec![0xFF; 4 * size as usize]);
    // Tile's rows and columns, threads, bytes of shared memory.
    let mut sums = |kernel, [high, wide, threads, shared_bytes]: [u32; 4], parts: u32| -> Vec<f32> {
        let part = if parts == 1 { 4 * segment } else { segment };
        let numbers = [outputs, inputs, segment, part].map(Argument::from);
        let apart = Argument::from(u64::from(rows * outputs));
        let arguments = [&[count, at_x, at_w, y].map(Argument::from)[..], &numbers, &[apart]].concat();
        let blocks = [outputs.div_ceil(wide), rows.div_ceil(high), parts];
        driver
            .launch(kernels, &Launch { kernel, blocks, threads, shared_bytes, arguments, instead: None })
            .unwrap();
        let pending = driver.download(y, u64::from(parts * size)).unwrap();
        let found = driver.wait(pending).unwrap();
        let found: Vec<f32> = found.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
        let mut parts = found.chunks(size as usize / 4);
        let first = parts.next().unwrap().to_vec();
        parts.fold(first, |sum, part| sum.iter().zip(part).map(|(a, b)| a + b).collect())
    };
    // A warp that multiplies, beside the four that bring rows.
    let few = [16, 16, 160, 16_128];
    let outside = sums("multiply_few", few, 4);
    for (i, sum) in outside.iter().enumerate() {
        let (row, output) = (i / outputs as usize, i % outputs as usize);
        let n = inputs as usize;
        let wanted: f32 = (0..n).map(|k| x[row * n + k].to_f32() * w[output * n + k].to_f32()).sum();
        assert!((sum - wanted).abs() < 1e-4, "{row} {output}: {sum} {wanted}");
    }
    let wanted = bits(&[outside]);
    for (kernel, tiling) in [
        // Blocks and warps that take one group of columns after the other, some none.
        ("multiply_few", [16, 40, 160, 16_128]),
        ("multiply_few", [16, 20, 192, 29_952]),
        ("multiply_few", [16, 8, 192, 29_952]),
        ("multiply_some", [32, 20, 192, 32_256]),
        ("multiply_more", [64, 32, 64, 41_472]),
        ("multiply_many", [128, 128, 256, 81_920]),
    ] {
        assert_eq!(bits(&[sums(kernel, tiling, 4)]), wanted, "{kernel} {tiling:?}, outside");
    }
    assert_eq!(bits(&[sums("multiply_whole", [128, 128, 256, 81_920], 1)]), wanted, "inside of a block");
    for address in [count, at_x, at_w, y] {
        driver.free(address);
    }
}

/// On a card a thousand times, and for every batch up to 64.
#[test]
fn launches_repeat_and_batches_do_not_matter() {
    let on_card_itself = std::env::var("PARL_CARD").is_ok();
    let (times, batches) = if on_card_itself { (1000, (1..=64).collect()) } else { (2, vec![1, 2, 17]) };
    let most = *batches.last().unwrap();
    let shape =
        ModelShape { hidden: 288, ffn: 424, heads: 9, kv_heads: 3, head_dim: 32, layers: 2, ..base() };
    let limits = Limits { tokens: 1024, rows: 64 };
    let mut backend = on_card((&shape, BF16), 2 * most, BLOCK_TOKENS, limits);
    let prompts =
        (0..most).map(|i| row(&tokens(&shape, u64::from(i), 16), 0, &[2 * i], None)).collect::<Vec<_>>();
    drawn(&mut backend, &plan(prompts));
    let rows: Vec<_> =
        (0..most).map(|i| row(&[i % 100], 16, &[2 * i, 2 * i + 1], Some(draw(u64::from(i), 17)))).collect();
    let mut of = |rows: &[PlanRow]| drawn_bits(&drawn(&mut backend, &plan(rows.to_vec())));
    let alone: Vec<_> = rows.iter().flat_map(|row| of(std::slice::from_ref(row))).collect();
    for batch in batches {
        assert_eq!(of(&rows[..batch as usize]), alone[..batch as usize], "a batch of {batch}");
    }
    for time in 0..times {
        assert_eq!(of(&rows[..7]), alone[..7], "time {time}");
    }
}

#[test]
fn copied_blocks_continue_a_fork_and_graphs_serve_other_rows() {
    let shape = base();
    let mut backend = on_card((&shape, FP8), 12, BLOCK_TOKENS, LIMITS);
    let sequence = tokens(&shape, 1, 20);
    drawn(&mut backend, &plan(vec![row(&sequence, 0, &[0, 1], None)]));
    let forks = [1, 5, 7, 8].map(|last| row(&[7], 20, &[0, last], Some(draw(1, 21))));
    // Block 5 gets what block 1 holds by way of block 9, and others in the same launch.
    let fork = Plan { copies: vec![(1, 9), (9, 5), (1, 7), (1, 8)], ..plan(forks.to_vec()) };
    let all = drawn_bits(&drawn(&mut backend, &fork));
    assert!(all.iter().all(|drawn| *drawn == all[0]));
    // The same bucket with a row less: the graph is replayed, and the absent row leaves no trace.
    let fewer = drawn_bits(&drawn(&mut backend, &plan(forks[1..].to_vec())));
    assert_eq!(fewer, all[1..]);
}

#[test]
fn other_weights_keep_the_blocks() {
    let shape = base();
    let mut backend = on_card((&shape, F32), 12, BLOCK_TOKENS, LIMITS);
    drawn(&mut backend, &plan(vec![row(&tokens(&shape, 1, 20), 0, &[0, 1], None)]));
    let next = plan(vec![row(&[7], 20, &[0, 1], Some(draw(1, 21)))]);
    let wanted = drawn(&mut backend, &next);
    backend.install(SET, WeightSet::from_f32(shape.clone(), 2, tensors(&shape, 2)).unwrap()).unwrap();
    assert_ne!(drawn(&mut backend, &next), wanted);
    backend.install(SET, weights(&shape, Dtype::F32)).unwrap();
    assert_eq!(drawn(&mut backend, &next), wanted);
}

#[test]
fn logits_that_are_not_finite_are_told() {
    let shape = base();
    let mut all = tensors(&shape, 1);
    all.get_mut("norm").unwrap().fill(f32::MAX);
    let mut backend =
        with_weights(WeightSet::from_f32(shape, 1, all).unwrap(), false, 4, BLOCK_TOKENS, LIMITS);
    let ticket = backend.submit(&plan(vec![row(&[1, 2], 0, &[0], Some(draw(0, 1)))])).unwrap();
    assert!(matches!(backend.collect(ticket), Err(KernelError::Sampling(_))));
}
