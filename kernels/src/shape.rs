//! The shape of a decoder-only transformer of the Llama / Qwen family.

use serde::{Deserialize, Serialize};

use crate::KernelError;

/// Sizes of the model. Every projection is row-major `[out, in]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Rows of the embedding, and logits per position.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even, since RoPE rotates pairs.
    pub head_dim: usize,
    /// Width of the SwiGLU.
    pub ffn: usize,
    /// Longest position plus one, tokens.
    pub max_positions: usize,
    /// RoPE base.
    pub rope_theta: f64,
    /// Added to the mean square in RMSNorm.
    pub rms_eps: f64,
    /// Bias on q, k and v (Qwen2).
    pub qkv_bias: bool,
    /// RMSNorm per head on q and k before RoPE (Qwen3).
    pub qk_norm: bool,
    /// The head is the embedding transposed.
    pub tied_head: bool,
}

impl ModelShape {
    /// Rows of the fused q, k, v projection.
    pub fn qkv_rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Rows of the parts that a fused projection is made of, in order; none for tensors that are not
    /// projections of a layer.
    pub fn part_rows(&self, name: &str) -> Vec<i64> {
        let kv = self.kv_heads * self.head_dim;
        let rows = match name.rsplit('.').next().unwrap_or(name) {
            "qkv" | "qkv_bias" => vec![self.heads * self.head_dim, kv, kv],
            "gate_up" => vec![self.ffn, self.ffn],
            "down" | "o" => vec![self.hidden],
            _ => return Vec::new(),
        };
        rows.into_iter().map(|r| r as i64).collect()
    }

    /// Checks the sizes against each other.
    ///
    /// # Errors
    /// [`KernelError::Shape`] naming the size and its bound.
    pub fn validate(&self) -> Result<(), KernelError> {
        let positive = [
            ("vocab", self.vocab),
            ("hidden", self.hidden),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("ffn", self.ffn),
            ("max_positions", self.max_positions),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(KernelError::Shape(format!("{name} is 0, must be at least 1")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(KernelError::Shape(format!(
                "heads ({}) must be a multiple of kv_heads ({})",
                self.heads, self.kv_heads
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(KernelError::Shape(format!("head_dim ({}) must be even", self.head_dim)));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return Err(KernelError::Shape(format!("rope_theta ({}) must be above 1", self.rope_theta)));
        }
        if !(self.rms_eps.is_finite() && self.rms_eps > 0.0) {
            return Err(KernelError::Shape(format!("rms_eps ({}) must be above 0", self.rms_eps)));
        }
        Ok(())
    }

    /// Every tensor of the model in the engine's own names and layout, in a fixed order:
    /// `(name, shape)`, each row-major. Hugging Face names exist at import and export only.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, hd) = (self.hidden, self.head_dim);
        let mut all = vec![("embed".to_owned(), vec![self.vocab, d])];
        for l in 0..self.layers {
            let mut add = |name: &str, shape: Vec<usize>| all.push((format!("layers.{l}.{name}"), shape));
            add("attn_norm", vec![d]);
            add("qkv", vec![self.qkv_rows(), d]);
            if self.qkv_bias {
                add("qkv_bias", vec![self.qkv_rows()]);
            }
            if self.qk_norm {
                add("q_norm", vec![hd]);
                add("k_norm", vec![hd]);
            }
            add("o", vec![d, self.heads * hd]);
            add("ffn_norm", vec![d]);
            add("gate_up", vec![2 * self.ffn, d]);
            add("down", vec![d, self.ffn]);
        }
        all.push(("norm".to_owned(), vec![d]));
        if !self.tied_head {
            all.push(("head".to_owned(), vec![self.vocab, d]));
        }
        all
    }
}
