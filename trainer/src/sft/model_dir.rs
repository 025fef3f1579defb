//! A model's folder as Hugging Face lays it out: config.json, model.safetensors, tokenizer.json.

use std::path::Path;

use parl_kernels::shape::ModelShape;
use parl_rollout::durable;
use serde_json::Value;

use crate::error::TrainerError;
use crate::learner::{Params, config_json, export, import, shape_of};
use crate::run::folder::{read_json, write_json};

/// Tells what made a model.
pub const ORIGIN: &str = "origin.json";

/// A model read from its folder.
pub struct ModelDir {
    /// Sizes.
    pub shape: ModelShape,
    /// Parameters by the engine's names.
    pub params: Params,
    /// Bytes of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// BLAKE3 of the weights.
    pub hash: String,
}

/// Writes a model's folder; `origin` tells what made it.
///
/// # Errors
/// When the disk refuses or a weight is no number.
pub fn write(
    folder: &Path,
    shape: &ModelShape,
    params: &Params,
    tokenizer: &[u8],
    origin: &Value,
) -> Result<(), TrainerError> {
    let bytes = export(shape, params)?;
    durable::create_dir(folder)?;
    write_json(&folder.join("config.json"), &config_json(shape))?;
    write_json(&folder.join(ORIGIN), origin)?;
    durable::write_atomic(&folder.join("tokenizer.json"), tokenizer)?;
    Ok(durable::write_atomic(&folder.join("model.safetensors"), &bytes)?)
}

/// Reads a model's folder.
///
/// # Errors
/// Naming the file and what is wrong with it.
pub fn read(folder: &Path) -> Result<ModelDir, TrainerError> {
    let named = |file: &str, e: crate::learner::LearnerError| {
        let path = folder.join(file);
        TrainerError::Rollout(parl_rollout::RolloutError::Corrupt { path, message: e.to_string() })
    };
    let shape = shape_of(&read_json(&folder.join("config.json"))?).map_err(|e| named("config.json", e))?;
    let bytes = durable::read(&folder.join("model.safetensors"))?;
    let params = import(&shape, &bytes).map_err(|e| named("model.safetensors", e))?;
    let tokenizer = durable::read(&folder.join("tokenizer.json"))?;
    Ok(ModelDir { shape, params, tokenizer, hash: blake3::hash(&bytes).to_hex().to_string() })
}
