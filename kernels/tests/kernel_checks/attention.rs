//! Keys and values in blocks, what lies between the projection and attention, and attention in f64.

use std::ops::Range;

use parl_kernels::cuda::driver::Argument;
use parl_kernels::weights::Dtype;

use super::{Bench, CLOSE, EPSILON, HALF_UNIT, Near, Place, UNTOUCHED, arguments, dot, grid};

/// What lies between the fused projection and attention, for tokens in a batch.
pub struct Turning {
    pub heads: usize,
    pub kv_heads: usize,
    pub parts: usize,
    /// Floats from one part of the sums to the next, a few more than there are: nobody may read those.
    apart: usize,
    sums: Vec<f32>,
    bias: Option<Vec<f32>>,
    /// Of q, and of k.
    norms: Option<[Vec<f32>; 2]>,
    angles: Vec<f32>,
}

const SCALE: f32 = 0.7;

impl Turning {
    pub fn new(
        bench: &mut Bench,
        [heads, kv_heads]: [usize; 2],
        [tokens, parts, positions]: [usize; 3],
        [bias, norms]: [bool; 2],
    ) -> Self {
        let head_dim = bench.head_dim;
        let row = (heads + 2 * kv_heads) * head_dim;
        let apart = tokens * row + 3;
        let mut sums = bench.floats(parts * apart, 1.0);
        sums.chunks_mut(apart).for_each(|part| part[tokens * row..].fill(f32::NAN));
        let mut angles = Vec::new();
        for _ in 0..positions {
            let turns = bench.floats(head_dim / 2, std::f32::consts::PI);
            angles.extend(turns.iter().map(|x| x.cos()).chain(turns.iter().map(|x| x.sin())));
        }
        let bias = bias.then(|| bench.elements(row, 1.0));
        let norms = norms.then(|| [bench.elements(head_dim, 2.0), bench.elements(head_dim, 2.0)]);
        Self { heads, kv_heads, parts, apart, sums, bias, norms, angles }
    }

    /// Parameters from the sums to the queries' factor.
    pub fn arguments(&self, bench: &mut Bench) -> Vec<Argument> {
        let [q_norm, k_norm] =
            self.norms.as_ref().map_or([0; 2], |[q, k]| [bench.weights(q), bench.weights(k)]);
        let bias = self.bias.as_ref().map_or(0, |bias| bench.weights(bias));
        let (sums, angles) = (bench.place(Dtype::F32, &self.sums), bench.place(Dtype::F32, &self.angles));
        let (parts, apart) = (self.parts as u32, self.apart as u64);
        arguments![&sums, parts, apart, bias, q_norm, k_norm, EPSILON, &angles, SCALE]
    }

    /// A token's head, in the order q, k, v, at its position.
    pub fn turned(&self, head_dim: usize, token: usize, head: usize, position: usize) -> Vec<Near> {
        let (all, half) = (self.heads + 2 * self.kv_heads, head_dim / 2);
        let (is_q, is_v) = (head < self.heads, head >= self.heads + self.kv_heads);
        let sum = |i: usize| {
            let parts = self.sums.chunks(self.apart).map(|part| part[(token * all + head) * head_dim + i]);
            let bias = self.bias.as_ref().map(|bias| bias[head * head_dim + i]);
            dot(parts.chain(bias), std::iter::repeat(1.0))
        };
        let mut of: Vec<[f64; 2]> = (0..head_dim).map(sum).collect();
        if let Some([q_norm, k_norm]) = self.norms.as_ref().filter(|_| !is_v) {
            let squares = of.iter().map(|[x, _]| x * x).sum::<f64>();
            let rms = (squares / head_dim as f64 + f64::from(EPSILON)).sqrt();
            let norm = if is_q { q_norm } else { k_norm };
            for (x, &weight) in of.iter_mut().zip(norm) {
                *x = [x[0] / rms * f64::from(weight), (x[1] / rms * f64::from(weight)).abs()];
            }
        }
        let turn = |i: usize| {
            let (j, angles) = (i % half, &self.angles[position * head_dim..]);
            let ([a, b], [cosine, sine]) =
                ([of[j], of[j + half]], [angles[j], angles[j + half]].map(f64::from));
            let factor = if is_q { f64::from(SCALE) } else { 1.0 };
            let value = if i < half { a[0] * cosine - b[0] * sine } else { b[0] * cosine + a[0] * sine };
            Near::sum(value * factor, (a[1] + b[1]) * factor)
        };
        let plain = |[value, sizes]: [f64; 2]| Near::sum(value, sizes);
        if is_v { of.into_iter().map(plain).collect() } else { (0..head_dim).map(turn).collect() }
    }
}

/// Keys and values of rows, in blocks of a pool in which most is poison.
pub struct Cached {
    pub heads: usize,
    pub kv_heads: usize,
    pub block_tokens: usize,
    head_dim: usize,
    blocks: usize,
    /// Start and tokens of each row; the batch's first token is nobody's.
    pub rows: Vec<(usize, usize)>,
    tables: Vec<Vec<u32>>,
    /// A block of no row.
    spare: u32,
    pub pool: Vec<f32>,
}

const LAYERS: usize = 3;
pub const LAYER: u32 = 1;

impl Cached {
    /// Without `own`, nobody has written the keys and values of the rows' tokens themselves.
    pub fn new(
        bench: &mut Bench,
        [heads, kv_heads, block_tokens]: [usize; 3],
        rows: &[(usize, usize)],
        own: bool,
    ) -> Self {
        let head_dim = bench.head_dim;
        let needs: Vec<usize> =
            rows.iter().map(|&(start, tokens)| (start + tokens).div_ceil(block_tokens)).collect();
        let blocks = needs.iter().sum::<usize>() + 2;
        let mut free = bench.shuffled(blocks);
        let tables = needs.iter().map(|&count| free.split_off(free.len() - count)).collect();
        let pool = vec![f32::NAN; LAYERS * blocks * 2 * kv_heads * block_tokens * head_dim];
        let (rows, spare) = (rows.to_vec(), free[0]);
        let mut cached = Self { heads, kv_heads, block_tokens, head_dim, blocks, rows, tables, spare, pool };
        for (row, (start, tokens)) in cached.rows.clone().into_iter().enumerate() {
            for position in 0..if own { start + tokens } else { start } {
                for (which, kv_head, ()) in grid(&[0, 1], &(0..kv_heads).collect::<Vec<_>>(), &[()]) {
                    let at = cached.at(which, kv_head, row, position);
                    cached.pool[at..at + head_dim].copy_from_slice(&bench.elements(head_dim, 1.0));
                }
            }
        }
        cached
    }

    /// Where the keys (`which` 0) or values (1) of a place in a block begin.
    pub fn page(&self, which: usize, kv_head: usize, block: u32, slot: u32) -> usize {
        let block = (LAYER as usize * self.blocks + block as usize) * 2;
        let page = (block + which) * self.kv_heads + kv_head;
        (page * self.block_tokens + slot as usize) * self.head_dim
    }

    /// The same of a row's position.
    pub fn at(&self, which: usize, kv_head: usize, row: usize, position: usize) -> usize {
        let block = self.tables[row][position / self.block_tokens];
        self.page(which, kv_head, block, (position % self.block_tokens) as u32)
    }

    /// The place of a row's first token in the batch.
    pub fn first(&self, row: usize) -> usize {
        1 + self.rows[..row].iter().map(|(_, tokens)| tokens).sum::<usize>()
    }

    /// Tokens of the batch.
    pub fn tokens(&self) -> usize {
        self.first(self.rows.len())
    }

    /// Records of rows.
    pub fn row_words(&self) -> Vec<u32> {
        let mut table = 0;
        let mut record = |(row, &(start, tokens)): (usize, &(usize, usize))| {
            table += self.tables[row].len();
            [self.first(row), tokens, start, table - self.tables[row].len()].map(|word| word as u32)
        };
        self.rows.iter().enumerate().flat_map(&mut record).collect()
    }

    /// Position, block and slot of the batch's tokens; of the first, which is nobody's, in a block of its own.
    pub fn places(&self) -> Vec<[u32; 3]> {
        let mut all = vec![[0, self.spare, 0]];
        for (table, &(start, tokens)) in self.tables.iter().zip(&self.rows) {
            all.extend((start..start + tokens).map(|position| {
                let block = table[position / self.block_tokens];
                [position as u32, block, (position % self.block_tokens) as u32]
            }));
        }
        all
    }

    /// Records of tokens.
    pub fn token_words(&self) -> Vec<u32> {
        self.places().into_iter().flat_map(|[position, block, slot]| [0, position, block, slot]).collect()
    }

    /// `Paging` of `paging.cuh` in two words, the second with room for one more.
    pub fn paging(&self, more: u32) -> [u64; 2] {
        let pair = |low: usize, high: usize| low as u64 | (high as u64) << 32;
        [pair(self.blocks, self.kv_heads), pair(self.block_tokens, more as usize)]
    }

    /// `Attention` of `attention.cuh`.
    pub fn attention(&self, bench: &mut Bench, queries: &Place, pool: &Place, rows: &Place) -> Argument {
        let tables = bench.words(&self.tables.concat());
        let [a, b] = self.paging(LAYER);
        Argument([queries.address, pool.address, rows.address, tables.address, a, b, self.heads as u64])
    }

    /// What a query of a row has of positions.
    pub fn fold(&self, query: &[f32], row: usize, head: usize, positions: Range<usize>) -> Fold {
        let kv_head = head / (self.heads / self.kv_heads);
        let of = |which: usize, position: usize| {
            let at = self.at(which, kv_head, row, position);
            self.pool[at..at + self.head_dim].iter().copied()
        };
        let scores: Vec<[f64; 2]> =
            positions.clone().map(|position| dot(query.iter().copied(), of(0, position))).collect();
        let largest = scores.iter().map(|s| s[0]).fold(f64::NEG_INFINITY, f64::max);
        let sizes = scores.iter().map(|s| s[1]).fold(0.0, f64::max);
        let (mut sum, mut out) = (0.0, vec![[0.0; 2]; self.head_dim]);
        for ([score, _], position) in scores.into_iter().zip(positions) {
            let weight = (score - largest).exp();
            sum += weight;
            for (to, value) in out.iter_mut().zip(of(1, position)) {
                let term = weight * f64::from(value);
                *to = [to[0] + term, to[1] + term.abs()];
            }
        }
        Fold { largest: Near::sum(largest, sizes), sum, out }
    }
}

/// A softmax over positions, and the values that it weighs.
pub struct Fold {
    pub largest: Near,
    /// Of e^(score - largest).
    pub sum: f64,
    /// The values' weighted sums, and those of their sizes.
    out: Vec<[f64; 2]>,
}

impl Fold {
    /// The weighted sums over `divisor`, where they may be off by `share` of the sum of their terms' sizes besides.
    pub fn out(&self, divisor: f64, share: f64) -> impl Iterator<Item = Near> {
        let near = move |[value, sizes]: &[f64; 2]| Near {
            value: value / divisor,
            // Scores are sums too, and a weight is off by as much as its score.
            within: (2.0 * CLOSE + share) * sizes / divisor,
        };
        self.out.iter().map(near)
    }
}

/// By how much of its terms' sizes a weighted sum of values may be off: in bf16 weights are rounded to it.
pub fn share(dtype: Dtype) -> f64 {
    if dtype == Dtype::F32 { 0.0 } else { HALF_UNIT }
}

/// Turns the first `count` tokens of the batch: the queries, and a pool that was `before`.
pub fn turn(
    bench: &mut Bench,
    cached: &Cached,
    turning: &Turning,
    count: usize,
    before: &[f32],
) -> (Place, Place) {
    let Cached { heads, kv_heads, .. } = *cached;
    let queries = bench.poison(bench.dtype, cached.tokens() * heads * bench.head_dim);
    let pool = bench.place(bench.dtype, before);
    let (at_count, tokens) = (bench.count(count), bench.words(&cached.token_words()));
    let mut arguments = arguments![at_count, &tokens];
    arguments.extend(turning.arguments(bench));
    let [a, b] = cached.paging(0);
    arguments.extend(arguments![&queries, &pool, Argument([a, b, 0, 0, 0, 0, 0]), LAYER, heads as u32]);
    let blocks = [cached.tokens(), (heads + 2 * kv_heads).div_ceil(4), 1];
    bench.launch("turn_heads", blocks, 128, 0, arguments);
    (queries, pool)
}

/// Rows of one token with contexts of 1, 31, 32, 33, 127 to 130 and 301 positions, and of 5 that are not counted.
const DECODED: [(usize, usize); 10] =
    [(128, 1), (0, 1), (30, 1), (300, 1), (31, 1), (32, 1), (126, 1), (127, 1), (129, 1), (4, 1)];

/// Positions of a split.
pub const SPLIT: usize = 128;

/// Bytes of a key or value of bf16 in shared memory.
pub fn row_bytes(head_dim: usize) -> usize {
    let padded = head_dim.next_multiple_of(16);
    2 * if padded.is_multiple_of(64) { padded } else { padded + 8 }
}

/// Bytes of shared memory of a decode block in bf16.
fn decode_bytes(head_dim: usize, heads: usize, warps: usize) -> usize {
    let rings = warps * 3 * 2 * 32 * row_bytes(head_dim);
    let folds = 4 * head_dim * ((warps * heads).max(heads + 2) + heads);
    rings + folds + 8 * heads * (warps + 2) + 2 * head_dim * heads
}

/// Decodes the first `count` rows and compares. A block has `warps` warps and `each` of at most `splits` splits; with
/// `turns` (bias and norms) it turns the projection's sums itself, to the bits that `turn_heads` gives.
pub fn decode(
    bench: &mut Bench,
    shape: [usize; 3],
    [warps, each, splits]: [usize; 3],
    count: usize,
    turns: Option<[bool; 2]>,
) {
    let what = (shape, warps, each, splits, count, turns);
    let ([heads, kv_heads, _], dtype, head_dim) = (shape, bench.dtype, bench.head_dim);
    let mut cached = Cached::new(bench, shape, &DECODED, turns.is_none());
    let (launched, tokens, group) = (DECODED.len(), cached.tokens(), heads / kv_heads);
    let turning = Turning::new(bench, [heads, kv_heads], [tokens, 3, 301], turns.unwrap_or_default());
    let before = cached.pool.clone();
    let mut values = bench.elements(tokens * heads * head_dim, 1.0);
    let queries = if turns.is_none() {
        bench.place(dtype, &values)
    } else {
        // What is turned is compared with a formula where `turn_heads` is.
        let (queries, pool) = turn(bench, &cached, &turning, tokens, &before);
        values = bench.read_numbers(&queries, &what);
        let written = bench.read_numbers(&pool, &what);
        for (row, &(start, _)) in DECODED[..count].iter().enumerate() {
            for h in 0..2 * kv_heads {
                let at = cached.at(h / kv_heads, h % kv_heads, row, start);
                cached.pool[at..at + head_dim].copy_from_slice(&written[at..at + head_dim]);
            }
        }
        bench.poison(dtype, values.len())
    };
    let (pool, out) = (bench.place(dtype, &before), bench.poison(dtype, values.len()));
    let folds = launched * heads * splits;
    let shares = bench.poison(Dtype::F32, 2 * folds);
    let partial = bench.poison(Dtype::F32, folds * head_dim);
    let records = bench.words(&cached.row_words());
    let attention = cached.attention(bench, &queries, &pool, &records);
    let mut arguments = arguments![bench.count(count), attention, &shares, &partial];
    let mut blocks = [launched, kv_heads * group.div_ceil(16), splits];
    if dtype == Dtype::F32 {
        bench.launch("attend_decode", blocks, 32, 0, arguments);
    } else {
        let tokens = bench.words(&cached.token_words());
        arguments.extend(arguments![&out, each as u32, splits as u32, &tokens]);
        let mut turned = turning.arguments(bench);
        if turns.is_none() {
            turned[0] = Argument::from(0u64);
        }
        arguments.extend(turned);
        arguments.extend(arguments![&pool]);
        blocks[2] = splits.div_ceil(each);
        // As many warps as a block's memory takes.
        let bytes = |&warps: &usize| decode_bytes(head_dim, group.min(16), warps);
        let warps = (1..=warps).rev().find(|warps| bytes(warps) <= bench.shared_bytes()).unwrap();
        bench.launch("attend_decode", blocks, 32 * warps, bytes(&warps), arguments);
    }

    let alone = dtype == Dtype::Bf16 && blocks[2] == 1;
    let mut wanted = vec![UNTOUCHED; values.len()];
    let mut wanted_shares = vec![UNTOUCHED; 2 * folds];
    let mut wanted_partial = vec![UNTOUCHED; folds * head_dim];
    for (row, &(start, _)) in DECODED[..count].iter().enumerate() {
        for head in 0..heads {
            let at = (cached.first(row) * heads + head) * head_dim;
            let query = &values[at..at + head_dim];
            if alone {
                let fold = cached.fold(query, row, head, 0..start + 1);
                let out = fold.out(fold.sum, share(dtype)).collect::<Vec<_>>();
                wanted[at..at + head_dim].copy_from_slice(&out);
                continue;
            }
            for split in 0..=start / SPLIT {
                let positions = split * SPLIT..(start + 1).min((split + 1) * SPLIT);
                let fold = cached.fold(query, row, head, positions);
                let at = (row * heads + head) * splits + split;
                wanted_shares[2 * at] = fold.largest;
                wanted_shares[2 * at + 1] = Near::sum(fold.sum, 2.0 * fold.sum);
                let partial = fold.out(1.0, share(dtype)).collect::<Vec<_>>();
                wanted_partial[at * head_dim..][..head_dim].copy_from_slice(&partial);
            }
        }
    }
    let pages: Vec<Near> = cached.pool.iter().map(|&x| Near::exactly(x)).collect();
    bench.compare(&pool, &pages, &(what, "keys and values"));
    bench.compare(&out, &wanted, &(what, "attended"));
    bench.compare(&shares, &wanted_shares, &(what, "shares"));
    bench.compare(&partial, &wanted_partial, &(what, "sums"));
    bench.clear();
}
