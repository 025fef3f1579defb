//! The transformer with autograd, in the engine's own layout: `[out, in]` projections, q, k and v fused, gate and up
//! fused.

use std::collections::HashMap;

use parl_kernels::shape::ModelShape;
use tch::{Kind, Tensor};

/// Named parameters of a model.
pub type Params = HashMap<String, Tensor>;

/// Rotary tables for the first `length` positions: `[length, head_dim / 2]` each.
fn rope(shape: &ModelShape, length: i64, kind: Kind) -> (Tensor, Tensor) {
    let half = shape.head_dim as i64 / 2;
    let options = (Kind::Double, tch::Device::Cpu);
    let exponents = Tensor::arange(half, options) * (-1.0 / half as f64);
    let frequencies = (exponents * shape.rope_theta.ln()).exp();
    let angles = Tensor::arange(length, options).unsqueeze(1) * frequencies.unsqueeze(0);
    (angles.cos().to_kind(kind), angles.sin().to_kind(kind))
}

/// Rotates `x[B, H, T, head_dim]`; element i is paired with i + head_dim / 2 (Hugging Face's rotate_half).
fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Tensor {
    let halves = x.chunk(2, -1);
    let (low, high) = (&halves[0], &halves[1]);
    Tensor::cat(&[low * cos - high * sin, high * cos + low * sin], -1)
}

/// Hidden states after the last norm: `tokens[B, T]` (right-padded) to `[B, T, hidden]`. Padding lies behind
/// everything that is asked about, and attention is causal, so it needs no mask.
pub(super) fn hidden(shape: &ModelShape, params: &Params, tokens: &Tensor) -> Tensor {
    hidden_watched(shape, params, tokens, &mut |_, _, _| {})
}

/// As [`hidden`]; `watch` is shown each layer's queries and keys, `[B, heads, T, head_dim]`, as attention takes them.
pub(super) fn hidden_watched(
    shape: &ModelShape,
    params: &Params,
    tokens: &Tensor,
    watch: &mut dyn FnMut(usize, &Tensor, &Tensor),
) -> Tensor {
    let (b, t) = tokens.size2().unwrap_or((0, 0));
    let (heads, kv_heads, hd) = (shape.heads as i64, shape.kv_heads as i64, shape.head_dim as i64);
    let d = shape.hidden as i64;
    let get = |name: &str| &params[name];
    let norm = |x: &Tensor, weight: &Tensor, width: i64| x.rms_norm([width], Some(weight), shape.rms_eps);
    let embed = get("embed");
    let tables = rope(shape, t, embed.kind());
    let mut x = Tensor::embedding(embed, tokens, -1, false, false);
    for l in 0..shape.layers {
        let layer = |part: &str| get(&format!("layers.{l}.{part}"));
        let input = norm(&x, layer("attn_norm"), d);
        let bias = shape.qkv_bias.then(|| layer("qkv_bias"));
        let qkv = input.linear(layer("qkv"), bias).view([b, t, heads + 2 * kv_heads, hd]).transpose(1, 2);
        let parts = qkv.split_with_sizes([heads, kv_heads, kv_heads], 1);
        let (mut q, mut k, v) = (parts[0].shallow_clone(), parts[1].shallow_clone(), &parts[2]);
        if shape.qk_norm {
            q = norm(&q, layer("q_norm"), hd);
            k = norm(&k, layer("k_norm"), hd);
        }
        let (q, k) = (rotate(&q, &tables), rotate(&k, &tables));
        let spread = |x: &Tensor| x.repeat_interleave_self_int(heads / kv_heads, 1, None);
        let (k, v) = if heads == kv_heads { (k, v.shallow_clone()) } else { (spread(&k), spread(v)) };
        watch(l, &q, &k);
        let attended =
            Tensor::scaled_dot_product_attention::<&Tensor>(&q, &k, &v, None, 0.0, true, None, false);
        let attended = attended.transpose(1, 2).reshape([b, t, heads * hd]);
        // A new tensor each time: backward needs the old one.
        x = &x + attended.linear::<&Tensor>(layer("o"), None);
        let both = norm(&x, layer("ffn_norm"), d).linear::<&Tensor>(layer("gate_up"), None).chunk(2, -1);
        x = &x + (both[0].silu() * &both[1]).linear::<&Tensor>(layer("down"), None);
    }
    norm(&x, get("norm"), d)
}

/// Log-probs and entropies at chosen places: `rows` index the flattened `[B·T]` hidden states, `targets` are the tokens
/// drawn there, of softmax(logits / temperature).
pub(super) fn log_probs(
    shape: &ModelShape,
    params: &Params,
    hidden: &Tensor,
    (rows, targets, temperatures): (&Tensor, &Tensor, &Tensor),
) -> (Tensor, Tensor) {
    let head = &params[if shape.tied_head { "embed" } else { "head" }];
    let chosen = hidden.reshape([-1, shape.hidden as i64]).index_select(0, rows);
    let logits = chosen.linear::<&Tensor>(head, None) / temperatures.unsqueeze(1);
    let all = logits.log_softmax(-1, None);
    let entropy = tch::no_grad(|| -(all.exp() * &all).sum_dim_intlist(-1, false, None));
    (all.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1), entropy)
}
