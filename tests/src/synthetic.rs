//! Runs that nobody trained: as large, and as hostile, as a page has to bear.

use std::fs;
use std::path::Path;

use parl_rollout::RolloutError;
use parl_rollout::dialect::{Dialect, tokenizer_json};
use parl_rollout::tasks::{Split, TaskKind};
use parl_rollout::trajectory::log::{LogMeta, TrajectoryLog};
use parl_rollout::trajectory::record::{
    AgentRecord, CallRecord, EpisodeRecord, MessageRecord, RewardPart, Scored, Status, StepRecord,
    TokenBranch, VersionRun,
};
use serde_json::{Value, json};

/// Text that would end the element that it stands in, begin a program of its own, and be taken for a mark of the
/// page's template; `field` tells the places apart.
pub fn hostile(field: &str) -> String {
    format!(
        "{field} </script><script>window.owned='{field}';alert('{field}')</script><img src=x onerror=alert(1)> \
         --><!--<script> {{{{nonce}}}} {{{{data}}}} \"'`${{1}} \u{2028}\u{202e}\u{0} ]]> {}",
        "long ".repeat(3)
    )
}

/// An episode of an orchestrator and `agents` sub-agents in two stages, each with `calls` model calls, all of which
/// but the last make a tool call. `text` makes the text of a field.
///
/// # Errors
/// When the text cannot be spelt.
pub fn episode(
    id: &str,
    agents: u32,
    calls: u32,
    dialect: &Dialect,
    text: &dyn Fn(&str) -> String,
) -> Result<EpisodeRecord, RolloutError> {
    const CALL_MS: i64 = 12;
    let stage_ms = i64::from(calls) * CALL_MS;
    let half = agents.div_ceil(2);
    let mut records = vec![agent(0, None, [0, 2 * stage_ms + 90], 0, text)];
    let mut steps = Vec::new();
    for turn in 0..3 {
        let begin = i64::from(turn) * (stage_ms + 30);
        steps.push(step(0, turn, turn, [begin, begin + 30], Some(1), text));
    }
    for idx in 1..=agents {
        let stage = u32::from(idx > half);
        let begin = i64::from(stage) * (stage_ms + 30) + 30;
        // Each stage's first is its longest.
        let own = if idx == 1 || idx == half + 1 { calls } else { calls.saturating_sub(idx % 7).max(1) };
        let end = begin + i64::from(own) * CALL_MS;
        let mut record = agent(idx, Some(stage), [begin, end], own - 1, text);
        record.on_critical_path = idx == 1 || idx == half + 1;
        records.push(record);
        for at in 0..own {
            let start = begin + i64::from(at) * CALL_MS;
            let mut step = step(idx, at, stage, [start, start + CALL_MS - 4], None, text);
            if at + 1 == own {
                step.tool_calls.clear();
            }
            steps.push(step);
        }
    }
    let sub = |stage: u32| {
        records.iter().filter(|a| a.stage == Some(stage)).map(|a| a.n_steps).max().unwrap_or_default()
    };
    let critical_steps = 3 + sub(0) + sub(1);
    let total_steps = 3 + records.iter().map(|a| a.n_steps).sum::<u32>();
    let n_finished = records.iter().filter(|a| a.stage.is_some() && a.finished).count() as u32;
    let (r_parallel, weight) = (0.9, 0.1);
    Ok(EpisodeRecord {
        episode_id: id.to_owned(),
        group_id: format!("{id}-group"),
        env_id: text("env_id"),
        task_id: text("task_id"),
        split: Split::Train,
        task_kind: TaskKind::Wide,
        n_items: agents,
        seed: u64::MAX,
        started_at_us: 1_780_000_000_000_000,
        duration_ms: 2 * stage_ms + 90,
        status: Status::Ok,
        error: Some(text("error")),
        failure_kind: Some(text("failure_kind")),
        answer: Some(text("answer")),
        scored: Some(Scored {
            reward: 1.0 + r_parallel * weight,
            advantage: Some(0.25),
            success: true,
            r_perf: 1.0,
            r_parallel,
            r_finish: 0.0,
            lambda_parallel: weight,
            lambda_finish: 0.0,
            stage: text("shaping stage"),
            reward_form: "k25".to_owned(),
            parts: vec![
                RewardPart {
                    component: text("component"),
                    raw: 1.0,
                    weight: 1.0,
                    value: 1.0,
                    source: text("source"),
                },
                RewardPart {
                    component: "r_parallel".to_owned(),
                    raw: r_parallel,
                    weight,
                    value: r_parallel * weight,
                    source: "test".to_owned(),
                },
            ],
        }),
        n_subagents: 1,
        n_assigned: agents,
        n_finished,
        max_concurrency: half,
        n_stages: 3,
        critical_steps,
        total_steps,
        critical_ms: 2 * stage_ms + 90,
        total_ms: 2 * stage_ms + 90,
        prompt_tokens: 1000,
        completion_tokens: 4 * steps.len() as u64,
        policy_version_min: 3,
        policy_version_max: 3,
        branches: vec![branch(dialect, &text("token"))?],
        agents: records,
        steps,
    })
}

fn agent(
    idx: u32,
    stage: Option<u32>,
    [t_start_ms, t_end_ms]: [i64; 2],
    n_steps: u32,
    text: &dyn Fn(&str) -> String,
) -> AgentRecord {
    let failed = idx > 0 && idx.is_multiple_of(10); // some do
    AgentRecord {
        agent_idx: idx,
        parent_idx: (idx > 0).then_some(0),
        name: text("name"),
        system_prompt: text("system_prompt"),
        policy: text("policy"),
        trainable: idx == 0,
        stage,
        assigned_prompt: text("assigned_prompt"),
        final_message: (!failed).then(|| text("final_message")),
        finish_reason: if failed { text("finish_reason") } else { "done".to_owned() },
        finished: !failed,
        n_steps,
        tokens_in: 100,
        tokens_out: 4 * u64::from(n_steps),
        start_tick: 0,
        end_tick: 9,
        t_start_ms,
        t_end_ms,
        on_critical_path: true,
    }
}

fn step(
    agent_idx: u32,
    step_idx: u32,
    stage: u32,
    [from, to]: [i64; 2],
    s_main: Option<u32>,
    text: &dyn Fn(&str) -> String,
) -> StepRecord {
    let message = |role: &str| MessageRecord {
        role: role.to_owned(),
        content: text(role),
        tool_call_id: (role == "tool").then(|| text("tool_call_id")),
    };
    StepRecord {
        agent_idx,
        step_idx,
        stage,
        s_main: s_main.unwrap_or_default(),
        messages_delta: vec![message(if step_idx == 0 { "user" } else { "tool" }), message("assistant")],
        tool_calls: vec![CallRecord {
            id: text("call_id"),
            name: text("tool_name"),
            arguments_json: json!({ text("key"): text("arguments") }).to_string(),
            t_start_ms: to,
            t_end_ms: to + 3,
            error: step_idx % 50 == 7,
        }],
        finish_reason: text("step_finish_reason"),
        temperature: 0.6,
        n_prompt: 10,
        n_completion: 4,
        t_queue_ms: from,
        t_start_ms: from + 1,
        t_end_ms: to,
        policy_version: 3,
    }
}

/// A context of three turns of four drawn tokens each, between what it read.
fn branch(dialect: &Dialect, text: &str) -> Result<TokenBranch, RolloutError> {
    let mut branch = TokenBranch::default();
    for turn in 0..3u32 {
        let read = dialect.encode_text(text)?;
        branch.token_ids.extend(&read);
        let offset = branch.token_ids.len() as u32;
        branch.step_offsets.push(offset);
        branch.temperatures.push(1.0);
        let drawn: Vec<u32> = dialect.encode_text(text)?.into_iter().take(4).collect();
        branch.token_ids.extend(&drawn);
        let end = branch.token_ids.len() as u32;
        branch.policy_versions.push(VersionRun { start: offset, end, version: u64::from(turn) });
        branch.loss_mask.resize(offset as usize, false);
        branch.loss_mask.resize(end as usize, true);
        branch.logprobs.resize(offset as usize, 0.0);
        branch.logprobs.extend([-0.001f32, -0.2, -1.2, -4.0].iter().take(drawn.len()));
    }
    Ok(branch)
}

/// A dialect of few words.
///
/// # Errors
/// Never for these words.
pub fn dialect() -> Result<Dialect, RolloutError> {
    Dialect::from_json(tokenizer()?.as_bytes())
}

fn tokenizer() -> Result<String, RolloutError> {
    tokenizer_json(&["script", "token", "long"].map(str::to_owned))
}

/// A metrics line.
pub fn metrics(step: u64) -> Value {
    let share = 1.0 - 1.0 / (step as f64 + 2.0);
    json!({
        "step": step, "attempt": 0, "reward/mean": share, "success/mean": share, "success/wide/mean": share,
        "parl/critical_steps": 12.0 - share, "parl/num_subagents": 9.0 * share, "time/rollout": 0.5,
        "perf/throughput": 90_000.0
    })
}

/// Writes a run of three steps whose episodes are `episodes`, one a step, and which says `text` wherever a run says
/// something.
///
/// # Errors
/// When the disk refuses.
pub fn write_run(
    run: &Path,
    episodes: &[EpisodeRecord],
    text: &dyn Fn(&str) -> String,
) -> Result<(), Box<dyn std::error::Error>> {
    fs::create_dir_all(run)?;
    let marker = json!({
        "run_id": text("run_id"), "made_by": text("made_by"), "made_at": text("made_at"),
        "overrides": [text("override")]
    });
    fs::write(run.join("parl-run.json"), marker.to_string())?;
    let config = json!({ "run": { "max_steps": 3, text("config key"): text("config value") } });
    fs::write(run.join("config.resolved.json"), config.to_string())?;
    fs::write(run.join("tokenizer.json"), tokenizer()?)?;
    let figures = json!({
        "episodes": 20, "success": 0.5, "r_perf": 0.5, "critical_steps": 11.0, "total_steps": 12.0, "agents": 1.0,
        "finish_rate": 0.5
    });
    let kinds = json!({ text("kind"): figures });
    let row =
        |name: &str| json!({ "name": name, "summary": { "all": figures, "by_kind": kinds, "by_n": {} } });
    let rows = ["end", "serial expert, budget lifted", &text("row")].map(row);
    fs::write(run.join("final_eval.json"), Value::from(rows.to_vec()).to_string())?;
    // One file for all runs beside it, so whoever writes several of these must put them into folders of their own.
    let folder = run.file_name().unwrap_or_default().to_string_lossy();
    let rows = [json!({ "name": text("ablation"), "runs": [folder], "cells": [text("cell")] })];
    let table = json!([{ "caption": text("caption"), "columns": [text("column")], "rows": rows }]);
    fs::write(run.join("../ablations.json"), table.to_string())?;
    let mut lines = String::new();
    for step in 0..3 {
        let mut line = metrics(step);
        line[text("metric")] = json!(1.0);
        line["optim/refused"] = json!(text("refused"));
        lines += &line.to_string();
        lines.push('\n');
    }
    fs::write(run.join("metrics.jsonl"), lines)?;
    let meta = LogMeta {
        run_id: "synthetic".to_owned(),
        attempt: 0,
        config_blake3: "0".to_owned(),
        git_commit: "unknown".to_owned(),
        model: "none".to_owned(),
        tokenizer_blake3: "0".to_owned(),
    };
    let log = TrajectoryLog::new(run);
    for (step, episode) in (0..).zip(episodes) {
        log.write_step(&meta, step, std::slice::from_ref(episode))?;
    }
    Ok(())
}
