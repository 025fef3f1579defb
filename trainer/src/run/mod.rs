//! The run: its folder, its steps, and what it leaves behind.

pub mod environment;
pub mod eval;
pub mod folder;
pub mod learning;
mod metrics;
pub mod rollout;
pub mod seats;
mod show;
pub mod summary;

use std::io::Write;
use std::path::{Path, PathBuf};

use parl_rollout::config::PolicyConfig;
use parl_rollout::policy::Policy;
use parl_rollout::swarm::Seat;
use parl_rollout::tasks::Split;
use parl_rollout::trajectory::log::{LogMeta, TrajectoryLog};
use parl_rollout::{RolloutError, durable};
use serde_json::Value;

use crate::checkpoint::{self, Checkpoint, Checkpoints, State};
use crate::config::{Config, Loaded, differences};
use crate::error::TrainerError;
use environment::Environment;
use eval::Row;
use folder::{Marker, RunFolder, Used, read_json, write_json};
use learning::{Learned, Learning};
use rollout::run_batch;
use seats::Seats;
use show::Show;
use summary::Summary;

/// Keys that may differ when a run is gone on with.
pub const FREE_ON_RESUME: [&str; 8] = [
    // Compared by the hash of the weights, not by the folder that they lie in.
    "rollout.orchestrator.policy.model",
    "rollout.subagent.policy.model",
    "run.max_steps",
    "run.checkpoint_every",
    "run.keep_last",
    "run.stop_after_steps",
    "run.final_eval_tasks",
    "run.eval_temperature",
];

/// Held-out figures from before the first step, for the table at the end.
const START: &str = "start_eval.json";

/// How a run is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the run; `run.dir`/`run.name` when `None`.
    pub folder: Option<PathBuf>,
    /// What to do with a used one.
    pub used: Used,
    /// The checkpoint to go on from; the newest whole one when `None`.
    pub checkpoint: Option<PathBuf>,
    /// Whether `out` is a terminal that may show bars.
    pub terminal: bool,
}

/// Runs a config to its last step.
///
/// # Errors
/// See [`TrainerError`]; what is sealed by then stays.
pub fn run(loaded: &Loaded<Config>, options: &Options, out: &mut dyn Write) -> Result<(), TrainerError> {
    let config = &loaded.config;
    // All that the config can get wrong is found before the folder is touched.
    let environment = Environment::new(config)?;
    if environment.count(Split::Train) == Some(0) {
        let message = "there are no training tasks: the held-out side took all".to_owned();
        return Err(RolloutError::Config { key: "tasks".to_owned(), message }.into());
    }
    let Seats { mut policy, learner } = seats::configured(&environment, config)?;
    trainable(config)?;
    let mut learning = learner.map(|learner| Learning { learner, refused_in_a_row: 0 });
    let path = options.folder.clone().unwrap_or_else(|| Path::new(&config.run.dir).join(&config.run.name));
    let marker = Marker {
        run_id: config.run.name.clone(),
        made_by: concat!("parl ", env!("CARGO_PKG_VERSION")).to_owned(),
        made_at: jiff::Timestamp::now().to_string(),
        overrides: loaded.overrides.clone(),
    };
    let folder = RunFolder::open(&path, options.used, &marker)?;
    let resolved = serde_json::to_value(config).map_err(|e| TrainerError::Internal(e.to_string()))?;
    let log = TrajectoryLog::new(
        folder.path(),
        log_meta(config, &resolved, &environment, policy.as_ref(), folder.attempt),
    );
    let checkpoints = Checkpoints::new(folder.path());
    let policies = [Seat::Orchestrator, Seat::Subagent].map(|seat| policy.identity(seat).name);
    let mut notes = Vec::new();
    let first = match options.used {
        Used::Resume => {
            let named = options.checkpoint.as_deref();
            let resumed = resume(&folder, &resolved, &log, &checkpoints, named, &policies)?;
            notes = resumed.notes;
            if let (Some(learning), Some(checkpoint)) = (&mut learning, &resumed.checkpoint) {
                put_back(learning, policy.as_mut(), checkpoint)?;
            }
            resumed.checkpoint.map_or(0, |checkpoint| checkpoint.state.step)
        }
        Used::Refuse | Used::Clean => {
            log.quarantine_after(None, &folder.quarantine())?;
            0
        }
    };
    describe(&folder, loaded, &resolved, &environment)?;
    let mut metrics = metrics::open(folder.path(), first, &folder.quarantine())?;

    let steps = config.run.max_steps;
    let mut show = Show::new(out, options.terminal, first, steps);
    let closed =
        |e: std::io::Error| RolloutError::Io { path: "output".into(), action: "cannot write", source: e };
    let greeting =
        format!("run {} in {}, from step {first} to {steps}", config.run.name, folder.path().display());
    show.line(&greeting).map_err(closed)?;
    for note in notes {
        show.line(&note).map_err(closed)?;
    }
    let n_eval = config.run.final_eval_tasks;
    let start_path = folder.path().join(START);
    if first == 0 && learning.is_some() && n_eval > 0 {
        let summary = eval::evaluate(config, &environment, policy.as_mut(), n_eval, false)?;
        show.line(&format!("held-out success at the start {:.1}%", 100.0 * summary.all.success))
            .map_err(closed)?;
        write_json(&start_path, &Row { name: "start".to_owned(), summary })?;
    }
    let mut ends: Vec<Row> = Vec::new();
    let stop = config.run.stop_after_steps.map_or(steps, |n| steps.min(first.saturating_add(n)));
    for step in first..stop {
        let specs = environment.training_specs(config, step);
        let mut progress = |p| show.rollout(p);
        let batch = run_batch(
            config,
            &environment,
            &environment.rules,
            policy.as_mut(),
            &specs,
            step,
            &mut progress,
        )?;
        log.write_step(step as u32, &batch.records)?;
        let learned = match &mut learning {
            Some(learning) => {
                Some(learning.update(config, policy.as_mut(), step, &batch, &show.learning())?)
            }
            None => None,
        };
        // Whether a run was stopped here and gone on with must change nothing, the pace of the engine included.
        policy.forget();
        let line = Value::Object(metrics::line(config, step, &batch, learned.as_ref(), folder.attempt));
        metrics.append(&line.to_string())?;
        metrics.sync()?;
        let lambdas = config.rewards.lambdas(step);
        show.step(step, steps, &batch, (lambdas.parallel, lambdas.finish)).map_err(closed)?;
        if let Some(Learned::Refused(why)) = &learned {
            show.line(&format!("step {}: no update: {why}", step + 1)).map_err(closed)?;
        }
        if step == first || step + 1 == stop {
            ends.push(Row { name: format!("step {}", step + 1), summary: Summary::of(&batch.records) });
        }
        let done = step + 1;
        if done % config.run.checkpoint_every == 0 || done == stop {
            let refused = learning.as_ref().map_or(0, |learning| learning.refused_in_a_row);
            checkpoints.write(
                &State::new(&config.run.name, done, refused, policies.clone()),
                learning.as_ref().map(|learning| &learning.learner),
                &environment.tokenizer_json,
                config.run.keep_last,
            )?;
        }
    }
    if stop < steps {
        show.line(&format!("stopped after step {stop}; go on with --resume")).map_err(closed)?;
        show.finish();
        return Ok(());
    }
    let out = show.finish();
    eval::print_table(out, "training tasks", &ends).map_err(closed)?;
    if n_eval > 0 {
        let mut rows = Vec::new();
        if learning.is_some() && start_path.is_file() {
            rows.extend(serde_json::from_value(read_json(&start_path)?));
        }
        let summary = eval::evaluate(config, &environment, policy.as_mut(), n_eval, false)?;
        let name = if learning.is_some() { "end" } else { "this run's policy" };
        rows.push(Row { name: name.to_owned(), summary });
        rows.extend(eval::experts(config, &environment, n_eval)?);
        write_json(&folder.path().join("final_eval.json"), &rows)?;
        let n = environment.heldout_specs(n_eval).len();
        eval::print_table(out, &format!("{n} held-out tasks"), &rows).map_err(closed)?;
    }
    Ok(())
}

/// Refuses a model in the orchestrator's seat that cannot be trained as it is set.
fn trainable(config: &Config) -> Result<(), TrainerError> {
    match &config.rollout.orchestrator.policy {
        PolicyConfig::Local { temperature, .. } if *temperature == 0.0 => {
            let key = "rollout.orchestrator.policy.temperature".to_owned();
            let message = "0 is greedy: its draws have no probabilities to learn from; use a value above 0";
            Err(RolloutError::Config { key, message: message.to_owned() }.into())
        }
        _ => Ok(()),
    }
}

/// Where a run is gone on with.
struct Resumed {
    checkpoint: Option<Checkpoint>,
    /// What the user should know.
    notes: Vec<String>,
}

/// Puts the state of a checkpoint back into the learner, and its weights into the policy.
fn put_back(
    learning: &mut Learning,
    policy: &mut dyn Policy,
    checkpoint: &Checkpoint,
) -> Result<(), TrainerError> {
    let bytes = checkpoint.learner.as_ref().ok_or_else(|| {
        TrainerError::Resume(format!("{} holds no learner's state", checkpoint.path.display()))
    })?;
    policy.give_back(Seat::Orchestrator);
    learning.learner.restore(bytes)?;
    learning.refused_in_a_row = checkpoint.state.refused_in_a_row;
    policy.publish(Seat::Orchestrator, learning.learner.lease()?)?;
    Ok(())
}

/// Finds the checkpoint to go on from, checks the log up to it, and sets aside what is newer.
fn resume(
    folder: &RunFolder,
    resolved: &Value,
    log: &TrajectoryLog,
    checkpoints: &Checkpoints,
    named: Option<&Path>,
    policies: &[String; 2],
) -> Result<Resumed, TrainerError> {
    let old = read_json(&folder.path().join("config.resolved.json"))?;
    let differing: Vec<String> = differences(&old, resolved, &FREE_ON_RESUME)
        .into_iter()
        .map(|d| format!("{} is {} in the run and {} now", d.key, d.old, d.new))
        .collect();
    if !differing.is_empty() {
        return Err(TrainerError::Resume(format!(
            "the config differs from the run's: {}",
            differing.join("; ")
        )));
    }
    let (checkpoint, faults) = match named {
        Some(path) => (Some(checkpoint::read(path)?), Vec::new()),
        None => checkpoints.newest()?,
    };
    let mut notes: Vec<String> = faults.into_iter().map(|fault| format!("passed over: {fault}")).collect();
    let step = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.step);
    if let Some(checkpoint) = &checkpoint {
        let (name, here) = (&checkpoint.path, State::new("", 0, 0, policies.clone()));
        if folder.run_id()? != checkpoint.state.run_id {
            let message = format!("{} is of run {}", name.display(), checkpoint.state.run_id);
            return Err(TrainerError::Resume(message));
        }
        for ((seat, then), now) in
            ["orchestrator", "subagent"].iter().zip(&checkpoint.state.policies).zip(policies)
        {
            if then != now {
                let message = format!("rollout.{seat}.policy is {then} in the run and {now} now");
                return Err(TrainerError::Resume(message));
            }
        }
        for (what, then, now) in [
            ("written by", &checkpoint.state.made_by, &here.made_by),
            ("computed on", &checkpoint.state.cpu_level, &here.cpu_level),
        ] {
            if then != now {
                notes.push(format!("{} was {what} {then}, this is {now}: bits may differ", name.display()));
            }
        }
    } else {
        notes.push("there is no checkpoint yet: the run starts over".to_owned());
    }
    let sealed = log.sealed_steps()?;
    for step in 0..step as u32 {
        if !sealed.contains(&step) {
            return Err(TrainerError::Resume(format!("the log of step {step} is missing")));
        }
        log.verify(step)?;
    }
    log.quarantine_after((step as u32).checked_sub(1), &folder.quarantine())?;
    checkpoints.quarantine_after(step, &folder.quarantine())?;
    Ok(Resumed { checkpoint, notes })
}

fn log_meta(
    config: &Config,
    resolved: &Value,
    environment: &Environment,
    policy: &dyn Policy,
    attempt: u32,
) -> LogMeta {
    LogMeta {
        run_id: config.run.name.clone(),
        attempt,
        config_blake3: blake3::hash(resolved.to_string().as_bytes()).to_hex().to_string(),
        git_commit: option_env!("PARL_GIT_COMMIT").unwrap_or("unknown").to_owned(),
        model: policy.identity(Seat::Orchestrator).name,
        tokenizer_blake3: environment.dialect.hash().to_owned(),
    }
}

/// Writes the config as given and as resolved, and the tokenizer, beside the run.
fn describe(
    folder: &RunFolder,
    loaded: &Loaded<Config>,
    resolved: &Value,
    environment: &Environment,
) -> Result<(), TrainerError> {
    for (i, (_, text)) in loaded.files.iter().enumerate() {
        let name = if i == 0 { "config.yaml".to_owned() } else { format!("config.{i}.yaml") };
        durable::write_atomic(&folder.path().join(name), text.as_bytes())?;
    }
    write_json(&folder.path().join("config.resolved.json"), resolved)?;
    durable::write_atomic(&folder.path().join("tokenizer.json"), &environment.tokenizer_json)?;
    Ok(())
}
