use std::path::PathBuf;

use super::log::{LogMeta, TrajectoryLog};
use super::record::{
    AgentRecord, CallRecord, EpisodeRecord, MessageRecord, RewardPart, Scored, Status, StepRecord,
    TokenBranch, VersionRun,
};
use crate::tasks::{Split, TaskKind};

fn text(words: &str) -> String {
    format!("{words} <b>\"\\\n\u{0}\u{1F980}</b>")
}

/// An episode whose every field has a value of its own, with floats that have no short decimal form.
fn full(id: &str) -> EpisodeRecord {
    EpisodeRecord {
        episode_id: id.to_owned(),
        group_id: "g1".to_owned(),
        env_id: "atlas".to_owned(),
        task_id: "t7".to_owned(),
        split: Split::Heldout,
        task_kind: TaskKind::Mixed,
        n_items: 3,
        seed: u64::MAX - 6,
        started_at_us: 1_700_000_000_123_457,
        duration_ms: 91,
        status: Status::Budget,
        error: Some(text("error")),
        failure_kind: Some("budget".to_owned()),
        answer: Some(text("answer")),
        scored: Some(Scored {
            reward: 0.1 + 0.2,
            advantage: Some(-1.0 / 3.0),
            success: true,
            r_perf: 2.0 / 3.0,
            r_parallel: 1.0,
            r_finish: 1e-300,
            lambda_parallel: 0.1,
            lambda_finish: 0.07,
            stage: "explore".to_owned(),
            reward_form: "k25".to_owned(),
            parts: vec![RewardPart {
                component: "r_perf".to_owned(),
                raw: 2.0 / 3.0,
                weight: 0.7,
                value: 1.4 / 3.0,
                source: "task".to_owned(),
            }],
        }),
        n_subagents: 2,
        n_assigned: 4,
        n_finished: 1,
        max_concurrency: 5,
        n_stages: 6,
        critical_steps: 8,
        total_steps: 9,
        critical_ms: 10,
        total_ms: 11,
        prompt_tokens: 12,
        completion_tokens: 13,
        policy_version_min: 14,
        policy_version_max: 15,
        agents: vec![AgentRecord {
            agent_idx: 1,
            parent_idx: Some(0),
            name: text("name"),
            system_prompt: text("system"),
            policy: "local:0c3f".to_owned(),
            trainable: false,
            stage: Some(2),
            assigned_prompt: text("prompt"),
            final_message: None,
            finish_reason: "deadline".to_owned(),
            finished: false,
            n_steps: 3,
            tokens_in: 4,
            tokens_out: 5,
            start_tick: 6,
            end_tick: 7,
            t_start_ms: 8,
            t_end_ms: 9,
            on_critical_path: true,
        }],
        steps: vec![StepRecord {
            agent_idx: 1,
            step_idx: 2,
            stage: 3,
            s_main: 4,
            messages_delta: vec![MessageRecord {
                role: "tool".to_owned(),
                content: text("content"),
                tool_call_id: Some("c1".to_owned()),
            }],
            tool_calls: vec![CallRecord {
                id: "c2".to_owned(),
                name: "search".to_owned(),
                arguments_json: "{\"query\":\"x\"}".to_owned(),
                t_start_ms: 5,
                t_end_ms: 6,
                error: true,
            }],
            finish_reason: "stop".to_owned(),
            temperature: 0.6,
            n_prompt: 7,
            n_completion: 8,
            t_queue_ms: 9,
            t_start_ms: 10,
            t_end_ms: 11,
            policy_version: 12,
        }],
        branches: vec![TokenBranch {
            branch_idx: 0,
            token_ids: vec![5, 0, 9],
            loss_mask: vec![false, true, true],
            logprobs: vec![0.0, -1.0 / 3.0, -f32::MIN_POSITIVE],
            step_offsets: vec![1],
            temperatures: vec![0.6],
            policy_versions: vec![VersionRun { start: 1, end: 3, version: 12 }],
            advantages: Some(vec![0.0, 0.1, 1e-8]),
        }],
    }
}

/// An episode that has as little as there can be.
fn bare(id: &str) -> EpisodeRecord {
    EpisodeRecord {
        error: None,
        failure_kind: None,
        answer: None,
        scored: None,
        agents: Vec::new(),
        steps: Vec::new(),
        branches: Vec::new(),
        ..full(id)
    }
}

fn log(name: &str) -> (TrajectoryLog, LogMeta, PathBuf) {
    let dir = std::env::temp_dir().join(format!("parl-log-{name}-{}", std::process::id()));
    let _ = crate::durable::remove(&dir);
    crate::durable::create_dir(&dir).unwrap();
    let meta = LogMeta {
        run_id: "r".to_owned(),
        attempt: 0,
        config_blake3: String::new(),
        git_commit: String::new(),
        model: String::new(),
        tokenizer_blake3: String::new(),
    };
    (TrajectoryLog::new(&dir), meta, dir)
}

#[test]
fn a_step_reads_back_as_it_was_written() {
    let (log, meta, dir) = log("back");
    let mut unadvised = full("e2");
    if let Some(scored) = &mut unadvised.scored {
        scored.advantage = None;
    }
    unadvised.branches[0].advantages = None;
    let records = [full("e0"), bare("e1"), unadvised];
    log.write_step(&meta, 4, &records).unwrap();
    assert_eq!(log.read_step(4).unwrap(), records);
    assert!(log.read_step(5).unwrap_err().to_string().contains("step_000005.json"));
    crate::durable::remove(&dir).unwrap();
}
