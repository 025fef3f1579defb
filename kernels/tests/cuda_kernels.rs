//! Every CUDA kernel, launched on its own on fresh random numbers and compared with a formula in f64: by the emulator,
//! or with `PARL_CARD=0` on a card. `PARL_SEED=N` repeats a failure that named its seed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic, helpers of tests too")]

mod emulated;
mod fixture;
mod kernel_checks;

use kernel_checks::attention::{Cached, SPLIT, Turning, decode, row_bytes, share, turn};
use kernel_checks::products::{TILINGS, operand, product, silu_times};
use kernel_checks::{BOTH, Bench, CLOSE, EPSILON, Near, UNTOUCHED, arguments, dot, grid, rounded};
use parl_kernels::cuda::driver::Argument;
use parl_kernels::rng::{RngKey, Stream};
use parl_kernels::weights::Dtype;

/// Widths of heads: of whole fragments of tensor cores, of copies of 16 bytes but not of fragments, and of neither. Each
/// is a run of the compiler.
const HEADS: [(Dtype, usize); 5] =
    [(Dtype::F32, 10), (Dtype::F32, 32), (Dtype::Bf16, 10), (Dtype::Bf16, 24), (Dtype::Bf16, 32)];

/// For kernels to which heads are no matter.
const ANY_HEAD: usize = 10;

#[test]
fn tokens_find_their_rows_of_the_embedding() {
    for dtype in BOTH {
        let mut bench = Bench::new(dtype, ANY_HEAD);
        for case in grid(&[1, 33, 300], &[0, 1, 5], &[()]) {
            let (width, count, ()) = case;
            let (vocab, room) = (9, 6);
            let table = bench.elements(vocab * width, 1.0);
            let ids = bench.shuffled(vocab);
            let tokens: Vec<u32> = ids[..room].iter().flat_map(|&id| [id, 0, 0, 0]).collect();
            let hidden = bench.poison(Dtype::F32, room * width);
            let (at_count, tokens) = (bench.count(count), bench.words(&tokens));
            let at_table = bench.weights(&table);
            let arguments = arguments![at_count, &tokens, at_table, &hidden, width as u32];
            bench.launch("embed", [room, 1, 1], 256, 0, arguments);
            let of = |(row, &id): (usize, &u32)| {
                let from = &table[id as usize * width..][..width];
                from.iter().map(move |&x| if row < count { Near::exactly(x) } else { UNTOUCHED })
            };
            let wanted: Vec<Near> = ids[..room].iter().enumerate().flat_map(of).collect();
            bench.compare(&hidden, &wanted, &case);
            bench.clear();
        }
    }
}

#[test]
fn sums_are_added_to_the_residual_stream_and_it_is_normed() {
    for dtype in BOTH {
        let mut bench = Bench::new(dtype, ANY_HEAD);
        // The last is wider than what a block's threads keep in registers.
        for case in grid(&[1, 33, 512, 2051], &[(0, 2), (1, 1), (3, 0), (5, 5)], &[false, true]) {
            let (width, (count, parts), chosen) = case;
            let (room, apart) = (6, 6 * width + 3);
            let before = bench.floats(room * width, 2.0);
            let sums = bench.floats(parts.max(1) * apart, 1.0);
            let weight = bench.elements(width, 2.0);
            let rows = bench.shuffled(room);
            let hidden = bench.place(Dtype::F32, &before);
            let to = bench.poison(dtype, room * width);
            let at_rows = if chosen { bench.words(&rows).address } else { 0 };
            let (at_count, at_sums) = (bench.count(count), bench.place(Dtype::F32, &sums));
            let mut arguments = arguments![at_count, at_rows, &hidden, &at_sums, parts as u32, apart as u64];
            arguments.extend(arguments![bench.weights(&weight), &to, width as u32, EPSILON]);
            bench.launch("rms_norm", [room, 1, 1], 512, 0, arguments);

            let mut stream: Vec<Near> = before.iter().map(|&x| Near::exactly(x)).collect();
            let mut normed = vec![UNTOUCHED; room * width];
            for r in 0..count {
                let row = if chosen { rows[r] as usize } else { r };
                for i in row * width..(row + 1) * width {
                    let terms = (0..parts).map(|part| sums[part * apart + i]).chain([before[i]]);
                    let [value, sizes] = dot(terms, std::iter::repeat(1.0));
                    stream[i] = if parts > 0 { Near::sum(value, sizes) } else { stream[i] };
                }
                let of = &stream[row * width..][..width];
                let squares = of.iter().map(|x| x.value * x.value).sum::<f64>();
                let rms = (squares / width as f64 + f64::from(EPSILON)).sqrt();
                for (i, (x, &weight)) in of.iter().zip(&weight).enumerate() {
                    let value = x.value / rms * f64::from(weight);
                    let sizes = (x.value.abs() + x.within / CLOSE) / rms * f64::from(weight.abs());
                    normed[r * width + i] = Near::sum(value, sizes);
                }
            }
            bench.compare(&hidden, &stream, &(case, "the stream"));
            bench.compare(&to, &normed, &(case, "normed"));
            bench.clear();
        }
    }
}

#[test]
fn products_in_f32_are_those_of_f64() {
    let mut bench = Bench::new(Dtype::F32, ANY_HEAD);
    let sizes = [(1, 1), (5, 7), (33, 64), (65, 17), (130, 300)];
    for case in grid(&sizes, &[(1, 0), (1, 1), (7, 3), (67, 66), (130, 129)], &[()]) {
        let ((outputs, inputs), (rows, count), ()) = case;
        let (x, w) = (bench.floats(rows * inputs, 1.0), bench.floats(outputs * inputs, 1.0));
        let y = bench.poison(Dtype::F32, rows * outputs);
        let (at_count, at_x, at_w) = (bench.count(count), bench.weights(&x), bench.weights(&w));
        let arguments = arguments![at_count, at_x, at_w, &y, outputs as u32, inputs as u32];
        bench.launch("multiply", [outputs.div_ceil(64), rows.div_ceil(64), 1], 256, 0, arguments);
        let of = |i: usize| match [i / outputs, i % outputs] {
            [row, _] if row >= count => UNTOUCHED,
            place => {
                let [value, sizes] = product(&x, &w, inputs, place, [0, inputs]);
                Near::sum(value, sizes)
            }
        };
        let wanted: Vec<Near> = (0..rows * outputs).map(of).collect();
        bench.compare(&y, &wanted, &case);
        bench.clear();
    }
}

#[test]
fn products_in_bf16_are_those_of_f64_in_every_tiling_and_cut() {
    let mut bench = Bench::new(Dtype::Bf16, ANY_HEAD);
    for tiling in TILINGS {
        // Outputs, inputs, inputs of a segment; how far beside a line the inputs lie.
        let sizes =
            [(1, 1usize, 64, 0), (33, 7, 64, 0), (40, 200, 64, 0), (70, 136, 128, 0), (19, 72, 64, 1)];
        for case in grid(&sizes, &tiling.rows(), &[true, false]) {
            let ((outputs, inputs, segment, beside), (rows, count), outside) = case;
            let kernel = if outside { tiling.sums } else { tiling.whole };
            if !outside && kernel == tiling.sums && inputs > segment {
                continue; // These kernels know no segments inside of a part.
            }
            let segments = inputs.div_ceil(segment);
            let (parts, part) = if outside { (segments, segment) } else { (1, segments * segment) };
            let apart = rows * outputs + 3;
            let y = bench.poison(Dtype::F32, parts * apart);
            let (at_x, x) = operand(&mut bench, count, rows, inputs, beside);
            let (at_w, w) = operand(&mut bench, outputs, outputs, inputs, beside);
            let mut arguments = arguments![bench.count(count), at_x, at_w, &y, outputs as u32];
            arguments.extend(arguments![inputs as u32, segment as u32, part as u32, apart as u64]);
            // One warp that takes all columns, or more than there are columns for.
            let turns = if outside { (1, 1) } else { (2, 3) };
            let [across, threads, shared] = tiling.cut(outputs, part, turns, false);
            let blocks = [across, rows.div_ceil(tiling.rows), parts];
            bench.launch(kernel, blocks, threads, shared, arguments);
            let of = |i: usize| {
                let (z, place) = (i / apart, [i % apart / outputs, i % apart % outputs]);
                if place[0] >= count {
                    return UNTOUCHED;
                }
                let range = [z * part, inputs.min((z + 1) * part)];
                let [value, sizes] = product(&x, &w, inputs, place, range);
                Near::sum(value, sizes)
            };
            let wanted: Vec<Near> = (0..parts * apart).map(of).collect();
            bench.compare(&y, &wanted, &(kernel, case));
            bench.clear();
        }
    }
}

#[test]
fn gated_products_are_those_of_f64_in_every_tiling() {
    let mut bench = Bench::new(Dtype::Bf16, ANY_HEAD);
    for tiling in TILINGS {
        // Gates, inputs, how far beside a line the inputs lie.
        for case in
            grid(&[(1, 1, 0), (33, 7, 0), (12, 64, 0), (70, 200, 0), (5, 72, 1)], &tiling.rows(), &[()])
        {
            let ((gates, inputs, beside), (rows, count), ()) = case;
            let to = bench.poison(Dtype::Bf16, rows * gates);
            let (at_x, x) = operand(&mut bench, count, rows, inputs, beside);
            let (at_w, w) = operand(&mut bench, 2 * gates, 2 * gates, inputs, beside);
            let arguments = arguments![bench.count(count), at_x, at_w, &to, gates as u32, inputs as u32];
            let part = inputs.next_multiple_of(64);
            let [across, threads, shared] = tiling.cut(gates, part, (2, 2), true);
            let blocks = [across, rows.div_ceil(tiling.rows), 1];
            bench.launch(tiling.gate, blocks, threads, shared, arguments);
            let of = |i: usize| {
                let [row, output] = [i / gates, i % gates];
                let sum = |output: usize| product(&x, &w, inputs, [row, output], [0, inputs]);
                if row < count { silu_times(sum(output), sum(gates + output)) } else { UNTOUCHED }
            };
            let wanted: Vec<Near> = (0..rows * gates).map(of).collect();
            bench.compare(&to, &wanted, &(tiling.gate, case));
            bench.clear();
        }
    }
}

#[test]
fn gates_let_ups_through() {
    for dtype in BOTH {
        let mut bench = Bench::new(dtype, ANY_HEAD);
        for case in grid(&[1, 33, 1024, 2500], &[0, 1, 3], &[2.0, 120.0]) {
            let (ffn, count, most) = case;
            let rows = 4;
            let gate_up = bench.floats(rows * 2 * ffn, most);
            let to = bench.poison(dtype, rows * ffn);
            let (at_count, from) = (bench.count(count), bench.place(Dtype::F32, &gate_up));
            let arguments = arguments![at_count, &from, &to, ffn as u32];
            bench.launch("swiglu", [ffn.div_ceil(4 * 256), rows, 1], 256, 0, arguments);
            let of = |i: usize| {
                let gate = f64::from(gate_up[i / ffn * 2 * ffn + i % ffn]);
                let up = f64::from(gate_up[i / ffn * 2 * ffn + ffn + i % ffn]);
                let value = gate / (1.0 + (-gate).exp()) * up;
                if i / ffn < count { Near::sum(value, value.abs()) } else { UNTOUCHED }
            };
            let wanted: Vec<Near> = (0..rows * ffn).map(of).collect();
            bench.compare(&to, &wanted, &case);
            bench.clear();
        }
    }
}

#[test]
fn heads_are_turned_and_keys_and_values_find_their_pages() {
    let rows = [(0, 1), (5, 3), (13, 2)];
    for (dtype, head_dim) in HEADS {
        let mut bench = Bench::new(dtype, head_dim);
        let shapes = [([1, 1, 1], 1), ([3, 1, 7], 3), ([6, 2, 16], 2)];
        for case in grid(&shapes, &[0, 1, 6], &[[false, false], [true, false], [false, true], [true, true]]) {
            let ((shape, parts), count, turns) = case;
            let cached = Cached::new(&mut bench, shape, &rows, false);
            let (places, [heads, kv_heads, _]) = (cached.places(), shape);
            let turning = Turning::new(&mut bench, [heads, kv_heads], [cached.tokens(), parts, 15], turns);
            let (queries, pool) = turn(&mut bench, &cached, &turning, count, &cached.pool);
            let mut wanted = vec![UNTOUCHED; places.len() * heads * head_dim];
            let mut pages: Vec<Near> = cached.pool.iter().map(|&x| Near::exactly(x)).collect();
            for (token, &[position, block, slot]) in places[..count].iter().enumerate() {
                for head in 0..heads + 2 * kv_heads {
                    let turned = turning.turned(head_dim, token, head, position as usize);
                    let (to, at) = match head.checked_sub(heads) {
                        None => (&mut wanted, (token * heads + head) * head_dim),
                        Some(h) => (&mut pages, cached.page(h / kv_heads, h % kv_heads, block, slot)),
                    };
                    to[at..at + head_dim].copy_from_slice(&turned);
                }
            }
            bench.compare(&queries, &wanted, &(case, "queries"));
            bench.compare(&pool, &pages, &(case, "keys and values"));
            bench.clear();
        }
    }
}

/// Query heads, KV heads and positions of a block: groups of one, of three, as many as a decode block takes, and more.
const SHAPES: [[usize; 3]; 4] = [[2, 2, 1], [9, 3, 7], [16, 1, 16], [34, 2, 16]];

#[test]
fn prefill_attends_to_all_before() {
    // Contexts of 1, 31, 32, 33, 127 to 130 and 301 positions, whole ones and the last tokens of some.
    let rows = [(0, 1), (0, 31), (27, 5), (0, 33), (126, 3), (0, 130), (288, 13), (0, 2)];
    for (dtype, head_dim) in HEADS {
        let mut bench = Bench::new(dtype, head_dim);
        for shape in SHAPES {
            let cached = Cached::new(&mut bench, shape, &rows, true);
            let [heads, kv_heads, _] = shape;
            let values = bench.elements(cached.tokens() * heads * head_dim, 1.0);
            let group = heads / kv_heads;
            let tiles: Vec<u32> = rows
                .iter()
                .enumerate()
                .flat_map(|(row, &(_, tokens))| {
                    (0..tokens * group).step_by(64).flat_map(move |first| [row as u32, first as u32])
                })
                .collect();
            // The last is not counted.
            let all = tiles.len() / 2;
            let mut attended = vec![UNTOUCHED; values.len()];
            for tile in tiles[..2 * (all - 1)].chunks(2) {
                let (row, first) = (tile[0] as usize, tile[1] as usize);
                let (start, tokens) = rows[row];
                let queries = first..(first + 64).min(tokens * group);
                for (query, kv_head) in queries.flat_map(|query| (0..kv_heads).map(move |h| (query, h))) {
                    let (token, head) = (query / group, kv_head * group + query % group);
                    let at = ((cached.first(row) + token) * heads + head) * head_dim;
                    let fold = cached.fold(&values[at..at + head_dim], row, head, 0..start + token + 1);
                    let out = fold.out(fold.sum, share(dtype)).collect::<Vec<_>>();
                    attended[at..at + head_dim].copy_from_slice(&out);
                }
            }
            // In bf16 twice, for the emulator may make copies late in one launch and not in the other.
            for &count in &[0, all - 1, all - 1][..if dtype == Dtype::F32 { 2 } else { 3 }] {
                let (queries, pool) = (bench.place(dtype, &values), bench.place(dtype, &cached.pool));
                let out = bench.poison(dtype, values.len());
                let (records, at_tiles) = (bench.words(&cached.row_words()), bench.words(&tiles));
                let what = cached.attention(&mut bench, &queries, &pool, &records);
                let arguments = arguments![bench.count(count), &at_tiles, what, &out];
                let shared = if dtype == Dtype::Bf16 { 4 * 2 * 32 * row_bytes(head_dim) } else { 0 };
                bench.launch("attend_prefill", [all, kv_heads, 1], 128, shared, arguments);
                let wanted = if count > 0 { &attended } else { &vec![UNTOUCHED; values.len()] };
                bench.compare(&out, wanted, &(shape, count));
                bench.clear();
            }
        }
    }
}

#[test]
fn decode_attends_to_all_before_in_any_cut() {
    for (dtype, head_dim) in HEADS {
        let mut bench = Bench::new(dtype, head_dim);
        for shape in SHAPES {
            decode(&mut bench, shape, [1, 1, 3], 0, None);
            if dtype == Dtype::F32 {
                decode(&mut bench, shape, [1, 1, 4], 9, None);
                continue;
            }
            // One block a row in rounds of one, two and all splits; a block for each split, and for two.
            let cuts = [
                ([1, 4, 4], [true, true]),
                ([2, 3, 3], [false, true]),
                ([5, 4, 4], [false, false]),
                ([1, 1, 3], [true, false]),
                ([2, 2, 4], [true, true]),
            ];
            for (cut, turns) in cuts {
                decode(&mut bench, shape, cut, 9, None);
                if shape[0] / shape[1] <= 16 {
                    decode(&mut bench, shape, cut, 9, Some(turns));
                }
            }
        }
    }
}

#[test]
fn splits_are_merged() {
    for (dtype, head_dim) in HEADS {
        let mut bench = Bench::new(dtype, head_dim);
        for case in grid(&[1, 3], &[0, 1, 5], &[3, 4]) {
            let (heads, count, splits) = case;
            let starts = [127, 128, 0, 300, 255, 5];
            let folds = starts.len() * heads * splits;
            let mut shares = vec![f32::NAN; 2 * folds];
            let mut partial = vec![f32::NAN; folds * head_dim];
            let mut records = Vec::new();
            let mut wanted = vec![UNTOUCHED; (starts.len() + 1) * heads * head_dim];
            for (row, start) in starts.into_iter().enumerate() {
                // Tokens lie in another order than rows.
                let first = starts.len() - row;
                records.extend([first as u32, 1, start as u32, 0]);
                for head in 0..heads {
                    let (mut largest, mut parts) = (f64::NEG_INFINITY, Vec::new());
                    for split in 0..=start / SPLIT {
                        let at = (row * heads + head) * splits + split;
                        let (score, sum) = (bench.floats(1, 5.0)[0], 1.0 + 100.0 * bench.random());
                        shares[2 * at..2 * at + 2].copy_from_slice(&[score, sum]);
                        partial[at * head_dim..][..head_dim].copy_from_slice(&bench.floats(head_dim, sum));
                        largest = largest.max(f64::from(score));
                        parts.push((f64::from(score), f64::from(sum), at * head_dim));
                    }
                    let of = |i: Option<usize>| {
                        parts.iter().fold([0.0; 2], |[value, sizes], &(score, sum, at)| {
                            let term = i.map_or(sum, |i| f64::from(partial[at + i]));
                            let term = (score - largest).exp() * term;
                            [value + term, sizes + term.abs()]
                        })
                    };
                    let ([all, _], to) = (of(None), (first * heads + head) * head_dim);
                    for i in (0..head_dim).filter(|_| row < count) {
                        let [value, sizes] = of(Some(i));
                        wanted[to + i] = Near::sum(value / all, sizes / all);
                    }
                }
            }
            let out = bench.poison(dtype, wanted.len());
            let (at_count, records) = (bench.count(count), bench.words(&records));
            let (shares, partial) = (bench.place(Dtype::F32, &shares), bench.place(Dtype::F32, &partial));
            let arguments = arguments![at_count, &records, &shares, &partial, &out, splits as u32];
            bench.launch("merge_splits", [starts.len(), heads, 1], 64, 0, arguments);
            bench.compare(&out, &wanted, &case);
            bench.clear();
        }
    }
}

/// The record of a draw.
fn draw_words(key: RngKey, position: u32, (temperature, top_k, top_p): (f32, u32, f32)) -> [u32; 10] {
    let (seed, episode) = (key.seed, key.episode);
    let purpose = (key.stream as u32) << 24 | key.agent;
    let [seed, episode] = [seed, episode].map(|x| [x as u32, (x >> 32) as u32]);
    let [t, p] = [temperature, top_p].map(f32::to_bits);
    [seed[0], seed[1], episode[0], episode[1], purpose, position, t, top_k, p, 0]
}

/// Ids in the order in which their mass is counted, those that are left by truncation alone.
fn kept(masses: &[f64], top_k: u32, top_p: f64) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..masses.len()).collect();
    let most = if top_k == 0 { ids.len() } else { ids.len().min(top_k as usize) };
    if most == ids.len() && top_p >= 1.0 {
        return ids;
    }
    ids.sort_by(|&a, &b| masses[b].total_cmp(&masses[a]).then(a.cmp(&b)));
    ids.truncate(most);
    let wanted = top_p * ids.iter().map(|&id| masses[id]).sum::<f64>();
    let mut sum = 0.0;
    let reaches = |&id: &usize| {
        sum += masses[id];
        sum >= wanted
    };
    let last = ids.iter().position(reaches).unwrap_or(ids.len() - 1);
    ids.truncate(last + 1);
    ids
}

#[test]
fn tokens_are_drawn_from_their_logits() {
    let mut bench = Bench::new(Dtype::F32, ANY_HEAD);
    let draws = [(0.0, 0, 1.0), (0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8), (2.0, 20, 0.5)];
    let strays = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let rows = draws.len() + strays.len() + 1;
    // So many that a thread that looks for the largest has more than one turn.
    for case in grid(&[1, 33, 1501, 165_003], &[0, 1, rows - 1], &[()]) {
        let (vocab, count, ()) = case;
        let mut logits = bench.floats(rows * vocab, 8.0);
        // In some rows three tokens each are as likely.
        for (row, i, ()) in grid(&[1, 3, 4], &(0..vocab).rev().collect::<Vec<_>>(), &[()]) {
            logits[row * vocab + i] = logits[row * vocab + i / 3];
        }
        // In the first the likeliest comes just after one that is nearly as likely.
        let likeliest = (0..vocab).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        logits[likeliest.saturating_sub(1)] = logits[likeliest].next_down();
        for (row, stray) in (draws.len()..).zip(strays) {
            logits[row * vocab + (bench.random() * vocab as f32) as usize] = stray;
        }
        let mut records = Vec::new();
        let mut uniforms = Vec::new();
        for row in 0..rows {
            let [seed, episode] = [0; 2].map(|_| u64::from(bench.random().to_bits()) << 20 | row as u64);
            let key = RngKey { seed, stream: Stream::Sample, episode, agent: 77 };
            records.extend(draw_words(key, row as u32, draws[row % draws.len()]));
            uniforms.push(key.uniform_f64(row as u32));
        }
        let (at_count, at_logits) = (bench.count(count), bench.place(Dtype::F32, &logits));
        let records = bench.words(&records);
        let parts = bench.poison(Dtype::F32, rows * 32 * 4);
        let drawn = bench.poison(Dtype::F32, rows * 4);
        let vocab_word = vocab as u32;

        let arguments = arguments![at_count, &at_logits, &parts, vocab_word];
        bench.launch("survey_logits", [rows, 32, 1], 256, 0, arguments);
        let surveyed = bench.read_words(&parts, &(case, "surveyed"));
        let arguments = arguments![at_count, &at_logits, &records, &parts, vocab_word];
        bench.launch("weigh_logits", [rows, 32, 1], 256, 0, arguments);
        let weighed = bench.read_words(&parts, &(case, "weighed"));
        let arguments = arguments![at_count, &at_logits, &records, &parts, &drawn, vocab_word];
        bench.launch("draw_tokens", [rows, 1, 1], 512, 0, arguments);
        let drawn = bench.read_words(&drawn, &(case, "drawn"));

        for (row, drawn) in drawn.chunks(4).enumerate() {
            let what = (case, "row", row, drawn);
            let (surveyed, weighed) = (&surveyed[row * 128..][..128], &weighed[row * 128..][..128]);
            if row >= count {
                let all = drawn.iter().chain(surveyed).chain(weighed);
                bench.check(all.copied().all(|word| word == u32::MAX), || format!("{what:?}: was written"));
                continue;
            }
            let logits = &logits[row * vocab..][..vocab];
            let finite = logits.iter().all(|x| x.is_finite());
            let (temperature, top_k, top_p) = draws[row % draws.len()];
            let divisor = if temperature == 0.0 { 1.0 } else { f64::from(temperature) };
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mass = |&x: &f32| ((f64::from(x) - f64::from(most)) / divisor).exp();
            let length = vocab.div_ceil(32);
            for part in 0..32 {
                let of = &logits[(part * length).min(vocab)..((part + 1) * length).min(vocab)];
                let here = of.iter().copied().fold(f32::NEG_INFINITY, f32::max).to_bits();
                let all_finite = of.iter().all(|x| x.is_finite());
                let (before, after) = (&surveyed[4 * part..][..4], &weighed[4 * part..][..4]);
                let good = before[1..] == [u32::from(all_finite), 0, 0]
                    && (before[0] == here || !all_finite)
                    && before[..2] == after[..2];
                bench.check(good, || format!("{what:?} part {part}: {before:x?} {after:x?} {here:x}"));
                let units = (u64::from(after[2]) | u64::from(after[3]) << 32) as f64;
                let (got, wanted) = (units / 2f64.powi(44), of.iter().map(mass).sum::<f64>());
                bench.check(!finite || (got - wanted).abs() <= CLOSE * wanted + 1e-9, || {
                    format!("{what:?} part {part}: a mass of {got}, must be {wanted}")
                });
            }
            if !finite {
                bench.check(*drawn == [0; 4], || format!("{what:?}: not told"));
                continue;
            }
            let masses: Vec<f64> = logits.iter().map(mass).collect();
            let (id, logprob) = (drawn[0] as usize, f64::from(f32::from_bits(drawn[1])));
            bench.check(id < vocab && drawn[2..] == [1, 0], || format!("{what:?}: nothing was drawn"));
            if temperature == 0.0 {
                let first = logits.iter().position(|&x| x >= most);
                bench.check(first == Some(id), || format!("{what:?}: must be {first:?}"));
            } else {
                let fits = |ids: Vec<usize>| {
                    let sum = ids.iter().map(|&id| masses[id]).sum::<f64>();
                    let before = ids.iter().take_while(|&&of| of != id).map(|&id| masses[id]).sum::<f64>();
                    let range = before / sum - 1e-6..(before + masses[id]) / sum + 1e-6;
                    ids.contains(&id) && range.contains(&uniforms[row])
                };
                // A cut between two tokens may be a matter of rounding.
                let cuts = if top_p < 1.0 { &[1.0, 1.0 - 1e-6, 1.0 + 1e-6][..] } else { &[1.0] };
                let good = cuts.iter().any(|cut| fits(kept(&masses, top_k, f64::from(top_p) * cut)));
                bench.check(good, || format!("{what:?}: {} is another's", uniforms[row]));
            }
            let wanted = masses[id].ln() - masses.iter().sum::<f64>().ln();
            bench.check((logprob - wanted).abs() <= CLOSE * (1.0 + wanted.abs()), || {
                format!("{what:?}: log-prob {logprob}, must be {wanted}")
            });
        }
        bench.clear();
    }
}

#[test]
fn blocks_are_copied_in_every_layer() {
    let mut bench = Bench::new(Dtype::F32, ANY_HEAD);
    // Words of a block, and blocks along x: fewer than its words need, too.
    for case in grid(&[(1, 1), (33, 1), (600, 1), (600, 3)], &[0, 1, 3], &[1, 3]) {
        let ((words, across), count, layers) = case;
        let (blocks, launched) = (8, 4);
        let mut pool = bench.floats(layers * blocks * words, 1.0);
        let (to, order) = (bench.place(Dtype::F32, &pool), bench.shuffled(blocks));
        let pairs = bench.words(&order);
        let mut arguments = arguments![bench.count(count), &pairs, &to, words as u64];
        arguments.extend(arguments![(blocks * words) as u64]);
        bench.launch("copy_blocks", [across, launched, layers], 256, 0, arguments);
        for layer in 0..layers {
            for pair in order.chunks(2).take(count) {
                let [from, to] = [pair[0], pair[1]].map(|block| (layer * blocks + block as usize) * words);
                pool.copy_within(from..from + words, to);
            }
        }
        let wanted: Vec<Near> = pool.into_iter().map(Near::exactly).collect();
        bench.compare(&to, &wanted, &case);
        bench.clear();
    }
}

#[test]
fn strays_are_found_wherever_they_are() {
    for dtype in BOTH {
        let mut bench = Bench::new(dtype, ANY_HEAD);
        let (mut records, mut wanted, mut cases) = (Vec::new(), Vec::new(), Vec::new());
        // Counts around lines of 16 bytes and around what a block's threads take at once; how far beside a line.
        for (count, beside, stray) in grid(
            &[0, 1, 3, 4, 8, 9, 257, 2049, 9001],
            &[0, 1, 5],
            &[None, Some(f32::NAN), Some(f32::INFINITY), Some(f32::NEG_INFINITY)],
        ) {
            // First, middle, last; all around is poison, which is NaN.
            for at in [0, count / 2, count.max(1) - 1] {
                let mut values = bench.elements(count, 1.0);
                // Such as are finite, though only just.
                for (value, extreme) in values.iter_mut().zip([3e38, -3e38, 0.0, -0.0, 1e-39]) {
                    *value = rounded(dtype, extreme);
                }
                if let (Some(value), Some(stray)) = (values.get_mut(at), stray) {
                    *value = stray;
                }
                let all = [&vec![f32::NAN; beside], &values[..]].concat();
                let size = if dtype == Dtype::F32 { 4 } else { 2 };
                let address = bench.weights(&all) + beside as u64 * size;
                // Two pieces a tensor, one of them clean.
                for count in [count, 0] {
                    let words = [address as u32, (address >> 32) as u32];
                    records.extend([words[0], words[1], count as u32, cases.len() as u32]);
                }
                wanted.push(u32::from(stray.is_some() && count > 0));
                cases.push((count, beside, stray, at));
            }
        }
        let flags = bench.words(&vec![0; cases.len()]);
        let pieces = bench.words(&records);
        bench.launch("find_strays", [records.len() / 4, 1, 1], 256, 0, arguments![&pieces, &flags]);
        let found = bench.read_words(&flags, &"strays");
        for ((case, found), wanted) in cases.iter().zip(&found).zip(&wanted) {
            bench.check(found == wanted, || format!("{case:?}: {found}, must be {wanted}"));
        }
    }
}
