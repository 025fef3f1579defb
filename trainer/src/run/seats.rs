//! Who sits in the two seats: scripts, and models on one engine.

use std::path::Path;
use std::sync::Arc;

use parl_kernels::backend::SetId;
use parl_rollout::RolloutError;
use parl_rollout::config::PolicyConfig;
use parl_rollout::engine::Engine;
use parl_rollout::policy::local::{Local, SeatDraw};
use parl_rollout::policy::pair::Pair;
use parl_rollout::policy::scripted::{Script, Scripted};
use parl_rollout::policy::{Identity, Policy};

use super::device::{self, Found, Model};
use super::environment::Environment;
use crate::config::Config;
use crate::error::TrainerError;
use crate::learner::Learner;
use crate::sft::model_dir::{self, ModelDir};

/// The trainable set; the sub-agents' frozen ones follow it, in the order of the config.
const ORCHESTRATOR: SetId = SetId(0);

/// Who draws turns, and who learns from them.
pub struct Seats {
    /// Both seats.
    pub policy: Box<dyn Policy>,
    /// The orchestrator's learner, whose weights the policy leases; `None` when a script sits there.
    pub learner: Option<Learner>,
    /// What is told at the start of a run of what the models are computed on.
    pub notes: Vec<String>,
}

/// The seats of the config.
///
/// # Errors
/// When a model cannot be read or does not fit the config.
pub fn configured(environment: &Environment, config: &Config) -> Result<Seats, TrainerError> {
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
    Ok(seated(environment, config, &PolicyConfig::Scripted { script })?.policy)
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
) -> Result<Seats, TrainerError> {
    let script = |script: Script| Box::new(Scripted::new(script, Arc::clone(&environment.dialect)));
    let subagent = &config.rollout.subagent.policy;
    let seats = |policy: Box<dyn Policy>, learner, notes| Ok(Seats { policy, learner, notes });
    match (orchestrator, subagent) {
        (PolicyConfig::Scripted { script: a }, PolicyConfig::Scripted { script: b }) => {
            seats(Box::new(Pair { orchestrator: script(*a), subagent: script(*b) }), None, Vec::new())
        }
        (PolicyConfig::Scripted { script: a }, PolicyConfig::Local { .. }) => {
            let (local, _, notes) = local(environment, config, None, true)?;
            seats(Box::new(Pair { orchestrator: script(*a), subagent: Box::new(local) }), None, notes)
        }
        (PolicyConfig::Local { .. }, PolicyConfig::Scripted { script: b }) => {
            let (local, learner, notes) = local(environment, config, Some(orchestrator), false)?;
            seats(Box::new(Pair { orchestrator: Box::new(local), subagent: script(*b) }), learner, notes)
        }
        (PolicyConfig::Local { .. }, PolicyConfig::Local { .. }) => {
            let (local, learner, notes) = local(environment, config, Some(orchestrator), true)?;
            seats(Box::new(local), learner, notes)
        }
    }
}

/// One engine for the seats that have a model, the orchestrator's learner, and what to tell of where they compute.
fn local(
    environment: &Environment,
    config: &Config,
    orchestrator: Option<&PolicyConfig>,
    subagents: bool,
) -> Result<(Local, Option<Learner>, Vec<String>), TrainerError> {
    let rollout = &config.rollout;
    let limit = rollout.orchestrator.max_context_tokens;
    let mut wanted: Vec<(String, &PolicyConfig, SetId, u32)> = orchestrator
        .map(|policy| ("orchestrator.".to_owned(), policy, ORCHESTRATOR, limit))
        .into_iter()
        .collect();
    if subagents {
        for (i, policy) in rollout.subagent.policies().enumerate() {
            let name = i.checked_sub(1).map_or("subagent.".to_owned(), |i| format!("subagent.later[{i}]."));
            wanted.push((name, policy, SetId(1 + i as u32), rollout.subagent.max_context_tokens));
        }
    }
    let mut models: Vec<(String, SetId, f32, ModelDir)> = Vec::new();
    for (name, policy, set, limit) in wanted {
        let PolicyConfig::Local { model, temperature } = policy else { continue };
        let read = model_dir::read(Path::new(model))?;
        let refuse = |key: &str, message: String| {
            Err(TrainerError::Rollout(RolloutError::Config { key: format!("rollout.{name}{key}"), message }))
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
        if set == ORCHESTRATOR
            && read.shape.qk_norm
            && config.learner.muon.is_some_and(|muon| muon.qk_clip.is_some())
        {
            let message = format!("{model} has qk-norm, which QK-Clip cannot be had with: set it to null");
            let key = "learner.muon.qk_clip".to_owned();
            return Err(TrainerError::Rollout(RolloutError::Config { key, message }));
        }
        models.push((name, set, *temperature, read));
    }
    let planned: Vec<Model<'_>> = models
        .iter()
        .map(|(name, set, _, read)| Model {
            name: format!("rollout.{name}policy"),
            shape: &read.shape,
            trained: *set == ORCHESTRATOR,
        })
        .collect();
    let Found { place, backend, notes } = device::find(config, &planned)?;
    let mut engine = Engine::new(backend, rollout.engine.clone())?;
    let (mut seats, mut trained): (Vec<SeatDraw>, Option<Learner>) = (Vec::new(), None);
    for (_, set, temperature, read) in models {
        let trainable = set == ORCHESTRATOR;
        let (optimizer, workers) = (config.learner.optimizer(), config.learner.workers());
        let mut learner = Learner::at(place, read.shape, read.params, optimizer, workers)?;
        learner.grad_clip = config.learner.grad_clip;
        learner.micro_batch_tokens = config.learner.micro_batch_tokens as usize;
        engine.install(set, learner.lease()?)?;
        let identity = Identity { name: format!("local:{}", &read.hash[..16]), trainable };
        seats.push(SeatDraw { set, temperature, identity });
        if trainable {
            trained = Some(learner);
        }
    }
    let first =
        seats.first().cloned().ok_or_else(|| TrainerError::Internal("no seat has a model".to_owned()))?;
    // Where a script sits in the orchestrator's seat, all models are the sub-agents'.
    let subagents = if orchestrator.is_some() { seats.split_off(1) } else { seats };
    Ok((Local::new(engine, first, subagents, environment.dialect.special().end, 0), trained, notes))
}
