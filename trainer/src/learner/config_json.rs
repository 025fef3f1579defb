//! Hugging Face's `config.json` and the model's shape, both ways.

use parl_kernels::shape::ModelShape;
use serde_json::{Value, json};

use super::LearnerError;

/// The `config.json` of a shape.
pub fn config_json(shape: &ModelShape) -> Value {
    let (kind, class) = match (shape.qkv_bias, shape.qk_norm) {
        (true, _) => ("qwen2", "Qwen2ForCausalLM"),
        (_, true) => ("qwen3", "Qwen3ForCausalLM"),
        _ => ("llama", "LlamaForCausalLM"),
    };
    json!({
        "architectures": [class],
        "model_type": kind,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_eps,
        "tie_word_embeddings": shape.tied_head,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    })
}

/// Reads a `config.json` of the Llama and Qwen families.
///
/// # Errors
/// [`LearnerError::Weights`] naming the key.
pub fn shape_of(config: &Value) -> Result<ModelShape, LearnerError> {
    let refuse = |text: String| LearnerError::Weights(format!("config.json: {text}"));
    let size = |key: &str| {
        let value = config.get(key).and_then(Value::as_u64);
        value.map(|v| v as usize).ok_or_else(|| refuse(format!("`{key}` is missing or no whole number")))
    };
    let number = |key: &str, default: f64| match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| refuse(format!("`{key}` is no number"))),
    };
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("");
    if !["llama", "qwen2", "qwen3"].contains(&kind) {
        return Err(refuse(format!("`model_type` is `{kind}`, not one of llama, qwen2, qwen3")));
    }
    if config.get("rope_scaling").is_some_and(|v| !v.is_null()) {
        return Err(refuse("`rope_scaling` is set, which is not supported".to_owned()));
    }
    let (hidden, heads) = (size("hidden_size")?, size("num_attention_heads")?);
    let shape = ModelShape {
        vocab: size("vocab_size")?,
        hidden,
        layers: size("num_hidden_layers")?,
        heads,
        kv_heads: size("num_key_value_heads").unwrap_or(heads),
        head_dim: size("head_dim").unwrap_or(hidden / heads.max(1)),
        ffn: size("intermediate_size")?,
        max_positions: size("max_position_embeddings")?,
        rope_theta: number("rope_theta", 10_000.0)?,
        rms_eps: number("rms_norm_eps", 1e-6)?,
        qkv_bias: kind == "qwen2",
        qk_norm: kind == "qwen3",
        tied_head: config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
    };
    shape.validate()?;
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_go_there_and_back_and_others_are_refused() {
        let mut shape = ModelShape {
            vocab: 10,
            hidden: 8,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            ffn: 6,
            max_positions: 32,
            rope_theta: 1e4,
            rms_eps: 1e-5,
            qkv_bias: true,
            qk_norm: false,
            tied_head: true,
        };
        assert_eq!(shape_of(&config_json(&shape)).unwrap(), shape);
        (shape.qkv_bias, shape.qk_norm) = (false, true);
        assert_eq!(shape_of(&config_json(&shape)).unwrap(), shape);
        for (key, value, wanted) in [
            ("model_type", json!("gpt2"), "`gpt2`"),
            ("hidden_size", json!("x"), "`hidden_size`"),
            ("num_key_value_heads", json!(3), "kv_heads (3)"),
            ("rope_scaling", json!({"type": "yarn"}), "`rope_scaling`"),
        ] {
            let mut config = config_json(&shape);
            config[key] = value;
            let error = shape_of(&config).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
