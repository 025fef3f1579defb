//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use parl_rollout::policy::scripted::Script;

use crate::export::{Format, StepRange};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  a fault of the program itself
  2  the config, the command line or the run's folder
  3  the set-up (compiler, libtorch, disk space)
  4  data: tasks, corpus, tokenizer, a damaged file
  5  storage: the disk refused
  6  training: loss, gradient or weights are no numbers any more";

/// Trains an orchestrator that splits a task and runs it on frozen sub-agents at once.
#[derive(Debug, Parser)]
#[command(name = "trainer", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a config.
    Run(RunArgs),
    /// Make a warm start: a model that knows the tools and the formats, from scripted demonstrations.
    Sft(SftArgs),
    /// Measure a scripted policy, or the config's own, on held-out tasks.
    Eval(EvalArgs),
    /// List the runs below a folder.
    Runs(RunsArgs),
    /// Show an episode of a run as a tree; without one, the last step's episodes.
    Show(ShowArgs),
    /// Write a run's episodes in another program's format.
    Export(ExportArgs),
    /// Write a run as one HTML page: curves, tables, and who worked when in chosen episodes.
    Report(ReportArgs),
    /// Serve that page on loopback, following the run while it trains.
    Watch(WatchArgs),
    /// Write what trackers read (TensorBoard, W&B) for a run that is over.
    Track(TrackArgs),
    /// Look at configs without running them.
    Config {
        /// What to do with them.
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// The layers of a config.
#[derive(Debug, Args)]
pub struct Layers {
    /// A YAML file; later ones are laid over earlier ones.
    #[arg(long = "config", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// `key.path=value`, laid over the files; a value is YAML, `null` goes back to the default.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The config.
    #[command(flatten)]
    pub layers: Layers,
    /// Folder of the run, in the place of `run.dir`/`run.name`.
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Go on with the run in the folder, from its newest checkpoint that is whole (`auto`) or from the one named.
    #[arg(long, conflicts_with = "clean", value_name = "auto|CHECKPOINT", num_args = 0..=1, require_equals = true,
          default_missing_value = "auto")]
    pub resume: Option<String>,
    /// Remove the run in the folder first.
    #[arg(long)]
    pub clean: bool,
    /// Serve the run's page on loopback while it trains, as `trainer watch` does.
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true)]
    pub watch: Option<Option<u16>>,
    /// Check everything, show the resolved config, and stop.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `sft`.
#[derive(Debug, Args)]
pub struct SftArgs {
    /// The config.
    #[command(flatten)]
    pub layers: Layers,
    /// Folder to write the model to; a model that is there is replaced.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The config.
    #[command(flatten)]
    pub layers: Layers,
    /// A script in the orchestrator's seat: serial, parallel, human, spammer, spurious, random.
    #[arg(long, value_parser = script)]
    pub policy: Option<Script>,
    /// A checkpoint (or a run, of which the newest is taken) whose model sits in the orchestrator's seat.
    #[arg(long, value_name = "DIR", conflicts_with = "policy")]
    pub checkpoint: Option<PathBuf>,
    /// Held-out tasks.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub tasks: u32,
    /// Lift the budget of critical steps.
    #[arg(long)]
    pub lift_budget: bool,
    /// Keep the episodes in this folder, as a run of one step that `show`, `export` and the notebooks read.
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `runs`.
#[derive(Debug, Args)]
pub struct RunsArgs {
    /// Folder that holds the runs, at any depth.
    #[arg(value_name = "DIR", default_value = "runs")]
    pub folder: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The run's folder.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// The episode's id, or enough of its beginning.
    #[arg(long, value_name = "ID")]
    pub episode: Option<String>,
    /// Cut lines to this many columns; the terminal's when not given, and nothing is cut where there is none.
    #[arg(long, value_name = "COLUMNS", value_parser = clap::value_parser!(u16).range(20..))]
    pub width: Option<u16>,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The run's folder.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Whose format.
    #[arg(long, value_enum)]
    pub format: Format,
    /// Of these steps, counted from 0: A..B (without B), A.., ..B or A; all when not given.
    #[arg(long, value_name = "A..B")]
    pub steps: Option<StepRange>,
    /// This episode alone; may be given again.
    #[arg(long = "episode", value_name = "ID")]
    pub episodes: Vec<String>,
    /// Folder to write to; RUN/export/FORMAT when not given.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Folder of the run.
    pub run: PathBuf,
    /// The page [default: report.html in the run's folder].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// An episode to show, in the place of the page's own choice; may be given several times.
    #[arg(long = "episode", value_name = "ID")]
    pub episodes: Vec<String>,
}

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Folder of the run.
    pub run: PathBuf,
    /// The port on 127.0.0.1 [default: 7380, or a free one].
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
}

/// Arguments of `track`.
#[derive(Debug, Args)]
pub struct TrackArgs {
    /// Folder of the run.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Write the files of all sinks anew, from the run's metrics.jsonl.
    #[arg(long, required = true)]
    pub backfill: bool,
    /// `tracking.key=value`, laid over the run's own config.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Verbs of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the JSON schema.
    Schema,
    /// Print the reference of all keys as Markdown.
    Reference,
    /// Check a config.
    Validate(Layers),
    /// Print the resolved config.
    Show(Layers),
}

fn script(name: &str) -> Result<Script, String> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).map_err(|e| e.to_string())
}

/// Puts `--key.path=value` overrides in the form that the parser takes, `key.path=value`.
pub fn normalise(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let dotted = |a: &str| a.split_once('=').is_some_and(|(key, _)| key.contains('.'));
    arguments
        .map(|a| a.strip_prefix("--").filter(|rest| dotted(rest)).map_or(a.clone(), str::to_owned))
        .collect()
}
