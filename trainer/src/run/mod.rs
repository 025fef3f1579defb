//! The run: its folder, its steps, and what it leaves behind.

pub mod environment;
pub mod eval;
pub mod folder;
mod metrics;
pub mod rollout;
pub mod seats;
mod show;
pub mod summary;

use std::io::Write;
use std::path::{Path, PathBuf};

use parl_rollout::durable;
use parl_rollout::policy::Policy;
use parl_rollout::swarm::Seat;
use parl_rollout::tasks::Split;
use parl_rollout::trajectory::log::{LogMeta, TrajectoryLog};
use serde_json::Value;

use crate::config::{Config, Loaded, differences};
use crate::error::TrainerError;
use environment::Environment;
use eval::Row;
use folder::{Marker, RunFolder, Used, read_json, write_json};
use rollout::run_batch;
use show::Show;
use summary::Summary;

/// Keys that may differ when a run is gone on with.
pub const FREE_ON_RESUME: [&str; 2] = ["run.max_steps", "run.final_eval_tasks"];

/// How a run is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the run; `run.dir`/`run.name` when `None`.
    pub folder: Option<PathBuf>,
    /// What to do with a used one.
    pub used: Used,
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
        return Err(parl_rollout::RolloutError::Config { key: "tasks".to_owned(), message }.into());
    }
    let mut policy = seats::configured(&environment, config)?;
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
    let first = match options.used {
        Used::Resume => resume(&folder, &resolved, &log)?,
        Used::Refuse | Used::Clean => {
            log.quarantine_after(None, &folder.quarantine())?;
            0
        }
    };
    describe(&folder, loaded, &resolved, &environment)?;
    let mut metrics = metrics::open(folder.path(), first, &folder.quarantine())?;

    let steps = config.run.max_steps;
    let mut show = Show::new(out, options.terminal, first, steps);
    let closed = |e: std::io::Error| parl_rollout::RolloutError::Io {
        path: "output".into(),
        action: "cannot write",
        source: e,
    };
    let greeting =
        format!("run {} in {}, from step {first} to {steps}", config.run.name, folder.path().display());
    show.line(&greeting).map_err(closed)?;
    let mut ends: Vec<Row> = Vec::new();
    for step in first..steps {
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
        let line = Value::Object(metrics::line(config, step, &batch, folder.attempt));
        metrics.append(&line.to_string())?;
        metrics.sync()?;
        let lambdas = config.rewards.lambdas(step);
        show.step(step, steps, &batch, (lambdas.parallel, lambdas.finish)).map_err(closed)?;
        if step == first || step + 1 == steps {
            ends.push(Row { name: format!("step {}", step + 1), summary: Summary::of(&batch.records) });
        }
    }
    let out = show.finish();
    eval::print_table(out, "training tasks", &ends).map_err(closed)?;
    let n = config.run.final_eval_tasks;
    if n > 0 {
        let summary = eval::evaluate(config, &environment, policy.as_mut(), n, false)?;
        let mut rows = vec![Row { name: "this run's policy".to_owned(), summary }];
        rows.extend(eval::experts(config, &environment, n)?);
        write_json(&folder.path().join("final_eval.json"), &rows)?;
        let n = environment.heldout_specs(n).len();
        eval::print_table(out, &format!("{n} held-out tasks"), &rows).map_err(closed)?;
    }
    Ok(())
}

/// The step to go on with: the one after the last sealed and undamaged step.
fn resume(folder: &RunFolder, resolved: &Value, log: &TrajectoryLog) -> Result<u64, TrainerError> {
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
    let mut next = 0;
    for step in log.sealed_steps()? {
        if step != next {
            break;
        }
        log.verify(step)?;
        next += 1;
    }
    log.quarantine_after(next.checked_sub(1), &folder.quarantine())?;
    Ok(u64::from(next))
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
