//! Attention over packed sequences that share prefixes. One function, so that an attention over variable lengths can
//! stand in its place on a device that has one.

use tch::{Device, Kind, Tensor};

/// A prefix and the suffixes that follow it, as they lie in a packed tensor, one after the other.
pub(super) struct Segments {
    /// Tokens of the prefix.
    prefix: i64,
    /// Runs of suffixes of one length: how many, of how many tokens.
    runs: Vec<(i64, i64)>,
    /// `[longest, prefix + longest]`: 0 where a suffix's token looks, −∞ where it does not. Shorter ones take its corner.
    mask: Tensor,
}

impl Segments {
    /// A prefix, and the lengths of its suffixes in rising order; those of no tokens are passed over.
    pub(super) fn new(prefix: usize, suffixes: &[usize], options: (Kind, Device)) -> Self {
        let runs = suffixes.chunk_by(|a, b| a == b).filter(|run| run[0] > 0);
        let runs = runs.map(|run| (run.len() as i64, run[0] as i64)).collect();
        let (prefix, longest) = (prefix as i64, suffixes.last().map_or(0, |n| *n as i64));
        let never = Tensor::full([longest, prefix + longest], f64::NEG_INFINITY, options);
        Self { prefix, runs, mask: never.triu(prefix + 1) }
    }

    /// Tokens of each of its stretches.
    fn sizes(&self) -> impl Iterator<Item = i64> + '_ {
        std::iter::once(self.prefix).chain(self.runs.iter().map(|(n, length)| n * length))
    }
}

/// Causal attention of `q`, `k` and `v`, each `[tokens, heads, head_dim]`, within each family: a prefix's tokens look
/// at the prefix, a suffix's at the prefix and at their own suffix. Gives `[tokens, heads · head_dim]`.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, families: &[Segments]) -> Tensor {
    let (_, heads, width) = q.size3().unwrap_or((0, 0, 0));
    let sizes: Vec<i64> = families.iter().flat_map(Segments::sizes).collect();
    let stretches = [q, k, v].map(|x| x.split_with_sizes(&sizes, 0));
    // Of one stretch q, k and v, each `[sequences, heads, length, head_dim]`.
    let taken = |at: usize, sequences: i64| {
        stretches.each_ref().map(|of| of[at].view([sequences, -1, heads, width]).transpose(1, 2))
    };
    let flat = |x: Tensor| x.transpose(1, 2).reshape([-1, heads * width]);
    let mut attended: Vec<Tensor> = Vec::with_capacity(sizes.len());
    for Segments { prefix, runs, mask } in families {
        let [q, prefix_k, prefix_v] = taken(attended.len(), 1);
        attended.push(flat(product(&q, &prefix_k, &prefix_v, None)));
        for (sequences, length) in runs {
            let [q, k, v] = taken(attended.len(), *sequences);
            let behind = |prefix: &Tensor, own: &Tensor| {
                Tensor::cat(&[&prefix.expand([*sequences, -1, -1, -1], false), own], 2)
            };
            let mask = mask.narrow(0, 0, *length).narrow(1, 0, prefix + length);
            let (k, v) = (behind(&prefix_k, &k), behind(&prefix_v, &v));
            attended.push(flat(product(&q, &k, &v, Some(&mask))));
        }
    }
    Tensor::cat(&attended, 0)
}

/// softmax(q·kᵀ / √head_dim + mask)·v; causal where there is no mask.
fn product(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Tensor {
    Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, mask.is_none(), None, false)
}
