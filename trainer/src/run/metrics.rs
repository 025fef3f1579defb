//! `metrics.jsonl`: one line a step, the source of truth for every other view. Names follow the peers' spelling;
//! what is ours alone stands under `parl/`.

use std::path::Path;

use parl_rollout::RolloutError;
use parl_rollout::durable::{self, Lines};
use serde_json::{Map, Value, json};

use super::learning::Learned;
use super::rollout::Batch;
use super::summary::Summary;
use crate::config::Config;
use crate::error::TrainerError;
use crate::learner::StepReport;

/// The line of a step; `learned` is missing where a script sits in the orchestrator's seat, and `unix_seconds` is when
/// the step was done.
pub fn line(
    config: &Config,
    step: u64,
    batch: &Batch,
    learned: Option<&Learned>,
    attempt: u32,
    unix_seconds: f64,
) -> Map<String, Value> {
    let summary = Summary::of(&batch.records);
    let all = summary.all;
    let lambdas = config.rewards.lambdas(step);
    let tokens: u64 = batch.records.iter().map(|r| r.prompt_tokens + r.completion_tokens).sum();
    let drawn: u64 = batch.records.iter().map(|r| r.completion_tokens).sum();
    let turns: usize =
        batch.records.iter().map(|r| r.steps.iter().filter(|s| s.agent_idx == 0).count()).sum();
    let concurrency: u64 = batch.records.iter().map(|r| u64::from(r.max_concurrency)).sum();
    let n = batch.records.len().max(1) as f64;
    let groups = batch.groups.max(1) as f64;
    let seconds = batch.rollout_seconds.max(1e-9);
    let line = json!({
        "step": step,
        "attempt": attempt,
        "timestamp": unix_seconds,
        "reward/mean": all.reward,
        "success/mean": all.success,
        "frac_reward_zero_std": batch.zero_variance_groups as f64 / groups,
        "groups/dropped": batch.dropped_groups,
        "num_turns/mean": turns as f64 / n,
        "response_length/mean": drawn as f64 / n,
        "time/rollout": seconds,
        "perf/throughput": tokens as f64 / seconds,
        "parl/r_perf/mean": all.r_perf,
        "parl/r_parallel/mean": all.r_parallel,
        "parl/r_finish/mean": all.r_finish,
        "parl/lambda_parallel": lambdas.parallel,
        "parl/lambda_finish": lambdas.finish,
        "parl/critical_steps": all.critical_steps,
        "parl/total_steps": all.total_steps,
        "parl/speedup": if all.critical_steps > 0.0 { all.total_steps / all.critical_steps } else { 0.0 },
        "parl/max_concurrency": concurrency as f64 / n,
        "parl/num_subagents": all.agents,
        "parl/finish_rate": all.finish_rate,
        "parl/retry_rate": all.retry_rate,
        "parl/serial_frac": all.serial,
    });
    let mut line = match line {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    for (kind, figures) in &summary.by_kind {
        line.insert(format!("success/{kind}/mean"), json!(figures.success));
        line.insert(format!("parl/num_subagents/{kind}"), json!(figures.agents));
        line.insert(format!("parl/critical_steps/{kind}"), json!(figures.critical_steps));
    }
    if let Some(toggled) = &batch.toggled {
        let scored = all.episodes.max(1) as f64;
        line.insert("parl/r_budget/mean".to_owned(), json!(toggled.taken / scored));
        line.insert("parl/budget_binds".to_owned(), json!(u8::from(toggled.binds)));
        line.insert("parl/over_budget/mean".to_owned(), json!(toggled.over as f64 / scored));
        line.insert("parl/orchestrator_tokens/mean".to_owned(), json!(toggled.tokens as f64 / scored));
    }
    if let Some(refused) = learned.map(|learned| &learned.refused).filter(|refused| !refused.is_empty()) {
        line.insert("optim/refused".to_owned(), json!(refused.join("; ")));
    }
    if let Some(learned) = learned {
        line.insert("off_policy/mean".to_owned(), json!(learned.staleness.mean()));
        line.insert("off_policy/max".to_owned(), json!(learned.staleness.max));
        // Episodes begin no sooner than keeps the bound: none is ever too stale.
        line.insert("off_policy/dropped".to_owned(), json!(0));
    }
    if let Some(report) = learned.and_then(|learned| learned.report.as_ref())
        && let Value::Object(more) = figures(config, step, report)
    {
        line.extend(more);
    }
    line
}

/// What the learner tells of a step's updates.
fn figures(config: &Config, step: u64, report: &StepReport) -> Value {
    json!({
        "loss/mean": report.loss,
        "optim/updates": report.updates,
        "optim/lr": config.learner.lr_at(step),
        "optim/grad_norm": report.grad_norm,
        "optim/qk_clipped": report.qk_clipped,
        "entropy/mean": report.entropy,
        "mismatch_kl/mean": report.mismatch_kl,
        "mismatch/max": report.mismatch_max,
        "clip_frac/low": report.clipped_low,
        "clip_frac/high": report.clipped_high,
        "tokens/trained": report.trained_tokens,
        "tokens/computed": report.computed_tokens,
        "time/learn": report.seconds,
        "perf/learn_throughput": report.computed_tokens as f64 / report.seconds.max(1e-9),
    })
}

/// Opens a run's metrics; lines of steps from `from` on are set aside first.
///
/// # Errors
/// When the disk fails.
pub fn open(run: &Path, from: u64, quarantine: &Path) -> Result<Lines, TrainerError> {
    let path = run.join("metrics.jsonl");
    if path.exists() {
        let (lines, _torn) = Lines::open(&path)?;
        drop(lines);
        let text = String::from_utf8_lossy(&durable::read(&path)?).into_owned();
        let late = |line: &&str| {
            let step = serde_json::from_str::<Value>(line).ok().and_then(|v| v.get("step")?.as_u64());
            step.is_none_or(|step| step >= from)
        };
        let (aside, keep): (Vec<&str>, Vec<&str>) = text.lines().partition(late);
        if !aside.is_empty() {
            let text = |lines: Vec<&str>| lines.into_iter().flat_map(|l| [l, "\n"]).collect::<String>();
            durable::create_dir(quarantine)?;
            durable::write_atomic(&quarantine.join("metrics.jsonl"), text(aside).as_bytes())?;
            durable::write_atomic(&path, text(keep).as_bytes())?;
        }
    }
    Ok(Lines::open(&path)?.0)
}

/// The newest line of a run's metrics that is whole (a run that is writing may be in the middle of one); `None` before
/// the first.
///
/// # Errors
/// When the file cannot be read, or the line is none of ours.
pub fn newest(run: &Path) -> Result<Option<Map<String, Value>>, TrainerError> {
    let path = run.join("metrics.jsonl");
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = durable::read(&path)?;
    let Some(end) = bytes.iter().rposition(|b| *b == b'\n') else { return Ok(None) };
    let begin = bytes[..end].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    serde_json::from_slice(&bytes[begin..end]).map(Some).map_err(|e| {
        let message = format!("its last line is not a JSON object: {e}");
        RolloutError::Corrupt { path, message }.into()
    })
}
