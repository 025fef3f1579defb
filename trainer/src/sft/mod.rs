//! The warm start: one model that knows the tools and the formats, as orchestrator and as sub-agent.

mod demonstrations;
pub mod model_dir;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use parl_kernels::shape::ModelShape;
use parl_rollout::dialect::Dialect;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::Config;
use crate::error::TrainerError;
use crate::learner::{AdamW, Learner, Muon, Objective, Optimizer, Params, Sample, initial, widened};
use crate::run::environment::Environment;
use crate::run::folder::read_json;
use model_dir::ORIGIN;

/// The warm start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SftConfig {
    /// Folder of a model to go on from, whose sizes and tokenizer are then taken; `null` starts from nothing.
    pub init: Option<String>,
    /// With `init`: add the words of the data set to the tokenizer, unknown to the model at first.
    pub new_words: bool,
    /// Updates.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub steps: u64,
    /// Demonstrations and drills of an update.
    #[schemars(range(min = 1, max = 100_000))]
    pub episodes_per_step: u32,
    /// Share of wide and mixed demonstrations that work in parallel.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub parallel_share: f64,
    /// Share of parallel demonstrations whose decision to make a sub-agent is learned too: the habit to start from.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub habit_share: f64,
    /// Share of all demonstrations that begin with assignments that ask for nothing, and then work alone: spurious
    /// parallelism to start from, for ablations.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub spurious_share: f64,
    /// Share of the contexts whose words are swapped for others of the tokenizer, each for the same one throughout, for
    /// data sets: what can then be learned is to copy, and not which words the training tasks have. The words of the
    /// generated world and of calls stay.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub swapped_share: f64,
    /// Share of the sub-agents' contexts that are learned from.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub subagent_share: f64,
    /// Share of copying drills at first, from easy to hard; a quarter of it later.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drill_share: f64,
    /// Share of the warm start after which drills become rare.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drill_until: f64,
    /// Probability that a demonstrated assignment is lost, so that trying again is shown.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub outage_rate: f64,
    /// Probability that a demonstrated tool call fails.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub tool_fault_rate: f64,
    /// Learning rate of AdamW at its highest; it falls to nothing over the last three fifths.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub lr: f64,
    /// Muon's learning rate over AdamW's, for the projections.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub muon_factor: f64,
    /// Width of the residual stream; the other sizes follow (head_dim 32, twice as many query as key heads, FFN three
    /// times as wide).
    #[schemars(range(min = 64, max = 4096))]
    pub hidden: u32,
    /// Decoder layers.
    #[schemars(range(min = 1, max = 128))]
    pub layers: u32,
    /// Tokens of a micro-batch, at most; a longer sample is one of its own.
    #[schemars(range(min = 64, max = 1_000_000))]
    pub micro_batch_tokens: u32,
    /// Workers, one libtorch thread each; 0 takes all cores.
    #[schemars(range(min = 0, max = 4096))]
    pub threads: u32,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            init: None,
            new_words: false,
            steps: 400,
            episodes_per_step: 64,
            parallel_share: 0.6,
            habit_share: 0.05,
            spurious_share: 0.0,
            swapped_share: 0.0,
            subagent_share: 0.2,
            drill_share: 0.5,
            drill_until: 0.4,
            outage_rate: 0.05,
            tool_fault_rate: 0.02,
            lr: 3e-3,
            muon_factor: 2.0,
            hidden: 128,
            layers: 4,
            micro_batch_tokens: 4096,
            threads: 0,
        }
    }
}

impl SftConfig {
    fn shape(&self, vocab: usize, max_positions: usize) -> ModelShape {
        let hidden = self.hidden as usize;
        let heads = (hidden / 32).max(2) / 2 * 2;
        ModelShape {
            vocab,
            hidden,
            layers: self.layers as usize,
            heads,
            kv_heads: heads / 2,
            head_dim: 32,
            ffn: 3 * hidden,
            max_positions,
            rope_theta: 10_000.0,
            rms_eps: 1e-6,
            qkv_bias: false,
            qk_norm: false,
            tied_head: true,
        }
    }

    /// Warm-up over a twentieth, then level, then down to 0 over the last three fifths.
    fn lr_at(&self, step: u64) -> f64 {
        let x = (step + 1) as f64 / self.steps as f64;
        self.lr * (x / 0.05).min(1.0) * ((1.0 - x) / 0.6).clamp(0.0, 1.0)
    }
}

/// Key of [`inputs_hash`] in a model's `origin.json`.
pub const INPUTS: &str = "first_step_blake3";

/// BLAKE3 of the first step's samples: another world, template, script or seed gives another one, so a model whose
/// origin has this hash is what the sources of today would make again.
///
/// # Errors
/// What the scripted rollout fails with.
pub fn inputs_hash(config: &Config, environment: &Environment) -> Result<String, TrainerError> {
    let mut hasher = blake3::Hasher::new();
    for sample in demonstrations::samples(config.run.seed, &config.sft, environment, 0)? {
        for (token, trained) in sample.tokens.iter().zip(&sample.mask) {
            hasher.update(&token.to_le_bytes());
            hasher.update(&[u8::from(*trained)]);
        }
        hasher.update(&[u8::MAX]);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Held-out tasks that progress is probed on.
const PROBED_TASKS: u32 = 40;

/// By kind of demonstration: the share whose every word was likelier than not given the words before it, and the mean
/// loss of a word in nats.
fn mastered(learner: &Learner, probes: &[(&'static str, Sample)]) -> Result<String, TrainerError> {
    let samples: Vec<Sample> = probes.iter().map(|(_, s)| s.clone()).collect();
    let log_probs = learner.log_probs(&samples)?;
    let mut kinds: BTreeMap<&str, (usize, usize, f64, usize)> = BTreeMap::new();
    for ((name, _), words) in probes.iter().zip(log_probs) {
        let kind = kinds.entry(name).or_default();
        let whole = words.iter().all(|l| f64::from(*l) > -std::f64::consts::LN_2);
        *kind = (
            kind.0 + usize::from(whole),
            kind.1 + 1,
            kind.2 - words.iter().map(|l| f64::from(*l)).sum::<f64>(),
            kind.3 + words.len(),
        );
    }
    let text = |(name, (whole, n, loss, words)): (&&str, &(usize, usize, f64, usize))| {
        format!("{name} {:.0}% ({:.3})", 100.0 * *whole as f64 / *n as f64, loss / (*words).max(1) as f64)
    };
    Ok(kinds.iter().map(text).collect::<Vec<_>>().join(", "))
}

/// The model in `sft.init` and what `origin.json` tells of it.
fn go_on_from(
    model: &str,
    config: &Config,
    environment: &Environment,
    longest: usize,
) -> Result<(ModelShape, Params, Value), TrainerError> {
    let refuse = |message: String| {
        let key = "sft.init".to_owned();
        TrainerError::Rollout(parl_rollout::RolloutError::Config { key, message })
    };
    let read = model_dir::read(Path::new(model))?;
    // Where that one came from, if it says so: the stages of a recipe in a chain.
    let origin = Path::new(model).join(ORIGIN);
    let origin = if origin.is_file() { read_json(&origin)? } else { Value::Null };
    let init = serde_json::json!({"blake3": read.hash, "origin": origin});
    if longest > read.shape.max_positions {
        let positions = read.shape.max_positions;
        return Err(refuse(format!("contexts of {longest} tokens do not fit its {positions} positions")));
    }
    let tasks = &environment.dialect;
    let own = Dialect::from_json(&read.tokenizer)?;
    if own.hash() == tasks.hash() {
        return Ok((read.shape, read.params, init));
    }
    let places = own
        .places_in(tasks)
        .map_err(|token| refuse(format!("`{token}` of the tokenizer of {model} is no token of the tasks")))?;
    let (shape, params) = widened(&read.shape, read.params, &places, tasks.vocab_size(), config.run.seed);
    Ok((shape, params, init))
}

/// Makes a warm start and writes it as a Hugging Face folder.
///
/// # Errors
/// See [`TrainerError`].
pub fn run(config: &Config, folder: &Path, out: &mut dyn Write) -> Result<(), TrainerError> {
    let sft = &config.sft;
    // Scripts sit in both seats: the config's own models may not be there yet.
    let environment = Environment::with_tokenizer_of(config, sft.init.as_deref().filter(|_| !sft.new_words))?;
    let longest =
        config.rollout.orchestrator.max_context_tokens.max(config.rollout.subagent.max_context_tokens);
    let (shape, params, init) = if let Some(model) = &sft.init {
        go_on_from(model, config, &environment, longest as usize)?
    } else {
        let shape = sft.shape(environment.dialect.vocab_size(), longest as usize);
        shape.validate().map_err(parl_rollout::RolloutError::from)?;
        let params = initial(&shape, config.run.seed);
        (shape, params, Value::Null)
    };
    let threads = match sft.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n as usize,
    };
    let adamw = AdamW { beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.01 };
    let muon = Muon { momentum: 0.95, weight_decay: 0.01, lr_factor: sft.muon_factor, qk_clip: None };
    let optimizer = Optimizer::new(adamw, (sft.muon_factor > 0.0).then_some(muon));
    let mut learner = Learner::new(shape.clone(), params, optimizer, threads)?;
    learner.micro_batch_tokens = sft.micro_batch_tokens as usize;
    let started = Instant::now();
    let mut tokens = 0;
    let probes = demonstrations::probes(sft, &environment, PROBED_TASKS)?;
    let closed = |e: std::io::Error| parl_rollout::RolloutError::Io {
        path: "output".into(),
        action: "cannot write",
        source: e,
    };
    for step in 0..sft.steps {
        let samples: Vec<Sample> = demonstrations::samples(config.run.seed, sft, &environment, step)?;
        let report = learner.train_step(&samples, Objective::Sft, sft.lr_at(step), &|_, _| {})?;
        tokens += samples.iter().map(|s| s.tokens.len()).sum::<usize>();
        if (step + 1) % 20 == 0 || step + 1 == sft.steps {
            let seconds = started.elapsed().as_secs_f64();
            writeln!(
                out,
                "sft {:>5}/{}  loss {:.4}  grad {:.2}  {:.2} M tokens  {:>6.0} tok/s  {seconds:.0} s",
                step + 1,
                sft.steps,
                report.loss,
                report.grad_norm,
                tokens as f64 / 1e6,
                tokens as f64 / seconds
            )
            .map_err(closed)?;
        }
        if (step + 1) % 100 == 0 || step + 1 == sft.steps {
            writeln!(out, "    mastered: {}", mastered(&learner, &probes)?).map_err(closed)?;
        }
    }
    model_dir::write(
        folder,
        &shape,
        learner.params(),
        &environment.tokenizer_json,
        &serde_json::json!({
            "made_by": concat!("parl ", env!("CARGO_PKG_VERSION")),
            "tokens": tokens,
            "seed": config.run.seed,
            "tasks": config.tasks,
            "rollout": config.rollout,
            // Where the model to begin from lay is of one machine; `init` says what it was.
            "sft": SftConfig { init: None, ..sft.clone() },
            "init": init,
            INPUTS: inputs_hash(config, &environment)?,
        }),
    )
}

#[cfg(test)]
mod tests;
