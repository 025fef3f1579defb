//! An episode as a conversation: which turn said what, which result answers which call, which call set which agent
//! to work. The exports and the terminal's tree are made from it.

use parl_rollout::swarm::ASSIGN;
use parl_rollout::trajectory::record::{AgentRecord, CallRecord, EpisodeRecord, MessageRecord, StepRecord};
use serde_json::Value;

/// One model call with what led to it and what came of it.
#[derive(Debug, Clone)]
pub struct Turn<'a> {
    /// Its row.
    pub step: &'a StepRecord,
    /// Messages before it that answer no call: openings, the demand for an answer.
    pub before: Vec<&'a MessageRecord>,
    /// What it said besides its calls.
    pub said: &'a str,
    /// Its calls.
    pub calls: Vec<Call<'a>>,
    /// Results that belong to the turn and to no call of it: what was wrong with a malformed one.
    pub remarks: Vec<&'a str>,
}

/// A tool call.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// Its row.
    pub record: &'a CallRecord,
    /// What came back; `None` when the agent ended before it read it.
    pub result: Option<&'a str>,
    /// The agent that it set to work.
    pub agent: Option<&'a AgentRecord>,
}

impl Call<'_> {
    /// The arguments; empty where the row holds no JSON object.
    pub fn arguments(&self) -> serde_json::Map<String, Value> {
        serde_json::from_str(&self.record.arguments_json).unwrap_or_default()
    }
}

/// The turns of one agent, in order.
pub fn turns(episode: &EpisodeRecord, agent_idx: u32) -> Vec<Turn<'_>> {
    let mut turns: Vec<Turn<'_>> = Vec::new();
    // The log keeps no link from a call to its agent, but both are in order within a stage.
    let mut waiting: Vec<&AgentRecord> =
        episode.agents.iter().filter(|a| a.parent_idx == Some(agent_idx)).collect();
    for step in episode.steps.iter().filter(|s| s.agent_idx == agent_idx) {
        let mut before = Vec::new();
        let mut said = "";
        for message in &step.messages_delta {
            match (message.role.as_str(), turns.last_mut()) {
                ("assistant", _) => said = &message.content,
                ("tool", Some(last)) => {
                    let id = message.tool_call_id.as_deref();
                    match last.calls.iter_mut().find(|call| Some(call.record.id.as_str()) == id) {
                        Some(call) => call.result = Some(&message.content),
                        None => last.remarks.push(&message.content),
                    }
                }
                _ => before.push(message),
            }
        }
        let calls = step.tool_calls.iter().map(|record| {
            let mut call = Call { record, result: None, agent: None };
            if record.name == ASSIGN {
                let arguments = call.arguments();
                let told = |name: &str| arguments.get(name).and_then(Value::as_str);
                let same = |a: &&AgentRecord| {
                    a.stage == Some(step.stage)
                        && told("agent") == Some(a.name.as_str())
                        && told("prompt") == Some(a.assigned_prompt.as_str())
                };
                call.agent = waiting.iter().position(same).map(|at| waiting.remove(at));
            }
            call
        });
        let calls = calls.collect();
        turns.push(Turn { step, before, said, calls, remarks: Vec::new() });
    }
    turns
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use parl_rollout::tasks::{Split, TaskKind};
    use parl_rollout::trajectory::record::{RewardPart, Scored, Status, TokenBranch, VersionRun};

    fn message(role: &str, content: &str, call: Option<&str>) -> MessageRecord {
        MessageRecord {
            role: role.to_owned(),
            content: content.to_owned(),
            tool_call_id: call.map(str::to_owned),
        }
    }

    fn call(id: &str, name: &str, arguments: &Value, from_ms: i64, to_ms: i64) -> CallRecord {
        CallRecord {
            id: id.to_owned(),
            name: name.to_owned(),
            arguments_json: arguments.to_string(),
            t_start_ms: from_ms,
            t_end_ms: to_ms,
            error: false,
        }
    }

    fn step(agent_idx: u32, step_idx: u32, stage: u32, ms: (i64, i64)) -> StepRecord {
        StepRecord {
            agent_idx,
            step_idx,
            stage,
            s_main: u32::from(agent_idx == 0),
            messages_delta: Vec::new(),
            tool_calls: Vec::new(),
            finish_reason: "stop".to_owned(),
            temperature: 1.0,
            n_prompt: 4,
            n_completion: 2,
            t_queue_ms: ms.0,
            t_start_ms: ms.0,
            t_end_ms: ms.1,
            policy_version: 7,
        }
    }

    fn agent(agent_idx: u32, prompt: &str, n_steps: u32, ms: (i64, i64)) -> AgentRecord {
        AgentRecord {
            agent_idx,
            parent_idx: Some(0),
            name: "scout".to_owned(),
            system_prompt: "finder".to_owned(),
            policy: "local:aa".to_owned(),
            trainable: false,
            stage: Some(0),
            assigned_prompt: prompt.to_owned(),
            final_message: Some(format!("found {prompt}")),
            finish_reason: "done".to_owned(),
            finished: true,
            n_steps,
            tokens_in: 5,
            tokens_out: 2,
            start_tick: 1,
            end_tick: 2,
            t_start_ms: ms.0,
            t_end_ms: ms.1,
            on_critical_path: false,
        }
    }

    /// Two stages: a scout is made and sent out twice for the same thing (and once in vain), then the answer. Its
    /// token ids: 1 to 4 open messages (system, user, assistant, tool), 9 ends one.
    pub(crate) fn episode() -> EpisodeRecord {
        let assign = serde_json::json!({"agent": "scout", "prompt": "x"});
        let mut first = step(0, 0, 0, (0, 10));
        first.messages_delta = vec![
            message("system", "lead", None),
            message("user", "x ?", None),
            message("assistant", "", None),
        ];
        first.tool_calls = vec![
            call(
                "0",
                "create_subagent",
                &serde_json::json!({"name": "scout", "system_prompt": "finder"}),
                10,
                10,
            ),
            call("1", "assign_task", &assign, 10, 10),
            call("2", "assign_task", &assign, 10, 10),
            call("3", "assign_task", &serde_json::json!({"agent": "nobody", "prompt": "x"}), 10, 10),
        ];
        let mut last = step(0, 1, 1, (40, 40));
        last.messages_delta = vec![
            message("tool", "ready", Some("0")),
            message("tool", "found x", Some("1")),
            message("tool", "failed down : x", Some("2")),
            message("tool", "error : unknown agent", Some("3")),
            message("tool", "error : malformed call", Some("99")),
            message("assistant", "it is x", None),
        ];
        let mut searching = step(1, 0, 0, (10, 20));
        searching.messages_delta = vec![
            message("system", "finder", None),
            message("user", "x", None),
            message("assistant", "", None),
        ];
        searching.tool_calls = vec![
            call("0", "search", &serde_json::json!({"query": "x"}), 20, 22),
            call("1", "search", &serde_json::json!({"query": "y"}), 20, 25),
        ];
        let mut told = step(1, 1, 0, (25, 30));
        told.messages_delta = vec![
            message("tool", "a page", Some("0")),
            message("tool", "no page", Some("1")),
            message("assistant", "found x", None),
        ];
        let mut long = agent(1, "x", 2, (10, 30));
        long.on_critical_path = true;
        let mut down = agent(2, "x", 0, (10, 40));
        (down.final_message, down.finished, down.finish_reason) = (None, false, "down".to_owned());
        let orchestrator = AgentRecord {
            parent_idx: None,
            name: "orchestrator".to_owned(),
            system_prompt: "lead".to_owned(),
            trainable: true,
            stage: None,
            final_message: Some("it is x".to_owned()),
            on_critical_path: true,
            ..agent(0, "x ?", 0, (0, 40))
        };
        EpisodeRecord {
            episode_id: "s000003-g0001-e0000".to_owned(),
            group_id: "s000003-g0001".to_owned(),
            env_id: "atlas".to_owned(),
            task_id: "t7".to_owned(),
            split: Split::Train,
            task_kind: TaskKind::Wide,
            n_items: 1,
            seed: 1,
            started_at_us: 1_700_000_000_000_000,
            duration_ms: 40,
            status: Status::Ok,
            error: None,
            failure_kind: None,
            answer: Some("it is x".to_owned()),
            scored: Some(Scored {
                reward: 1.05,
                advantage: Some(0.25),
                success: true,
                r_perf: 1.0,
                r_parallel: 0.5,
                r_finish: 0.0,
                lambda_parallel: 0.1,
                lambda_finish: 0.1,
                stage: "explore".to_owned(),
                reward_form: "k25".to_owned(),
                parts: [("r_perf", 1.0, 1.0), ("r_parallel", 0.5, 0.1)]
                    .map(|(component, raw, weight)| RewardPart {
                        component: component.to_owned(),
                        raw,
                        weight,
                        value: raw * weight,
                        source: "test".to_owned(),
                    })
                    .to_vec(),
            }),
            n_subagents: 1,
            n_assigned: 2,
            n_finished: 1,
            max_concurrency: 2,
            n_stages: 2,
            critical_steps: 4,
            total_steps: 4,
            critical_ms: 40,
            total_ms: 90,
            prompt_tokens: 15,
            completion_tokens: 6,
            policy_version_min: 7,
            policy_version_max: 7,
            agents: vec![orchestrator, long, down],
            steps: vec![first, last, searching, told],
            branches: vec![TokenBranch {
                branch_idx: 0,
                token_ids: vec![
                    1, 50, 9, 2, 51, 9, 3, 60, 61, 9, 4, 52, 9, 4, 53, 9, 4, 54, 9, 4, 55, 9, 4, 56, 9, 3,
                    62, 9,
                ],
                loss_mask: [vec![false; 7], vec![true; 2], vec![false; 17], vec![true; 2]].concat(),
                logprobs: [vec![0.0; 7], vec![-0.5, -0.1], vec![0.0; 17], vec![-0.25, -0.75]].concat(),
                step_offsets: vec![7, 26],
                temperatures: vec![1.0, 1.0],
                policy_versions: vec![VersionRun { start: 7, end: 28, version: 7 }],
                advantages: Some([vec![0.0; 7], vec![0.25; 2], vec![0.0; 17], vec![0.25; 2]].concat()),
            }],
        }
    }

    #[test]
    fn calls_find_their_results_and_their_agents() {
        let episode = episode();
        let lead = turns(&episode, 0);
        assert_eq!(lead.len(), 2);
        let [made, one, two, vain] = lead[0].calls.as_slice() else { panic!("{lead:?}") };
        assert_eq!((made.result, made.agent.map(|a| a.agent_idx)), (Some("ready"), None));
        // Equal assignments: the first call is the first agent.
        assert_eq!((one.result, one.agent.map(|a| a.agent_idx)), (Some("found x"), Some(1)));
        assert_eq!((two.result, two.agent.map(|a| a.agent_idx)), (Some("failed down : x"), Some(2)));
        assert_eq!((vain.result, vain.agent.map(|a| a.agent_idx)), (Some("error : unknown agent"), None));
        assert_eq!(lead[0].remarks, ["error : malformed call"]);
        assert_eq!(lead[0].before.iter().map(|m| m.content.as_str()).collect::<Vec<_>>(), ["lead", "x ?"]);
        assert!(lead[1].before.is_empty() && lead[1].said == "it is x");
        assert_eq!(turns(&episode, 1)[0].calls[1].result, Some("no page"));
        assert!(turns(&episode, 2).is_empty());
    }
}
