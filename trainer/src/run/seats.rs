//! Who sits in the two seats: scripts, and models on one engine.

use std::path::Path;
use std::sync::Arc;

use parl_kernels::backend::SetId;
use parl_kernels::cpu::CpuBackend;
use parl_rollout::RolloutError;
use parl_rollout::config::PolicyConfig;
use parl_rollout::engine::Engine;
use parl_rollout::policy::local::{Local, SeatDraw};
use parl_rollout::policy::pair::Pair;
use parl_rollout::policy::scripted::{Script, Scripted};
use parl_rollout::policy::{Identity, Policy};

use super::environment::Environment;
use crate::config::Config;
use crate::error::TrainerError;
use crate::learner::{AdamW, Learner, Optimizer};
use crate::sft::model_dir;

/// The trainable set is 0; the sub-agents' frozen one is 1.
const ORCHESTRATOR: SetId = SetId(0);
const SUBAGENT: SetId = SetId(1);

/// The policy that the config seats.
///
/// # Errors
/// When a model cannot be read or does not fit the config.
pub fn configured(environment: &Environment, config: &Config) -> Result<Box<dyn Policy>, TrainerError> {
    seated(environment, config, &config.rollout.orchestrator.policy)
}

/// `script` in the orchestrator's seat, the config's choice in the sub-agents'.
///
/// # Errors
/// As [`configured`].
pub fn scripted(
    environment: &Environment,
    script: Script,
    config: &Config,
) -> Result<Box<dyn Policy>, TrainerError> {
    seated(environment, config, &PolicyConfig::Scripted { script })
}

/// Scripts in both seats, as demonstrations need them.
pub fn experts(environment: &Environment, script: Script) -> Box<dyn Policy> {
    let seat = |script| Box::new(Scripted::new(script, Arc::clone(&environment.dialect)));
    Box::new(Pair { orchestrator: seat(script), subagent: seat(Script::Serial) })
}

fn seated(
    environment: &Environment,
    config: &Config,
    orchestrator: &PolicyConfig,
) -> Result<Box<dyn Policy>, TrainerError> {
    let script = |script: Script| Box::new(Scripted::new(script, Arc::clone(&environment.dialect)));
    let subagent = &config.rollout.subagent.policy;
    Ok(match (orchestrator, subagent) {
        (PolicyConfig::Scripted { script: a }, PolicyConfig::Scripted { script: b }) => {
            Box::new(Pair { orchestrator: script(*a), subagent: script(*b) })
        }
        (PolicyConfig::Scripted { script: a }, PolicyConfig::Local { .. }) => Box::new(Pair {
            orchestrator: script(*a),
            subagent: Box::new(local(environment, config, None, Some(subagent))?),
        }),
        (PolicyConfig::Local { .. }, PolicyConfig::Scripted { script: b }) => Box::new(Pair {
            orchestrator: Box::new(local(environment, config, Some(orchestrator), None)?),
            subagent: script(*b),
        }),
        (PolicyConfig::Local { .. }, PolicyConfig::Local { .. }) => {
            Box::new(local(environment, config, Some(orchestrator), Some(subagent))?)
        }
    })
}

/// One engine for the seats that have a model.
fn local(
    environment: &Environment,
    config: &Config,
    orchestrator: Option<&PolicyConfig>,
    subagent: Option<&PolicyConfig>,
) -> Result<Local, TrainerError> {
    let mut engine = Engine::new(Box::new(CpuBackend::default()), config.rollout.engine.clone())?;
    let rollout = &config.rollout;
    let limits = [rollout.orchestrator.max_context_tokens, rollout.subagent.max_context_tokens];
    let mut seats: Vec<SeatDraw> = Vec::new();
    for ((policy, set), (name, limit)) in [(orchestrator, ORCHESTRATOR), (subagent, SUBAGENT)]
        .into_iter()
        .zip(["orchestrator", "subagent"].into_iter().zip(limits))
    {
        let Some(PolicyConfig::Local { model, temperature }) = policy else { continue };
        let read = model_dir::read(Path::new(model))?;
        let refuse = |key: &str, message: String| {
            Err(TrainerError::Rollout(RolloutError::Config { key: format!("rollout.{name}.{key}"), message }))
        };
        if blake3::hash(&read.tokenizer).to_hex().as_str() != environment.dialect.hash() {
            return refuse(
                "policy.model",
                format!("the tokenizer of {model} is not that of the other seat's model"),
            );
        }
        if read.shape.vocab != environment.dialect.vocab_size() {
            let (model_vocab, vocab) = (read.shape.vocab, environment.dialect.vocab_size());
            return refuse(
                "policy.model",
                format!("{model} has {model_vocab} tokens, its tokenizer {vocab}"),
            );
        }
        if limit as usize > read.shape.max_positions {
            return refuse(
                "max_context_tokens",
                format!("{limit} is above the model's {} positions", read.shape.max_positions),
            );
        }
        let idle = AdamW { beta1: 0.0, beta2: 0.0, eps: 1.0, weight_decay: 0.0 };
        let mut holder = Learner::new(read.shape, read.params, Optimizer::new(idle, None), 1)?;
        engine.install(set, holder.lease()?)?;
        let identity =
            Identity { name: format!("local:{}", &read.hash[..16]), trainable: set == ORCHESTRATOR };
        seats.push(SeatDraw { set, temperature: *temperature, identity });
    }
    let mut seats = seats.into_iter();
    let first = seats.next().ok_or_else(|| TrainerError::Internal("no seat has a model".to_owned()))?;
    let second = seats.next().unwrap_or_else(|| first.clone());
    Ok(Local::new(engine, first, second, environment.dialect.special().end, 0))
}
