//! A row's bits do not depend on its company, on threads, or on how its prefill is cut.

#![allow(clippy::unwrap_used, reason = "tests may panic, helpers of tests too")]

mod fixture;

use fixture::{
    base, bits, decode, drawn_bits, logits, plain, plan, ready, rounded, row, rows, run, tensors, tokens,
};
use parl_kernels::backend::PlanRow;
use parl_kernels::cpu::{CpuBackend, Level};
use parl_kernels::shape::ModelShape;
use parl_kernels::weights::WeightSet;

fn in_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// A shape whose batches are split into chunks and whose products are split among threads.
fn large() -> ModelShape {
    ModelShape { hidden: 128, heads: 4, kv_heads: 2, head_dim: 32, ffn: 384, vocab: 704, ..base() }
}

#[test]
fn alone_or_in_company_in_any_order_on_one_thread_or_two() {
    for shape in [base(), large()] {
        let all = rows(&shape, 64, 100);
        let after = decode(&shape, &all);
        // Alone, one after the other, on one thread.
        let wanted: Vec<_> = in_threads(1, || {
            let mut backend = plain(&shape, 512);
            all.iter()
                .zip(&after)
                .map(|(a, b)| {
                    let first = run(&mut backend, &plan(vec![a.clone()]));
                    drawn_bits(&[first, run(&mut backend, &plan(vec![b.clone()]))].concat())
                })
                .collect()
        });
        for threads in [1, 2] {
            for size in [1, 2, 3, 5, 12, 13, 31, 64] {
                for reversed in [false, true] {
                    let mut order: Vec<usize> = (0..size).map(|i| i * 64 / size).collect();
                    if reversed {
                        order.reverse();
                    }
                    let pick = |from: &[PlanRow]| plan(order.iter().map(|&i| from[i].clone()).collect());
                    let got = in_threads(threads, || {
                        let mut backend = plain(&shape, 512);
                        [pick(&all), pick(&after)].map(|p| drawn_bits(&run(&mut backend, &p)))
                    });
                    for (n, &i) in order.iter().enumerate() {
                        assert_eq!([got[0][n], got[1][n]], wanted[i][..], "row {i} in a batch of {size}");
                    }
                }
            }
        }
    }
}

/// More weights than a cache holds: rows go through the layers together, and threads share products and attention.
#[test]
fn also_where_rows_share_one_reading_of_the_weights() {
    let shape =
        ModelShape { hidden: 512, heads: 16, kv_heads: 4, head_dim: 32, ffn: 384, vocab: 17_000, ..base() };
    let all = rows(&shape, 40, 100);
    let after = decode(&shape, &all);
    let both = |backend: &mut CpuBackend, rows: &[usize]| {
        let pick = |from: &[PlanRow]| plan(rows.iter().map(|&i| from[i].clone()).collect());
        let [first, second] = [pick(&all), pick(&after)].map(|p| drawn_bits(&run(backend, &p)));
        first.into_iter().zip(second).collect::<Vec<_>>()
    };
    let wanted: Vec<_> = in_threads(1, || {
        let mut backend = plain(&shape, 512);
        (0..all.len()).map(|i| both(&mut backend, &[i])[0]).collect()
    });
    for threads in [1, 2] {
        in_threads(threads, || {
            let mut backend = plain(&shape, 512);
            for size in [1, 2, 7, 40] {
                let order: Vec<usize> = (0..size).rev().map(|i| i * all.len() / size).collect();
                for (got, &i) in both(&mut backend, &order).iter().zip(&order) {
                    assert_eq!(*got, wanted[i], "row {i} in a batch of {size} on {threads} threads");
                }
            }
        });
    }
}

#[test]
fn prefill_and_decode_rows_mix() {
    let shape = base();
    let all = rows(&shape, 20, 100);
    let after = decode(&shape, &all);
    let mut apart = plain(&shape, 160);
    let wanted: Vec<_> = [&all[..10], &after[..10], &all[10..]]
        .map(|r| drawn_bits(&run(&mut apart, &plan(r.to_vec()))))
        .concat();
    let mut mixed = plain(&shape, 160);
    let mut got = drawn_bits(&run(&mut mixed, &plan(all[..10].to_vec())));
    got.extend(drawn_bits(&run(&mut mixed, &plan([&after[..10], &all[10..]].concat()))));
    assert_eq!(got, wanted);
}

/// Logits after every token when `sequence` comes in pieces of `sizes` (repeated).
fn in_pieces(backend: &mut CpuBackend, sequence: &[u32], blocks: &[u32], sizes: &[usize]) -> Vec<u32> {
    let (mut at, mut all) = (0, Vec::new());
    for &size in sizes.iter().cycle() {
        let end = (at + size).min(sequence.len());
        let piece = plan(vec![row(&sequence[at..end], at as u32, blocks, None)]);
        all.extend(logits(backend, &piece).remove(0));
        at = end;
        if at == sequence.len() {
            break;
        }
    }
    bits(&all)
}

#[test]
fn a_prefill_may_be_cut_anywhere() {
    let shapes = [base(), ModelShape { heads: 6, kv_heads: 2, head_dim: 10, qk_norm: true, ..base() }];
    for shape in shapes {
        let w = tensors(&shape, 1);
        let sequence = tokens(&shape, 8, 90);
        for level in Level::available() {
            for block_tokens in [16, 7] {
                for low in [false, true] {
                    let weights = if low {
                        WeightSet::from_bf16(shape.clone(), 1, rounded(&w).0).unwrap()
                    } else {
                        WeightSet::from_f32(shape.clone(), 1, w.clone()).unwrap()
                    };
                    let mut backend = ready(level, weights, 40, block_tokens);
                    let blocks: Vec<u32> = (0..13).rev().collect();
                    let wanted = in_pieces(&mut backend, &sequence, &blocks, &[90]);
                    for sizes in [&[1][..], &[16], &[3, 20, 1], &[50, 1, 39]] {
                        // Other blocks, dirty ones included.
                        let blocks: Vec<u32> = (5..18).collect();
                        let got = in_pieces(&mut backend, &sequence, &blocks, sizes);
                        assert!(got == wanted, "{} {sizes:?} {block_tokens}", level.name());
                    }
                }
            }
        }
    }
}

#[test]
fn a_draw_has_the_bits_of_the_debug_logits_and_of_a_plan_without_other_draws() {
    let shape = base();
    let mut backend = plain(&shape, 160);
    let mut some = rows(&shape, 20, 100);
    let wanted = drawn_bits(&run(&mut backend, &plan(some.clone())));
    for (i, row) in some.iter_mut().enumerate() {
        if i % 3 != 0 {
            row.draw = None;
        }
    }
    let got = drawn_bits(&run(&mut backend, &plan(some.clone())));
    for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        assert_eq!(*got, if i % 3 == 0 { *wanted } else { None });
    }
    let all = logits(&mut backend, &plan(some.clone()));
    for (row, logits) in some.iter().zip(&all).filter(|(r, _)| r.draw.is_some()) {
        let last = logits.last().unwrap();
        let mut work = parl_kernels::sampling::Workspace::default();
        let wish = row.draw.unwrap();
        let again = parl_kernels::sampling::draw(backend.level(), last, &wish, &mut work).unwrap();
        let drawn = run(&mut backend, &plan(vec![row.clone()]))[0];
        assert_eq!(drawn, Some(again));
    }
}

#[test]
fn one_long_prefill_is_shared_among_threads_without_a_trace() {
    let shape = ModelShape { max_positions: 1024, ..large() };
    let sequence = tokens(&shape, 1, 900);
    let blocks: Vec<u32> = (0..57).collect();
    let [one, two] = [1, 2].map(|threads| {
        in_threads(threads, || {
            let mut backend = plain(&shape, 57);
            in_pieces(&mut backend, &sequence, &blocks, &[900])
        })
    });
    let cut = in_pieces(&mut plain(&shape, 57), &sequence, &blocks, &[200, 333]);
    assert!(one == two && one == cut);
}
