//! Evaluation on held-out tasks: a policy beside the scripted experts.

use std::io::Write;
use std::path::Path;

use parl_rollout::config::PolicyConfig;
use parl_rollout::policy::Policy;
use parl_rollout::policy::scripted::Script;
use parl_rollout::swarm::Seat;
use parl_rollout::trajectory::log::TrajectoryLog;
use parl_rollout::trajectory::record::EpisodeRecord;

use super::environment::Environment;
use super::folder::{Marker, RunFolder, Used};
use super::rollout::run_batch;
use super::summary::Summary;
use crate::config::{Config, Loaded};
use crate::error::TrainerError;

/// Critical steps where the budget is lifted: more than any task needs.
const LIFTED: u32 = 100_000;

/// A line of the table.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Row {
    /// Whose figures.
    pub name: String,
    /// The figures.
    pub summary: Summary,
}

/// What is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldOut {
    /// So many tasks, one episode each.
    pub tasks: u32,
    /// Without a budget of critical steps.
    pub lift_budget: bool,
    /// With the sub-agents of this training step.
    pub step: u64,
}

/// Runs `policy` on the first held-out tasks.
///
/// # Errors
/// What the rollout fails with.
pub fn evaluate(
    config: &Config,
    environment: &Environment,
    policy: &mut dyn Policy,
    held_out: HeldOut,
) -> Result<Summary, TrainerError> {
    Ok(Summary::of(&episodes(config, environment, policy, held_out)?))
}

/// The scored episodes that [`evaluate`] sums up.
///
/// # Errors
/// As [`evaluate`].
pub fn episodes(
    config: &Config,
    environment: &Environment,
    policy: &mut dyn Policy,
    held_out: HeldOut,
) -> Result<Vec<EpisodeRecord>, TrainerError> {
    let mut rules = environment.rules.clone();
    if held_out.lift_budget {
        rules.critical_steps = LIFTED;
        rules.orchestrator.max_turns = LIFTED;
    }
    let specs = environment.heldout_specs(held_out.tasks, config.rollout.subagent.number_at(held_out.step));
    let temperatures = match (&config.rollout.orchestrator.policy, config.run.eval_temperature) {
        (PolicyConfig::Local { temperature, .. }, Some(eval)) => Some((eval, *temperature)),
        _ => None,
    };
    if let Some((eval, _)) = temperatures {
        policy.set_temperature(Seat::Orchestrator, eval);
    }
    // Rewards as of a step after every schedule: the task's own reward.
    let step = config.rewards.lambda_parallel.length().max(config.rewards.lambda_finish.length());
    let batch = run_batch(config, environment, &rules, policy, &specs, step, &mut |_| {});
    if let Some((_, training)) = temperatures {
        policy.set_temperature(Seat::Orchestrator, training);
    }
    policy.forget();
    Ok(batch?.records)
}

/// A folder that evaluated episodes are kept in, as the only step of a run of its own, for everything that reads runs.
pub struct Keeper {
    folder: RunFolder,
    resolved: serde_json::Value,
}

impl Keeper {
    /// Makes the folder and describes the config in it, before there is anything to lose.
    ///
    /// # Errors
    /// [`TrainerError::Folder`] for a folder that is used, [`TrainerError::Rollout`] when the disk fails.
    pub fn open(
        loaded: &Loaded<Config>,
        environment: &Environment,
        path: &Path,
    ) -> Result<Self, TrainerError> {
        if Marker::is_in(path) {
            let message = format!("{}: holds a run already; name another folder", path.display());
            return Err(TrainerError::Folder(message));
        }
        let folder = RunFolder::open(path, Used::Refuse, &super::marker(loaded))?;
        let resolved =
            serde_json::to_value(&loaded.config).map_err(|e| TrainerError::Internal(e.to_string()))?;
        super::describe(&folder, loaded, &resolved, environment)?;
        Ok(Self { folder, resolved })
    }

    /// Writes the episodes that `policy` made.
    ///
    /// # Errors
    /// [`TrainerError::Rollout`] when the disk fails.
    pub fn keep(
        &self,
        config: &Config,
        environment: &Environment,
        policy: &dyn Policy,
        records: &[EpisodeRecord],
    ) -> Result<(), TrainerError> {
        let meta = super::log_meta(config, &self.resolved, environment, policy, self.folder.attempt);
        TrajectoryLog::new(self.folder.path()).write_step(&meta, 0, records)?;
        Ok(())
    }
}

/// The scripted experts on the first `tasks` held-out tasks: the serial one with its budget and without, the parallel
/// one.
///
/// # Errors
/// As [`evaluate`].
pub fn experts(config: &Config, environment: &Environment, tasks: u32) -> Result<Vec<Row>, TrainerError> {
    let wanted = [
        ("serial expert", Script::Serial, false),
        ("serial expert, budget lifted", Script::Serial, true),
        ("parallel expert", Script::Parallel, false),
    ];
    wanted
        .into_iter()
        .map(|(name, script, lift_budget)| {
            let mut policy = super::seats::scripted(environment, script, config)?;
            let held_out = HeldOut { tasks, lift_budget, step: u64::MAX };
            let summary = evaluate(config, environment, policy.as_mut(), held_out)?;
            Ok(Row { name: name.to_owned(), summary })
        })
        .collect()
}

/// Writes rows as a table for people.
///
/// # Errors
/// When `out` cannot be written to.
pub fn print_table(out: &mut dyn Write, title: &str, rows: &[Row]) -> std::io::Result<()> {
    writeln!(out, "\n{title}")?;
    writeln!(
        out,
        "{:<30} {:>8} {:>8} {:>9} {:>9} {:>8} {:>8}   critical steps by kind",
        "", "success", "r_perf", "critical", "total", "agents", "finish"
    )?;
    for row in rows {
        let all = &row.summary.all;
        let kinds: Vec<String> =
            row.summary.by_kind.iter().map(|(kind, f)| format!("{kind} {:.1}", f.critical_steps)).collect();
        writeln!(
            out,
            "{:<30} {:>7.1}% {:>8.3} {:>9.2} {:>9.2} {:>8.2} {:>8.2}   {}",
            row.name,
            100.0 * all.success,
            all.r_perf,
            all.critical_steps,
            all.total_steps,
            all.agents,
            all.finish_rate,
            kinds.join(", ")
        )?;
    }
    Ok(())
}
