//! `trainer`: reads the command line, hands over, turns errors into exit codes.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use parl_rollout::config::PolicyConfig;
use parl_trainer::TrainerError;
use parl_trainer::checkpoint;
use parl_trainer::cli::{
    Cli, Command, ConfigCommand, EvalArgs, ExportArgs, Layers, ReportArgs, RunArgs, RunsArgs, ShowArgs,
    WatchArgs, normalise,
};
use parl_trainer::config::{self, Config, Loaded};
use parl_trainer::export::{Selection, export};
use parl_trainer::report::report;
use parl_trainer::report::source::Source;
use parl_trainer::report::watch::Watch;
use parl_trainer::run::environment::Environment;
use parl_trainer::run::eval::{self, HeldOut, Row, print_table};
use parl_trainer::run::folder::Used;
use parl_trainer::run::seats::{Seats, configured};
use parl_trainer::run::stored::StoredRun;
use parl_trainer::run::summary::Summary;
use parl_trainer::run::{Options, default_folder, run};
use parl_trainer::terminal::{self, Screen};
use parl_trainer::track::backfill::backfill;

fn main() -> ExitCode {
    let arguments: Result<Vec<String>, _> =
        std::env::args_os().map(std::ffi::OsString::into_string).collect();
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(bad) => {
            let _ = writeln!(io::stderr(), "trainer: the argument `{}` is not UTF-8", bad.display());
            return ExitCode::from(2);
        }
    };
    let cli = Cli::parse_from(normalise(arguments.into_iter()));
    let mut out = io::stdout();
    match dispatch(cli.command, &mut out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let closed = error.chain().filter_map(|e| e.downcast_ref::<io::Error>());
            if closed.into_iter().any(|e| e.kind() == ErrorKind::BrokenPipe) {
                // The reader had enough; that is no fault.
                return ExitCode::SUCCESS;
            }
            let _ = writeln!(io::stderr(), "trainer: {}", whole(&error));
            let code = error
                .chain()
                .find_map(|e| e.downcast_ref::<TrainerError>())
                .map_or(1, TrainerError::exit_code);
            ExitCode::from(code)
        }
    }
}

/// An error and what caused it, in one line; a cause that the line tells already is not told again.
fn whole(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.as_str() {
        "" => cause,
        told if told.contains(&cause) => line,
        told => format!("{told}: {cause}"),
    })
}

fn dispatch(command: Command, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        Command::Run(args) => run_command(&args, out),
        Command::Sft(args) => Ok(parl_trainer::sft::run(&load(&args.layers)?.config, &args.out, out)?),
        Command::Eval(args) => eval_command(&args, out),
        Command::Runs(args) => runs_command(&args, out),
        Command::Show(args) => show_command(&args, out),
        Command::Export(args) => export_command(&args, out),
        Command::Report(args) => report_command(&args, out),
        Command::Watch(args) => watch_command(&args, out),
        Command::Track(args) => {
            let told = backfill(&args.run, &args.overrides)?;
            told.iter().try_for_each(|line| Ok(writeln!(out, "{line}")?))
        }
        Command::Config { command: ConfigCommand::Schema } => print_json(out, &config::schema::<Config>()),
        Command::Config { command: ConfigCommand::Reference } => {
            let defaults = serde_json::to_value(Config::default())?;
            Ok(write!(out, "{}", config::reference(&config::schema::<Config>(), &defaults))?)
        }
        Command::Config { command: ConfigCommand::Validate(layers) } => {
            load(&layers)?;
            Ok(writeln!(out, "the config is valid")?)
        }
        Command::Config { command: ConfigCommand::Show(layers) } => print_json(out, &load(&layers)?.config),
    }
}

fn load(layers: &Layers) -> Result<Loaded<Config>, TrainerError> {
    let files = layers.files.iter().map(|f| config::read_file(f)).collect::<Result<_, _>>()?;
    let mut loaded = config::load(files, &layers.overrides, &|name| std::env::var(name).ok())?;
    config::anchor_models(&mut loaded);
    Ok(loaded)
}

fn run_command(args: &RunArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let loaded = load(&args.layers)?;
    if args.dry_run {
        Environment::new(&loaded.config).map_err(TrainerError::from)?;
        return print_json(out, &loaded.config);
    }
    let used = match (&args.resume, args.clean) {
        (Some(_), _) => Used::Resume,
        (_, true) => Used::Clean,
        _ => Used::Refuse,
    };
    let checkpoint = args.resume.as_ref().filter(|from| *from != "auto").map(PathBuf::from);
    let terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
    let folder = args.run_dir.clone().unwrap_or_else(|| default_folder(&loaded.config));
    if let Some(port) = args.watch {
        let watch = Watch::bind(Source::awaited(&folder), port)?;
        writeln!(out, "watch this run at {}", watch.address())?;
        // It ends with the process, and whatever befalls it, the run goes on.
        std::thread::spawn(move || watch.serve());
    }
    Ok(run(&loaded, &Options { folder, used, checkpoint, terminal }, out)?)
}

fn eval_command(args: &EvalArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut loaded = load(&args.layers)?;
    let config = &mut loaded.config;
    if let Some(path) = &args.checkpoint {
        let model = checkpoint::model_in(path)?;
        config.rollout.orchestrator.policy = with_model(&config.rollout.orchestrator.policy, &model);
    }
    if let Some(script) = args.policy {
        // A script can be measured before there is a model to take its place.
        config.rollout.orchestrator.policy = PolicyConfig::Scripted { script };
    }
    let config = &loaded.config;
    let environment = Environment::new(config).map_err(TrainerError::from)?;
    let keeper = match &args.run_dir {
        Some(folder) => Some(eval::Keeper::open(&loaded, &environment, folder)?),
        None => None,
    };
    let name = match (args.policy, &args.checkpoint) {
        (Some(script), _) => script.name(),
        (None, None) => "the config's policy",
        (None, Some(_)) => "the checkpoint",
    };
    let Seats { mut policy, notes, .. } = configured(&environment, config)?;
    for note in notes.iter().filter(|_| !args.json) {
        writeln!(out, "{note}")?;
    }
    let held_out = HeldOut { tasks: args.tasks, lift_budget: args.lift_budget, step: u64::MAX };
    let records = eval::episodes(config, &environment, policy.as_mut(), held_out)?;
    if let Some(keeper) = keeper {
        keeper.keep(config, &environment, policy.as_ref(), &records)?;
    }
    let summary = Summary::of(&records);
    if args.json {
        return print_json(out, &summary);
    }
    let rows = [Row { name: name.to_owned(), summary }];
    Ok(print_table(out, "held-out tasks", &rows)?)
}

fn runs_command(args: &RunsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let runs = terminal::runs::list(&args.folder)?;
    if args.json {
        return print_json(out, &runs);
    }
    if runs.is_empty() {
        return Ok(writeln!(out, "no runs below {}", args.folder.display())?);
    }
    Ok(terminal::show(out, Screen::stdout(None), &terminal::runs::lines(&runs))?)
}

fn show_command(args: &ShowArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let run = StoredRun::open(&args.run)?;
    let lines = if let Some(id) = &args.episode {
        let (step, record) = run.episode(id)?;
        terminal::episode::lines(&record, step)
    } else {
        let step = run.last_step();
        writeln!(out, "episodes of step {step}; one of them as a tree: --episode ID")?;
        terminal::episodes::lines(&run.log.read_step(step).map_err(TrainerError::from)?)
    };
    Ok(terminal::show(out, Screen::stdout(args.width), &lines)?)
}

fn export_command(args: &ExportArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let selection = Selection { steps: args.steps, episodes: args.episodes.clone() };
    let report = export(&args.run, args.format, &selection, args.out.as_deref())?;
    let (episodes, steps, files) = (report.episodes, report.steps, report.files);
    let place = report.folder.display();
    Ok(writeln!(out, "{episodes} episodes of {steps} steps in {files} files below {place}")?)
}

fn report_command(args: &ReportArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let written = report(&args.run, args.out.as_deref(), &args.episodes)?;
    for note in &written.notes {
        // A terminal acts on control characters, and a note may tell of what a file holds.
        writeln!(out, "{}", note.replace(char::is_control, "\u{fffd}"))?;
    }
    let kilobytes = written.bytes.div_ceil(1000);
    let (file, steps, episodes) = (written.file.display(), written.steps, written.episodes);
    Ok(writeln!(out, "{file}: {steps} steps, {episodes} episodes, {kilobytes} kB; open it in a browser")?)
}

fn watch_command(args: &WatchArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let watch = Watch::bind(Source::open(&args.run)?, args.port)?;
    writeln!(out, "watch {} at {}", args.run.display(), watch.address())?;
    out.flush()?;
    watch.serve();
    Ok(())
}

/// A seat's policy with another model in it, at the temperature that the config gives.
fn with_model(policy: &PolicyConfig, model: &Path) -> PolicyConfig {
    let temperature = match policy {
        PolicyConfig::Local { temperature, .. } => *temperature,
        PolicyConfig::Scripted { .. } => 1.0,
    };
    PolicyConfig::Local { model: model.display().to_string(), temperature }
}

fn print_json(out: &mut dyn Write, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot encode")?;
    Ok(writeln!(out, "{text}")?)
}
