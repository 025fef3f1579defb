//! A model's weights as the CPU backend keeps them: projections packed, the rest copied, once a version.

use super::gemm::Packed;
use super::kv::KvShape;
use super::math::Rope;
use crate::KernelError;
use crate::shape::ModelShape;
use crate::weights::{Dtype, WeightSet};

/// One decoder layer.
#[derive(Debug)]
pub struct Layer {
    /// Before attention.
    pub attn_norm: Vec<f32>,
    /// Rows: query heads, key heads, value heads.
    pub qkv: Packed,
    /// Added to qkv.
    pub qkv_bias: Option<Vec<f32>>,
    /// Per query head.
    pub q_norm: Option<Vec<f32>>,
    /// Per key head.
    pub k_norm: Option<Vec<f32>>,
    /// Back to the residual stream.
    pub o: Packed,
    /// Before the SwiGLU.
    pub ffn_norm: Vec<f32>,
    /// Rows: gate, up.
    pub gate_up: Packed,
    /// Back to the residual stream.
    pub down: Packed,
}

/// A whole model.
#[derive(Debug)]
pub struct Model {
    /// Sizes.
    pub shape: ModelShape,
    /// `[vocab, hidden]`.
    pub embed: Vec<f32>,
    /// Decoder layers.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub norm: Vec<f32>,
    /// Logits.
    pub head: Packed,
    /// Rotary tables.
    pub rope: Rope,
}

fn elements(weights: &WeightSet, name: &str) -> Result<Vec<f32>, KernelError> {
    let missing = || KernelError::Weights(format!("tensor `{name}` is missing"));
    let values: Vec<f32> = match weights.dtype(name).ok_or_else(missing)? {
        Dtype::F32 => weights.f32(name).ok_or_else(missing)?.to_vec(),
        Dtype::Bf16 => weights.bf16(name).ok_or_else(missing)?.iter().map(|v| v.to_f32()).collect(),
    };
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(KernelError::Weights(format!("tensor `{name}` is {} at element {at}", values[at]))),
        None => Ok(values),
    }
}

impl Model {
    /// Reads a lease; it may be given back afterwards.
    ///
    /// # Errors
    /// [`KernelError::Weights`] for a missing tensor or an element that is not finite.
    pub fn new(weights: &WeightSet) -> Result<Self, KernelError> {
        let shape = weights.shape().clone();
        let (d, hd) = (shape.hidden, shape.head_dim);
        let packed = |name: &str, n: usize, k: usize| {
            let values = elements(weights, name)?;
            Ok::<_, KernelError>(Packed::new(n, k, |i| values[i]))
        };
        let maybe = |wanted: bool, name: String| wanted.then(|| elements(weights, &name)).transpose();
        let mut layers = Vec::new();
        for l in 0..shape.layers {
            let name = |part: &str| format!("layers.{l}.{part}");
            layers.push(Layer {
                attn_norm: elements(weights, &name("attn_norm"))?,
                qkv: packed(&name("qkv"), shape.qkv_rows(), d)?,
                qkv_bias: maybe(shape.qkv_bias, name("qkv_bias"))?,
                q_norm: maybe(shape.qk_norm, name("q_norm"))?,
                k_norm: maybe(shape.qk_norm, name("k_norm"))?,
                o: packed(&name("o"), d, shape.heads * hd)?,
                ffn_norm: elements(weights, &name("ffn_norm"))?,
                gate_up: packed(&name("gate_up"), 2 * shape.ffn, d)?,
                down: packed(&name("down"), d, shape.ffn)?,
            });
        }
        let head = packed(if shape.tied_head { "embed" } else { "head" }, shape.vocab, d)?;
        Ok(Self {
            embed: elements(weights, "embed")?,
            layers,
            norm: elements(weights, "norm")?,
            head,
            rope: Rope::new(shape.max_positions, hd, shape.rope_theta),
            shape,
        })
    }

    /// Sizes of its KV.
    pub fn kv_shape(&self) -> KvShape {
        KvShape { layers: self.shape.layers, kv_heads: self.shape.kv_heads, head_dim: self.shape.head_dim }
    }

    /// Bytes of the copies.
    pub fn bytes(&self) -> u64 {
        let packed = |l: &Layer| l.qkv.bytes() + l.o.bytes() + l.gate_up.bytes() + l.down.bytes();
        self.layers.iter().map(packed).sum::<u64>() + self.head.bytes() + 4 * self.embed.len() as u64
    }
}
