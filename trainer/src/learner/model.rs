//! The transformer with autograd, in the engine's own layout: `[out, in]` projections, q, k and v fused, gate and up
//! fused. Sequences are packed one after the other; nothing but attention and positions knows where they end.

use std::collections::HashMap;

use parl_kernels::shape::ModelShape;
use tch::{Device, Kind, Tensor};

use super::attention::{Segments, attention};

/// Named parameters of a model.
pub type Params = HashMap<String, Tensor>;

/// The parameter that hidden states are multiplied with to give logits, `[vocab, hidden]`.
pub(super) fn head_name(shape: &ModelShape) -> &'static str {
    if shape.tied_head { "embed" } else { "head" }
}

/// What sums and losses are taken in: f32 where weights are bf16, else their own type.
pub(super) fn wide(tensor: &Tensor) -> Tensor {
    if tensor.kind() == Kind::BFloat16 { tensor.to_kind(Kind::Float) } else { tensor.shallow_clone() }
}

/// What goes through the layers.
pub(super) struct Packed {
    /// `[tokens]`: ids.
    pub tokens: Tensor,
    /// `[tokens]`: where each stands in its sequence, from 0.
    pub positions: Tensor,
    /// How they belong together.
    pub families: Vec<Segments>,
}

impl Packed {
    /// One sequence, alone.
    pub(super) fn one(tokens: &[i64], (kind, device): (Kind, Device)) -> Self {
        Self {
            tokens: Tensor::from_slice(tokens).to_device(device),
            positions: Tensor::arange(tokens.len() as i64, (Kind::Int64, device)),
            families: vec![Segments::new(tokens.len(), &[], (kind, device))],
        }
    }
}

/// Cosines and sines of the rotary angles at `positions`, `[tokens, head_dim / 2]` each.
pub(super) fn angles(shape: &ModelShape, positions: &Tensor, kind: Kind) -> [Tensor; 2] {
    let half = shape.head_dim as i64 / 2;
    let options = (Kind::Double, positions.device());
    let exponents = Tensor::arange(half, options) * (-1.0 / half as f64);
    let frequencies = (exponents * shape.rope_theta.ln()).exp();
    let length = positions.max().int64_value(&[]) + 1;
    let angles = Tensor::arange(length, options).unsqueeze(1) * frequencies.unsqueeze(0);
    [angles.cos(), angles.sin()].map(|of| of.to_kind(kind).index_select(0, positions))
}

/// From [`angles`], `[tokens, 1, head_dim]` each: what an element is multiplied by, and what its partner is.
fn rope([cos, sin]: &[Tensor; 2]) -> (Tensor, Tensor) {
    let table = |halves: [&Tensor; 2]| Tensor::cat(&halves, 1).unsqueeze(1);
    (table([cos, cos]), table([&-sin, sin]))
}

/// Key or value heads `x[tokens, kv_heads, head_dim]` for each query head: one serves `heads / kv_heads`.
pub(super) fn spread(x: &Tensor, heads: i64) -> Tensor {
    let (_, kv_heads, hd) = x.size3().unwrap_or((0, 1, 0));
    let each = [-1, kv_heads, heads / kv_heads, hd];
    if heads == kv_heads { x.shallow_clone() } else { x.unsqueeze(2).expand(each, false).flatten(1, 2) }
}

/// Rotates `x[tokens, heads, head_dim]`; element i is paired with i + head_dim / 2 (Hugging Face's rotate_half).
fn rotate(x: &Tensor, (own, partner): &(Tensor, Tensor)) -> Tensor {
    let half = x.size()[2] / 2;
    (x * own).addcmul(&x.roll([half], [2]), partner)
}

/// Hidden states after the last norm, `[tokens, hidden]`.
pub(super) fn hidden(shape: &ModelShape, params: &Params, packed: &Packed) -> Tensor {
    hidden_watched(shape, params, packed, &mut |_, _, _| {})
}

/// As [`hidden`]; `watch` is shown each layer's queries `[tokens, heads, head_dim]` and keys
/// `[tokens, kv_heads, head_dim]`, as attention takes them.
pub(super) fn hidden_watched(
    shape: &ModelShape,
    params: &Params,
    packed: &Packed,
    watch: &mut dyn FnMut(usize, &Tensor, &Tensor),
) -> Tensor {
    let (heads, kv_heads, hd) = (shape.heads as i64, shape.kv_heads as i64, shape.head_dim as i64);
    let d = shape.hidden as i64;
    let get = |name: &str| &params[name];
    let norm = |x: &Tensor, weight: &Tensor, width: i64| x.rms_norm([width], Some(weight), shape.rms_eps);
    let embed = get("embed");
    let tables = rope(&angles(shape, &packed.positions, embed.kind()));
    let mut x = Tensor::embedding(embed, &packed.tokens, -1, false, false);
    for l in 0..shape.layers {
        let layer = |part: &str| get(&format!("layers.{l}.{part}"));
        let input = norm(&x, layer("attn_norm"), d);
        let bias = shape.qkv_bias.then(|| layer("qkv_bias"));
        let qkv = input.linear(layer("qkv"), bias).view([-1, heads + 2 * kv_heads, hd]);
        let (q, k) = if shape.qk_norm {
            let parts = qkv.split_with_sizes([heads, kv_heads, kv_heads], 1);
            let (q, k) = (norm(&parts[0], layer("q_norm"), hd), norm(&parts[1], layer("k_norm"), hd));
            (rotate(&q, &tables), rotate(&k, &tables))
        } else {
            let both = rotate(&qkv.narrow(1, 0, heads + kv_heads), &tables);
            let parts = both.split_with_sizes([heads, kv_heads], 1);
            (parts[0].shallow_clone(), parts[1].shallow_clone())
        };
        let v = qkv.narrow(1, heads + kv_heads, kv_heads);
        watch(l, &q, &k);
        let attended = attention(&q, &spread(&k, heads), &spread(&v, heads), &packed.families);
        x = x.addmm(&attended, &layer("o").transpose(0, 1));
        let both = norm(&x, layer("ffn_norm"), d).linear::<&Tensor>(layer("gate_up"), None).chunk(2, -1);
        x = x.addmm(&(both[0].silu() * &both[1]), &layer("down").transpose(0, 1));
    }
    norm(&x, get("norm"), d)
}
