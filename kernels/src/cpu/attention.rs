//! Grouped-query attention over paged keys and values.
//!
//! Every score is one chain over the head, every sum of weights one vector chain over the positions, every output
//! element one chain over the positions: bits depend on the sequence alone, not on the tile of queries.
#![allow(unsafe_code)]

use super::buffer::Aligned;
use super::kv::Kv;
use super::level::{Kernel, Level};
use super::math::exp;
use super::simd::Simd;
use crate::backend::BlockId;

/// Largest `QUERY_ROWS` of any level.
const MOST_QUERIES: usize = 8;

/// Consecutive tokens of one sequence against its own past, all heads of one layer.
#[derive(Clone, Copy)]
pub(crate) struct Attend<'a> {
    /// The pool.
    pub(crate) kv: Kv,
    /// The layer.
    pub(crate) layer: usize,
    /// The sequence's blocks.
    pub(crate) blocks: &'a [BlockId],
    /// Position of the first query.
    pub(crate) start: usize,
    /// Queries, at least one.
    pub(crate) tokens: usize,
    /// Query heads.
    pub(crate) heads: usize,
    /// Query heads per KV head.
    pub(crate) group: usize,
    /// The first token's q heads, rotated and scaled; the next token is `queries_stride` on.
    pub(crate) queries: *const f32,
    /// Floats between two tokens' queries.
    pub(crate) queries_stride: usize,
    /// Where the first token's heads go.
    pub(crate) out: *mut f32,
    /// Floats between two tokens' outputs.
    pub(crate) out_stride: usize,
}

// SAFETY: tasks made of one `Attend` write disjoint tokens of `out` and only read the rest (see `forward`).
unsafe impl Send for Attend<'_> {}
// SAFETY: as above.
unsafe impl Sync for Attend<'_> {}

impl Attend<'_> {
    /// The part that starts `skip` tokens in and takes `tokens`.
    ///
    /// # Safety
    /// `skip + tokens` is at most `self.tokens`.
    pub(crate) unsafe fn part(self, skip: usize, tokens: usize) -> Self {
        // SAFETY: the caller's bound keeps the pointers inside the buffers.
        unsafe {
            Self {
                start: self.start + skip,
                tokens,
                queries: self.queries.add(skip * self.queries_stride),
                out: self.out.add(skip * self.out_stride),
                ..self
            }
        }
    }

    /// Computes the heads' outputs.
    ///
    /// # Safety
    /// The pointers span `tokens` rows; every block of positions `0..start + tokens` is in the pool, written, and
    /// not written by anybody meanwhile; nobody else uses the rows of `out`.
    pub(crate) unsafe fn run(self, level: Level, scores: &mut Aligned<f32>) {
        let layout = &self.kv.layout;
        let row = (self.start + self.tokens).div_ceil(layout.block_tokens) * layout.slots;
        scores.grow(MOST_QUERIES * (row + layout.head_padded));
        // SAFETY: the caller's.
        unsafe { level.run(Tiles { what: self, scores: scores.as_mut_ptr(), row }) }
    }
}

#[derive(Clone, Copy)]
struct Tiles<'a> {
    what: Attend<'a>,
    /// `MOST_QUERIES` rows of scores, then as many of outputs.
    scores: *mut f32,
    /// Floats in a row of scores.
    row: usize,
}

/// One query of a tile.
#[derive(Clone, Copy)]
struct Query {
    from: *const f32,
    to: *mut f32,
    /// Positions that it sees.
    sees: usize,
}

impl Kernel for Tiles<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let what = &self.what;
        let queries = what.tokens * what.group;
        for kv_head in 0..what.heads / what.group {
            let mut first = 0;
            while first < queries {
                let count = (queries - first).min(S::QUERY_ROWS);
                // SAFETY: `first + count` queries exist.
                unsafe {
                    match count {
                        1 => self.tile::<S, 1, 4>(kv_head, first),
                        2 => self.tile::<S, 2, 4>(kv_head, first),
                        3 => self.tile::<S, 3, 2>(kv_head, first),
                        4 => self.tile::<S, 4, 2>(kv_head, first),
                        5 if S::QUERY_ROWS >= 5 => self.tile::<S, 5, 2>(kv_head, first),
                        6 if S::QUERY_ROWS >= 6 => self.tile::<S, 6, 2>(kv_head, first),
                        7 if S::QUERY_ROWS >= 7 => self.tile::<S, 7, 2>(kv_head, first),
                        8 if S::QUERY_ROWS >= 8 => self.tile::<S, 8, 2>(kv_head, first),
                        _ => {}
                    }
                }
                first += count;
            }
        }
    }
}

impl Tiles<'_> {
    /// `R` queries from `first` on (tokens outer, heads of the group inner), `P` vectors at a time.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const P: usize>(self, kv_head: usize, first: usize) {
        let what = &self.what;
        let layout = &what.kv.layout;
        // SAFETY: the tile's queries exist, and all offsets below stay in their rows and blocks.
        unsafe {
            let queries: [Query; R] = std::array::from_fn(|r| {
                let (token, head) = ((first + r) / what.group, (first + r) % what.group);
                let at = (kv_head * what.group + head) * layout.head_dim;
                Query {
                    from: what.queries.add(token * what.queries_stride + at),
                    to: what.out.add(token * what.out_stride + at),
                    sees: what.start + token + 1,
                }
            });
            let vectors = self.vectors::<S>(queries[R - 1].sees);
            let mut at = 0;
            while at + P <= vectors {
                self.scores::<S, R, P>(kv_head, &queries, at);
                at += P;
            }
            while at < vectors {
                self.scores::<S, R, 1>(kv_head, &queries, at);
                at += 1;
            }
            let mut sums = [0.0; R];
            for r in 0..R {
                sums[r] = self.softmax::<S>(self.scores.add(r * self.row), queries[r].sees);
            }
            let out = self.scores.add(MOST_QUERIES * self.row);
            let mut lane = 0;
            while lane < layout.head_padded {
                if lane + P * S::LANES <= layout.head_padded {
                    self.weigh::<S, R, P>(kv_head, &queries, out.add(lane), lane);
                    lane += P * S::LANES;
                } else if lane + 2 * S::LANES <= layout.head_padded {
                    self.weigh::<S, R, 2>(kv_head, &queries, out.add(lane), lane);
                    lane += 2 * S::LANES;
                } else {
                    self.weigh::<S, R, 1>(kv_head, &queries, out.add(lane), lane);
                    lane += S::LANES;
                }
            }
            for r in 0..R {
                let from = out.add(r * layout.head_padded);
                let scale = 1.0 / sums[r];
                for i in 0..layout.head_dim {
                    *queries[r].to.add(i) = *from.add(i) * scale;
                }
            }
        }
    }

    /// Vectors of scores that hold `sees` positions.
    #[inline(always)]
    fn vectors<S: Simd>(&self, sees: usize) -> usize {
        let layout = &self.what.kv.layout;
        let last = sees - 1;
        let slot = last / layout.block_tokens * layout.slots + last % layout.block_tokens;
        slot / S::LANES + 1
    }

    #[inline(always)]
    unsafe fn scores<S: Simd, const R: usize, const P: usize>(
        self,
        kv_head: usize,
        queries: &[Query; R],
        at: usize,
    ) {
        let what = &self.what;
        let layout = &what.kv.layout;
        // SAFETY: the vectors lie in blocks of the sequence's table.
        unsafe {
            let keys: [*const f32; P] = std::array::from_fn(|p| {
                let slot = (at + p) * S::LANES;
                let block = what.blocks[slot / layout.slots];
                let keys = layout.keys(block, what.layer, kv_head) + slot % layout.slots;
                what.kv.memory.get().add(keys).cast_const()
            });
            let mut sums = [[S::splat(0.0); P]; R];
            for i in 0..layout.head_dim {
                let offset = i.wrapping_mul(layout.slots);
                let mut k = [S::splat(0.0); P];
                for p in 0..P {
                    k[p] = S::load(keys[p].add(offset));
                }
                for r in 0..R {
                    let q = S::splat(*queries[r].from.add(i));
                    for p in 0..P {
                        sums[r][p] = S::fma(q, k[p], sums[r][p]);
                    }
                }
            }
            for (r, row) in sums.iter().enumerate() {
                for (p, &sum) in row.iter().enumerate() {
                    S::store(self.scores.add(r * self.row + (at + p) * S::LANES), sum);
                }
            }
        }
    }

    /// Scores to unnormalised weights, in place; what the query does not see gets 0. Returns their sum.
    #[inline(always)]
    unsafe fn softmax<S: Simd>(self, scores: *mut f32, sees: usize) -> f32 {
        let layout = &self.what.kv.layout;
        let vectors = self.vectors::<S>(sees);
        // SAFETY: `vectors` whole vectors lie in the row of scores.
        unsafe {
            let (whole, rest) = (sees / layout.block_tokens, sees % layout.block_tokens);
            if layout.slots != layout.block_tokens {
                for block in 0..whole {
                    for slot in layout.block_tokens..layout.slots {
                        *scores.add(block * layout.slots + slot) = f32::NEG_INFINITY;
                    }
                }
            }
            for slot in whole * layout.slots + rest..vectors * S::LANES {
                *scores.add(slot) = f32::NEG_INFINITY;
            }
            let mut largest = S::splat(f32::NEG_INFINITY);
            for v in 0..vectors {
                largest = S::max(largest, S::load(scores.add(v * S::LANES)));
            }
            let largest = S::splat(S::largest(largest));
            let mut sum = S::splat(0.0);
            for v in 0..vectors {
                let at = scores.add(v * S::LANES);
                let e = exp::<S>(S::sub(S::load(at), largest));
                S::store(at, e);
                sum = S::add(sum, e);
            }
            S::sum(sum)
        }
    }

    /// Sums weights times values for `P` vectors of the head: the positions that all queries see together, then
    /// each query's own last ones.
    #[inline(always)]
    unsafe fn weigh<S: Simd, const R: usize, const P: usize>(
        self,
        kv_head: usize,
        queries: &[Query; R],
        out: *mut f32,
        lane: usize,
    ) {
        let stride = self.what.kv.layout.head_padded;
        // SAFETY: `out` has R rows, and positions below `sees` are in the sequence's blocks.
        unsafe {
            let together = queries[0].sees;
            let sums = self.over::<S, R, P>(kv_head, self.scores, [[S::splat(0.0); P]; R], lane, 0, together);
            for r in 0..R {
                let scores = self.scores.add(r * self.row);
                let own = self.over::<S, 1, P>(kv_head, scores, [sums[r]], lane, together, queries[r].sees);
                for (p, &sum) in own[0].iter().enumerate() {
                    S::store(out.add(r * stride + p * S::LANES), sum);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn over<S: Simd, const R: usize, const P: usize>(
        self,
        kv_head: usize,
        scores: *const f32,
        mut sums: [[S::V; P]; R],
        lane: usize,
        from: usize,
        to: usize,
    ) -> [[S::V; P]; R] {
        let what = &self.what;
        let layout = &what.kv.layout;
        let mut position = from;
        while position < to {
            let (index, slot) = (position / layout.block_tokens, position % layout.block_tokens);
            let count = (layout.block_tokens - slot).min(to - position);
            // SAFETY: `slot + count` positions lie in the block.
            unsafe {
                let values =
                    layout.values(what.blocks[index], what.layer, kv_head) + slot * layout.head_padded + lane;
                let values = what.kv.memory.get().add(values).cast_const();
                let weights = scores.add(index * layout.slots + slot);
                for i in 0..count {
                    let at = values.add(i.wrapping_mul(layout.head_padded));
                    let mut v = [S::splat(0.0); P];
                    for (p, v) in v.iter_mut().enumerate() {
                        *v = S::load(at.add(p * S::LANES));
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let w = S::splat(*weights.add(r.wrapping_mul(self.row)).add(i));
                        for p in 0..P {
                            sums[p] = S::fma(w, v[p], sums[p]);
                        }
                    }
                }
            }
            position += count;
        }
        sums
    }
}
