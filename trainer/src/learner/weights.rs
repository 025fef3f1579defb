//! Weights on disk: Hugging Face's names and config, as safetensors; in memory the engine's fused layout.

use std::collections::{BTreeMap, HashMap};

use half::bf16;
use parl_kernels::rng::{RngKey, Stream};
use parl_kernels::shape::ModelShape;
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tch::Tensor;

use super::model::Params;
use super::step::floats;
use super::{LearnerError, guarded};

/// Deviation of fresh embeddings: large beside what the layers add to the residual stream in their first updates, so
/// that a token stays known by its identity, which all looking up in the context starts from.
const EMBEDDING: f64 = 0.5;
/// Weight of the last norm: with a tied head it undoes the embeddings' scale, so that all tokens begin about as likely.
const LAST_NORM: f32 = 0.05;

/// Fresh weights: normal, projections with deviation 1/√inputs (those back to the residual stream divided by
/// √(2·layers) too, as GPT-2 has it), norms 1 but the last, biases 0.
pub fn initial(shape: &ModelShape, seed: u64) -> Params {
    let mut params = Params::new();
    for (i, (name, dims)) in shape.tensors().into_iter().enumerate() {
        let n: usize = dims.iter().product();
        let residual = matches!(name.rsplit('.').next(), Some("o" | "down"));
        let scale = match dims.as_slice() {
            [_, inputs] if name.starts_with("layers") => (*inputs as f64).sqrt().recip(),
            _ => EMBEDDING,
        };
        let deviation = if residual { scale / (2.0 * shape.layers as f64).sqrt() } else { scale };
        let key = RngKey { seed, stream: Stream::Init, episode: i as u64, agent: 0 };
        let values: Vec<f32> = if name == "norm" {
            vec![LAST_NORM; n]
        } else if name.contains("norm") {
            vec![1.0; n]
        } else if name.ends_with("bias") {
            vec![0.0; n]
        } else {
            (0..n as u32).into_par_iter().map(|j| (normal(key, j) * deviation) as f32).collect()
        };
        params.insert(name, shaped(&values, &dims));
    }
    params
}

/// A model over a larger vocabulary: row `i` of what has a row for each token becomes row `places[i]`, the rows between
/// are fresh ones, and all else stays.
pub fn widened(
    shape: &ModelShape,
    params: Params,
    places: &[u32],
    vocab: usize,
    seed: u64,
) -> (ModelShape, Params) {
    let wide = ModelShape { vocab, ..shape.clone() };
    let places = Tensor::from_slice(&places.iter().map(|id| i64::from(*id)).collect::<Vec<_>>());
    let mut fresh = initial(&wide, seed);
    for (name, values) in params {
        let values = match fresh.get(&name) {
            Some(rows) if rows.size() != values.size() => rows.index_copy(0, &places, &values),
            _ => values,
        };
        fresh.insert(name, values);
    }
    (wide, fresh)
}

/// A normal number by Box and Muller's formula.
fn normal(key: RngKey, counter: u32) -> f64 {
    let [a, b, c, d] = key.block(counter);
    let unit =
        |high: u32, low: u32| ((u64::from(high) << 21 ^ u64::from(low >> 11)) as f64 + 0.5) / 2f64.powi(53);
    (-2.0 * unit(a, b).ln()).sqrt() * (std::f64::consts::TAU * unit(c, d)).cos()
}

fn shaped(values: &[f32], dims: &[usize]) -> Tensor {
    let dims: Vec<i64> = dims.iter().map(|d| *d as i64).collect();
    Tensor::from_slice(values).view(dims.as_slice())
}

/// A fused tensor's parts on disk, with the rows of each: `(engine's name, [(Hugging Face's name, rows)])`.
fn parts(shape: &ModelShape) -> Vec<(String, Vec<(String, usize)>)> {
    let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let mut all = Vec::new();
    for (name, dims) in shape.tensors() {
        let rows = dims[0];
        let files = match name.as_str() {
            "embed" => vec![("model.embed_tokens.weight".to_owned(), rows)],
            "norm" => vec![("model.norm.weight".to_owned(), rows)],
            "head" => vec![("lm_head.weight".to_owned(), rows)],
            _ => {
                let mut fields = name.splitn(3, '.').skip(1);
                let (layer, part) = (fields.next().unwrap_or("0"), fields.next().unwrap_or(""));
                let file = |rest: &str| format!("model.layers.{layer}.{rest}");
                let attention = |what: &str| {
                    ["q", "k", "v"]
                        .iter()
                        .zip([q, kv, kv])
                        .map(|(p, n)| (file(&format!("self_attn.{p}_proj.{what}")), n))
                        .collect()
                };
                match part {
                    "attn_norm" => vec![(file("input_layernorm.weight"), rows)],
                    "ffn_norm" => vec![(file("post_attention_layernorm.weight"), rows)],
                    "qkv" => attention("weight"),
                    "qkv_bias" => attention("bias"),
                    "q_norm" => vec![(file("self_attn.q_norm.weight"), rows)],
                    "k_norm" => vec![(file("self_attn.k_norm.weight"), rows)],
                    "o" => vec![(file("self_attn.o_proj.weight"), rows)],
                    "gate_up" => {
                        vec![(file("mlp.gate_proj.weight"), rows / 2), (file("mlp.up_proj.weight"), rows / 2)]
                    }
                    _ => vec![(file("mlp.down_proj.weight"), rows)],
                }
            }
        };
        all.push((name, files));
    }
    all
}

/// The bytes of a bf16 `model.safetensors` under Hugging Face's names.
///
/// # Errors
/// [`LearnerError::NotFinite`] for weights that are no numbers.
pub fn export(shape: &ModelShape, params: &Params) -> Result<Vec<u8>, LearnerError> {
    let mut files: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for ((name, parts), (_, dims)) in parts(shape).into_iter().zip(shape.tensors()) {
        let values = guarded(|| floats(&params[&name]))?;
        if let Some(value) = values.iter().copied().find(|v| !v.is_finite()) {
            return Err(LearnerError::NotFinite { what: "a weight", value: value.into() });
        }
        let width: usize = dims[1..].iter().product();
        let mut from = 0;
        for (file, rows) in parts {
            let part = &values[from * width..(from + rows) * width];
            let bytes = part.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
            let dims = std::iter::once(rows).chain(dims[1..].iter().copied()).collect();
            files.insert(file, (dims, bytes));
            from += rows;
        }
    }
    let fail = |e: safetensors::SafeTensorError| LearnerError::Weights(e.to_string());
    let mut views = Vec::new();
    for (file, (dims, bytes)) in &files {
        views.push((file.clone(), TensorView::new(Dtype::BF16, dims.clone(), bytes).map_err(fail)?));
    }
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(about)).map_err(fail)
}

/// Reads a `model.safetensors` (bf16 or f32) under Hugging Face's names.
///
/// # Errors
/// [`LearnerError::Weights`] naming the tensor and what is wrong with it.
pub fn import(shape: &ModelShape, bytes: &[u8]) -> Result<Params, LearnerError> {
    let refuse = |text: String| LearnerError::Weights(text);
    let file = SafeTensors::deserialize(bytes).map_err(|e| refuse(format!("not a safetensors file: {e}")))?;
    let mut known = 0;
    let mut params = Params::new();
    for ((name, parts), (_, dims)) in parts(shape).into_iter().zip(shape.tensors()) {
        let mut values = Vec::new();
        for (part, rows) in parts {
            let view = file.tensor(&part).map_err(|_| refuse(format!("tensor `{part}` is missing")))?;
            let wanted: Vec<usize> = std::iter::once(rows).chain(dims[1..].iter().copied()).collect();
            if view.shape() != wanted {
                return Err(refuse(format!(
                    "tensor `{part}` is of shape {:?}, the model needs {wanted:?}",
                    view.shape()
                )));
            }
            let read: Vec<f32> = match view.dtype() {
                Dtype::F32 => view
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect(),
                Dtype::BF16 => {
                    view.data().chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
                }
                other => {
                    return Err(refuse(format!("tensor `{part}` is of type {other:?}, not BF16 or F32")));
                }
            };
            if let Some(at) = read.iter().position(|v| !v.is_finite()) {
                return Err(refuse(format!("tensor `{part}` is {} at element {at}", read[at])));
            }
            values.extend(read);
            known += 1;
        }
        params.insert(name, shaped(&values, &dims));
    }
    if let Some(extra) = file.names().into_iter().find(|n| !n.is_empty()).filter(|_| file.len() != known) {
        return Err(refuse(format!(
            "the file holds {} tensors, the model has {known} (one of them is `{extra}`)",
            file.len()
        )));
    }
    Ok(params)
}
