//! The run: its folder, its steps, and what it leaves behind.

pub mod ahead;
pub mod cubins;
mod device;
pub mod environment;
pub mod eval;
pub mod folder;
pub mod learning;
#[cfg(test)]
mod lost;
pub mod metrics;
mod resume;
pub mod rollout;
pub mod seats;
mod show;
pub mod stored;
pub mod summary;
mod toggle;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use parl_rollout::config::{PolicyConfig, RolloutMode};
use parl_rollout::policy::Policy;
use parl_rollout::policy::scripted::Script;
use parl_rollout::swarm::Seat;
use parl_rollout::tasks::Split;
use parl_rollout::trajectory::log::{LogMeta, TrajectoryLog};
use parl_rollout::{RolloutError, durable};
use serde_json::Value;

use crate::checkpoint::{Checkpoints, State};
use crate::config::{Config, Loaded};
use crate::error::TrainerError;
use crate::track::{self, About, Tracker};
use ahead::Ahead;
use environment::Environment;
use eval::{HeldOut, Row};
use folder::{Marker, RunFolder, Used, read_json, write_json};
use learning::{Learned, Learning};
use resume::Resumed;
use rollout::{Batch, run_batch, stage};
use seats::Seats;
use show::Show;
use summary::Summary;
use toggle::Toggle;

/// Held-out figures from before the first step, for the table at the end.
const START: &str = "start_eval.json";

/// How a run is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the run.
    pub folder: PathBuf,
    /// What to do with a used one.
    pub used: Used,
    /// The checkpoint to go on from; the newest whole one when `None`.
    pub checkpoint: Option<PathBuf>,
    /// Whether `out` is a terminal that may show bars.
    pub terminal: bool,
}

/// Where a run lives when nobody says.
pub fn default_folder(config: &Config) -> PathBuf {
    Path::new(&config.run.dir).join(&config.run.name)
}

/// Runs a config to its last step.
///
/// # Errors
/// See [`TrainerError`]; what is sealed by then stays.
pub fn run(loaded: &Loaded<Config>, options: &Options, out: &mut dyn Write) -> Result<(), TrainerError> {
    run_with(loaded, options, out, seats::configured)
}

/// The same, with who `seats` says in the seats.
fn run_with(
    loaded: &Loaded<Config>,
    options: &Options,
    out: &mut dyn Write,
    seats: impl FnOnce(&Environment, &Config) -> Result<Seats, TrainerError>,
) -> Result<(), TrainerError> {
    let config = &loaded.config;
    // All that the config can get wrong is found before the folder is touched.
    let environment = Environment::new(config)?;
    if environment.count(Split::Train) == Some(0) {
        let message = "there are no training tasks: the held-out side took all".to_owned();
        return Err(RolloutError::Config { key: "tasks".to_owned(), message }.into());
    }
    let Seats { policy, learner, notes: on } = seats(&environment, config)?;
    trainable(config)?;
    let folder = RunFolder::open(&options.folder, options.used, &marker(loaded))?;
    let resolved = serde_json::to_value(config).map_err(|e| TrainerError::Internal(e.to_string()))?;
    let meta = log_meta(config, &resolved, &environment, policy.as_ref(), folder.attempt);
    let ahead = config.rollout.mode == RolloutMode::Async;
    let mut parts = Parts {
        config,
        policies: who_sits(config, policy.as_ref()),
        environment: &environment,
        policy,
        toggle: Toggle::of(&config.rewards),
        learning: learner.map(|learner| Learning { learner, refused_in_a_row: 0, copies: ahead }),
        log: TrajectoryLog::new(folder.path()),
        log_meta: meta,
        checkpoints: Checkpoints::new(folder.path()),
        folder,
    };
    let Resumed { step: first, under_way, notes } = match options.used {
        Used::Resume => parts.resume(&resolved, options.checkpoint.as_deref())?,
        Used::Refuse | Used::Clean => {
            parts.log.quarantine_after(None, &parts.folder.quarantine())?;
            Resumed::default()
        }
    };
    describe(&parts.folder, loaded, &resolved, &environment)?;
    let mut metrics = metrics::open(parts.folder.path(), first, &parts.folder.quarantine())?;
    let mut tracker = parts.tracker(&resolved, first)?;

    let steps = config.run.max_steps;
    let stop = config.run.stop_after_steps.map_or(steps, |n| steps.min(first.saturating_add(n)));
    let mut show = Show::new(out, options.terminal, first, steps);
    let place = parts.folder.path().display().to_string();
    show.line(&format!("run {} in {place}, from step {first} to {steps}", config.run.name))
        .map_err(closed)?;
    for note in on.into_iter().chain(notes) {
        show.line(&note).map_err(closed)?;
    }
    if first == 0
        && let Some(start) = parts.evaluate_start()?
    {
        let success = 100.0 * start.all.success;
        show.line(&format!("held-out success at the start {success:.1}%")).map_err(closed)?;
    }
    let now_us = jiff::Timestamp::now().as_microsecond();
    let epoch_us = under_way.as_deref().map_or(Ok(now_us), ahead::epoch_us)?;
    let (launched, before) = (Instant::now(), (now_us - epoch_us) / 1000);
    let clock = move || before + launched.elapsed().as_millis() as i64;
    let stage = stage(config, &environment, &environment.rules, ahead::places(config), &clock, epoch_us);
    let mut ahead = ahead.then(|| Ahead::new(config, &environment, &stage));
    if let Some(ahead) = &mut ahead {
        parts.begin_ahead(ahead, first, under_way.as_deref())?;
    }
    let mut ends: Vec<Row> = Vec::new();
    for step in first..stop {
        let (batch, learned) = match &mut ahead {
            Some(ahead) => parts.step_ahead(ahead, step, &mut show)?,
            None => parts.step(step, &mut show)?,
        };
        let now = unix_seconds();
        let line = metrics::line(config, step, &batch, learned.as_ref(), parts.folder.attempt, now);
        let line = Value::Object(line).to_string();
        metrics.append(&line)?;
        metrics.sync()?;
        let notes = tracker.offer(&line);
        let lambdas = config.rewards.lambdas(step);
        show.step(step, steps, &batch, (lambdas.parallel, lambdas.finish)).map_err(closed)?;
        for note in notes {
            show.line(&note).map_err(closed)?;
        }
        for why in learned.iter().flat_map(|learned| &learned.refused) {
            show.line(&format!("step {}: {why}", step + 1)).map_err(closed)?;
        }
        if step == first || step + 1 == stop {
            ends.push(Row { name: format!("step {}", step + 1), summary: Summary::of(&batch.records) });
        }
        if (step + 1) % config.run.checkpoint_every == 0 || step + 1 == stop {
            parts.checkpoint(step + 1, ahead.as_ref())?;
        }
    }
    for note in tracker.finish(track::PATIENCE) {
        show.line(&note).map_err(closed)?;
    }
    if stop < steps {
        show.line(&format!("stopped after step {stop}; go on with --resume")).map_err(closed)?;
        show.finish();
        return Ok(());
    }
    let out = show.finish();
    eval::print_table(out, "training tasks", &ends).map_err(closed)?;
    if config.run.final_eval_tasks > 0 {
        let rows = parts.evaluate_end()?;
        let n = environment.heldout_specs(config.run.final_eval_tasks, 0).len();
        eval::print_table(out, &format!("{n} held-out tasks"), &rows).map_err(closed)?;
    }
    Ok(())
}

/// Names of the policies in both seats; of the sub-agents' all that take turns there.
fn who_sits(config: &Config, policy: &dyn Policy) -> [String; 2] {
    let subagent = &config.rollout.subagent;
    let mut names = vec![policy.identity(Seat::Subagent, 0).name];
    for (i, later) in subagent.later.iter().enumerate() {
        names.push(format!("{} from step {}", policy.identity(Seat::Subagent, i + 1).name, later.from_step));
    }
    [policy.identity(Seat::Orchestrator, 0).name, names.join(", ")]
}

fn unix_seconds() -> f64 {
    jiff::Timestamp::now().as_duration().as_secs_f64()
}

fn closed(source: std::io::Error) -> RolloutError {
    RolloutError::Io { path: "output".into(), action: "cannot write", source }
}

/// All that a run works with.
struct Parts<'c> {
    config: &'c Config,
    environment: &'c Environment,
    policy: Box<dyn Policy>,
    /// None where a script sits in the orchestrator's seat.
    learning: Option<Learning>,
    /// None where no budget of tokens is set.
    toggle: Option<Toggle>,
    /// Who sat in the two seats at the start.
    policies: [String; 2],
    folder: RunFolder,
    log: TrajectoryLog,
    /// What its files say about their origin.
    log_meta: LogMeta,
    checkpoints: Checkpoints,
}

impl Parts<'_> {
    /// A step: rollout, log, update.
    fn step(&mut self, step: u64, show: &mut Show<'_>) -> Result<(Batch, Option<Learned>), TrainerError> {
        let specs = self.environment.training_specs(self.config, step);
        let rules = &self.environment.rules;
        let policy = self.policy.as_mut();
        let mut progress = |p| show.rollout(p);
        let mut batch = run_batch(self.config, self.environment, rules, policy, &specs, step, &mut progress)?;
        self.seal(step, &mut batch)?;
        let policy = self.policy.as_mut();
        let learned = match &mut self.learning {
            Some(learning) => Some(learning.update(self.config, policy, step, &batch, &show.learning())?),
            None => None,
        };
        // Whether a run was stopped here and gone on with must change nothing, the pace of the engine included.
        policy.forget();
        Ok((batch, learned))
    }

    /// Gives a batch its last rewards and logs it.
    fn seal(&mut self, step: u64, batch: &mut Batch) -> Result<(), TrainerError> {
        if let Some(toggle) = &mut self.toggle {
            toggle.apply(&self.config.rewards, step, batch);
            toggle.measure(step, &batch.records);
        }
        self.log.write_step(&self.log_meta, step as u32, &batch.records)?;
        Ok(())
    }

    /// Before the first step of a launch in async mode: the policy lets go of the learner's own memory.
    fn begin_ahead(
        &mut self,
        ahead: &mut Ahead<'_>,
        first: u64,
        under_way: Option<&[u8]>,
    ) -> Result<(), TrainerError> {
        if let Some(learning) = &mut self.learning {
            learning.hand_out(self.policy.as_mut())?;
        }
        match under_way {
            Some(saved) => ahead.restore(saved, first, self.policy.as_mut()),
            None => Ok(()),
        }
    }

    /// A step in async mode: log and update, while the next step's rollout goes on beside it.
    fn step_ahead(
        &mut self,
        ahead: &mut Ahead<'_>,
        step: u64,
        show: &mut Show<'_>,
    ) -> Result<(Batch, Option<Learned>), TrainerError> {
        ahead.admit(step);
        // At a launch's first step there may be nothing yet; later this is done.
        ahead.until(step, self.policy.as_mut(), &mut |p| show.rollout(p))?;
        let mut batch = ahead.take(step)?;
        self.seal(step, &mut batch)?;
        let (config, told) = (self.config, show.learning());
        let (policy, learning) = (self.policy.as_mut(), self.learning.as_mut());
        // Neither is ahead of the other by chance: each does what the step has for it, and both are waited for.
        let (learned, drawn) = thread::scope(|scope| {
            let (batch, told) = (&batch, &told);
            let thread =
                learning.map(|learning| scope.spawn(move || learning.learn(config, step, batch, told)));
            let drawn = ahead.until(step + 1, policy, &mut |p| show.rollout(p));
            (thread.map(thread::ScopedJoinHandle::join), drawn)
        });
        drawn?;
        let learned = match learned {
            Some(Ok(learned)) => Some(learned?),
            Some(Err(_)) => return Err(TrainerError::Internal("the learner's thread panicked".to_owned())),
            None => None,
        };
        // As in sync mode: what goes on knows nothing but what a checkpoint would hold.
        policy.forget();
        if let Some(learning) = &mut self.learning {
            learning.hand_out(policy)?;
        }
        Ok((batch, learned))
    }

    /// The sinks of this launch, which begins with step `first`.
    fn tracker(&self, resolved: &Value, first: u64) -> Result<Tracker, TrainerError> {
        let mut about = About::new(self.folder.path(), &self.folder.marker()?, resolved)?;
        if self.folder.attempt > 0 {
            about.attempt = self.folder.attempt;
            about.began_at = unix_seconds();
            about.first_step = first;
        }
        Ok(track::start(&self.config.tracking, &about))
    }

    /// Writes the checkpoint after `done` steps.
    fn checkpoint(&self, done: u64, ahead: Option<&Ahead<'_>>) -> Result<(), TrainerError> {
        let refused = self.learning.as_ref().map_or(0, |learning| learning.refused_in_a_row);
        let state = State::new(&self.config.run.name, done, refused, self.policies.clone());
        let learner = self.learning.as_ref().map(|learning| &learning.learner);
        let keep_last = self.config.run.keep_last;
        let rollout = ahead.map(|ahead| ahead.save(self.policy.as_ref())).transpose()?;
        let tokenizer = &self.environment.tokenizer_json;
        self.checkpoints.write(&state, learner, rollout.as_deref(), tokenizer, keep_last)
    }

    /// On held-out tasks, with the sub-agents of a training step.
    fn evaluate(&mut self, step: u64) -> Result<Summary, TrainerError> {
        let held_out = HeldOut { tasks: self.config.run.final_eval_tasks, lift_budget: false, step };
        eval::evaluate(self.config, self.environment, self.policy.as_mut(), held_out)
    }

    /// Figures of a model before its first step; the table at the end has them again.
    fn evaluate_start(&mut self) -> Result<Option<Summary>, TrainerError> {
        if self.learning.is_none() || self.config.run.final_eval_tasks == 0 {
            return Ok(None);
        }
        let summary = self.evaluate(0)?;
        let row = Row { name: "start".to_owned(), summary };
        write_json(&self.folder.path().join(START), &row)?;
        Ok(Some(row.summary))
    }

    /// The rows of the table at the end, which final_eval.json has too.
    fn evaluate_end(&mut self) -> Result<Vec<Row>, TrainerError> {
        let start = self.folder.path().join(START);
        let mut rows: Vec<Row> = Vec::new();
        if self.learning.is_some() && start.is_file() {
            rows.extend(serde_json::from_value(read_json(&start)?));
        }
        let name = if self.learning.is_some() { "end" } else { "this run's policy" };
        rows.push(Row { name: name.to_owned(), summary: self.evaluate(u64::MAX)? });
        // The experts' sub-agents need the memory of a card that this run's engine holds.
        self.policy = seats::experts(self.environment, Script::Serial);
        rows.extend(eval::experts(self.config, self.environment, self.config.run.final_eval_tasks)?);
        write_json(&self.folder.path().join("final_eval.json"), &rows)?;
        Ok(rows)
    }
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

fn marker(loaded: &Loaded<Config>) -> Marker {
    Marker {
        run_id: loaded.config.run.name.clone(),
        made_by: concat!("parl ", env!("CARGO_PKG_VERSION")).to_owned(),
        made_at: jiff::Timestamp::now().to_string(),
        overrides: loaded.overrides.clone(),
    }
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
        model: policy.identity(Seat::Orchestrator, 0).name,
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
