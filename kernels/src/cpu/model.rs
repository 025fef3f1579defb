//! A weight set made ready for the forward pass.

use half::bf16;

use super::buffer::Aligned;
use super::gemm::{Packed, padded};
use super::level::Level;
use crate::KernelError;
use crate::shape::ModelShape;
use crate::weights::WeightSet;

/// Weights of more bytes are read from memory in every pass.
const CACHED_BYTES: usize = 32 << 20;

/// One decoder layer.
pub(crate) struct Layer {
    pub(crate) attn_norm: Vec<f32>,
    pub(crate) qkv: Packed,
    /// Padded to the length of an output row.
    pub(crate) qkv_bias: Option<Aligned<f32>>,
    /// Norms of q and k.
    pub(crate) qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    pub(crate) o: Packed,
    pub(crate) ffn_norm: Vec<f32>,
    pub(crate) gate_up: Packed,
    pub(crate) down: Packed,
}

/// The model: packed matrices, small tensors as f32, and the lease, for the embedding is read in place.
pub(crate) struct Model {
    weights: WeightSet,
    /// Whether each pass reads the matrices from memory: no cache holds them.
    pub(crate) streamed: bool,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Vec<f32>,
    pub(crate) head: Packed,
    /// Per position: the cosines of half a head, then the sines. Grown as positions are reached.
    angles: Vec<f32>,
}

impl Model {
    /// Packs `weights`.
    ///
    /// # Errors
    /// [`KernelError::Weights`] naming a tensor with an element that is not finite.
    pub(crate) fn new(level: Level, weights: WeightSet) -> Result<Self, KernelError> {
        let shape = weights.shape();
        let (d, inner) = (shape.hidden, shape.heads * shape.head_dim);
        let streamed = matrix_bytes(&weights) > CACHED_BYTES;
        let matrix =
            |name: &str, outputs, inputs| Packed::new(level, &weights, name, [outputs, inputs], streamed);
        let layers = (0..shape.layers)
            .map(|l| {
                let name = |tensor: &str| format!("layers.{l}.{tensor}");
                let small = |tensor: &str| vector(&weights, &name(tensor));
                let qkv = matrix(&name("qkv"), shape.qkv_rows(), d)?;
                let qkv_bias = if shape.qkv_bias {
                    let bias = small("qkv_bias")?;
                    let mut row = Aligned::zeroed(qkv.output_stride());
                    row[..bias.len()].copy_from_slice(&bias);
                    Some(row)
                } else {
                    None
                };
                Ok(Layer {
                    attn_norm: small("attn_norm")?,
                    qkv,
                    qkv_bias,
                    qk_norm: if shape.qk_norm { Some((small("q_norm")?, small("k_norm")?)) } else { None },
                    o: matrix(&name("o"), d, inner)?,
                    ffn_norm: small("ffn_norm")?,
                    gate_up: matrix(&name("gate_up"), 2 * shape.ffn, d)?,
                    down: matrix(&name("down"), d, shape.ffn)?,
                })
            })
            .collect::<Result<_, KernelError>>()?;
        let norm = vector(&weights, "norm")?;
        // A tied head is the embedding, so packing it checks the embedding too.
        if !shape.tied_head {
            check_finite(&weights, "embed")?;
        }
        let head = matrix(if shape.tied_head { "embed" } else { "head" }, shape.vocab, d)?;
        Ok(Self { layers, norm, head, angles: Vec::new(), weights, streamed })
    }

    /// Sizes.
    pub(crate) fn shape(&self) -> &ModelShape {
        self.weights.shape()
    }

    /// Bytes of the packed matrices.
    pub(crate) fn packed_bytes(&self) -> usize {
        let layers = self.layers.iter();
        layers.map(|l| l.qkv.bytes() + l.o.bytes() + l.gate_up.bytes() + l.down.bytes()).sum::<usize>()
            + self.head.bytes()
    }

    /// Multiply-adds that one token takes, attention aside.
    pub(crate) fn fmas_per_token(&self) -> usize {
        let shape = self.shape();
        let inner = shape.heads * shape.head_dim;
        shape.layers * shape.hidden * (shape.qkv_rows() + inner + 3 * shape.ffn) + shape.hidden * shape.vocab
    }

    /// Writes the embedding of `token` to `row`, zeros after it.
    pub(crate) fn embed(&self, token: u32, row: &mut [f32]) {
        let d = self.shape().hidden;
        let from = token as usize * d;
        let (row, rest) = row.split_at_mut(d);
        if let Some(all) = self.weights.f32("embed") {
            row.copy_from_slice(&all[from..from + d]);
        } else if let Some(all) = self.weights.bf16("embed") {
            for (to, x) in row.iter_mut().zip(&all[from..from + d]) {
                *to = x.to_f32();
            }
        }
        rest.fill(0.0);
    }

    /// Makes sure that [`Model::angles`] knows positions below `positions`.
    pub(crate) fn reach(&mut self, positions: usize) {
        let shape = self.weights.shape();
        let (hd, theta) = (shape.head_dim, shape.rope_theta);
        let known = self.angles.len() / hd;
        if positions <= known {
            return;
        }
        let wanted = positions.next_power_of_two().min(shape.max_positions).max(positions);
        self.angles.reserve(hd * (wanted - known));
        for position in known..wanted {
            let angle = |i: usize| position as f64 * theta.powf(-2.0 * i as f64 / hd as f64);
            self.angles.extend((0..hd / 2).map(|i| angle(i).cos() as f32));
            self.angles.extend((0..hd / 2).map(|i| angle(i).sin() as f32));
        }
    }

    /// Cosines and sines of a position that was reached.
    pub(crate) fn angles(&self, position: usize) -> (&[f32], &[f32]) {
        let hd = self.shape().head_dim;
        self.angles[position * hd..(position + 1) * hd].split_at(hd / 2)
    }
}

/// Bytes of the matrices that a pass reads.
fn matrix_bytes(weights: &WeightSet) -> usize {
    let size = if weights.f32("embed").is_some() { size_of::<f32>() } else { size_of::<bf16>() };
    let tensors = weights.shape().tensors();
    let read = tensors.iter().filter(|(name, _)| name != "embed" || weights.shape().tied_head);
    size * read.map(|(_, dims)| dims.iter().product::<usize>()).sum::<usize>()
}

fn vector(weights: &WeightSet, name: &str) -> Result<Vec<f32>, KernelError> {
    check_finite(weights, name)?;
    let from_bf16 = || weights.bf16(name).map(|all| all.iter().map(|x| x.to_f32()).collect());
    weights
        .f32(name)
        .map(<[f32]>::to_vec)
        .or_else(from_bf16)
        .ok_or_else(|| KernelError::Weights(format!("tensor `{name}` is not in the host's memory")))
}

fn check_finite(weights: &WeightSet, name: &str) -> Result<(), KernelError> {
    let good = weights.f32(name).is_none_or(|all| all.iter().all(|x| x.is_finite()))
        && weights.bf16(name).is_none_or(|all| all.iter().all(|x| x.is_finite()));
    if good { Ok(()) } else { Err(super::gemm::not_finite(name)) }
}

/// Length of a row of the residual stream.
pub(crate) fn hidden_stride(shape: &ModelShape) -> usize {
    padded(shape.hidden)
}
