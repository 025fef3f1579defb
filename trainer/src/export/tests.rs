use parl_rollout::trajectory::completions::Said;
use serde_json::{Value, json};

use super::*;
use crate::transcript::tests::episode;

const ORIGIN: Origin<'static> = Origin { run_id: "r", step: 3 };

/// Roles' ids in the tokens of the episode by hand.
fn opens(id: u32) -> bool {
    (1..=4).contains(&id)
}

/// What Perfetto asks of slices and flows: on a thread slices nest, and an arrow's ends are in slices, the one at its
/// point after the one at its tail.
fn check_trace(trace: &Value) {
    let events = trace["traceEvents"].as_array().unwrap();
    let number = |e: &Value, key: &str| e[key].as_i64().unwrap_or_else(|| panic!("{key} in {e}"));
    let thread = |e: &Value| (number(e, "pid"), number(e, "tid"));
    let slices: Vec<&Value> = events.iter().filter(|e| e["ph"] == "X").collect();
    for (at, a) in slices.iter().enumerate() {
        let (a0, a1) = (number(a, "ts"), number(a, "ts") + number(a, "dur"));
        assert!(a1 > a0, "{a}");
        for b in slices[at + 1..].iter().filter(|b| thread(b) == thread(a)) {
            let (b0, b1) = (number(b, "ts"), number(b, "ts") + number(b, "dur"));
            assert!(b0 >= a0 || b1 <= a0, "an earlier slice comes later in the file: {a} {b}");
            assert!(b0 >= a1 || b1 <= a1, "slices cross: {a} {b}");
        }
    }
    let inside = |e: &Value| {
        let holds = |s: &&&Value| {
            thread(s) == thread(e) && (0..number(s, "dur")).contains(&(number(e, "ts") - number(s, "ts")))
        };
        slices.iter().find(holds).unwrap_or_else(|| panic!("no slice holds {e}"));
    };
    for from in events.iter().filter(|e| e["ph"] == "s") {
        let points: Vec<&Value> = events.iter().filter(|e| e["ph"] == "f" && e["id"] == from["id"]).collect();
        assert!(points.len() == 1 && points[0]["name"] == from["name"], "{from}");
        assert!(number(points[0], "ts") >= number(from, "ts"), "{from} {}", points[0]);
        inside(from);
        inside(points[0]);
    }
}

#[test]
fn a_trace_has_agents_as_threads_flows_and_the_critical_path() {
    let mut second = episode();
    second.started_at_us += 5;
    let trace = chrome_trace::trace(&[episode(), second], ORIGIN);
    check_trace(&trace);
    let events = trace["traceEvents"].as_array().unwrap();
    let named = |kind: &str, pid: u64| -> Vec<&str> {
        let of = events.iter().filter(|e| e["name"] == kind && e["pid"] == pid);
        of.map(|e| e["args"]["name"].as_str().unwrap()).collect()
    };
    assert_eq!(named("thread_name", 2), ["critical path", "0 orchestrator", "1 scout", "2 scout"]);
    assert!(named("process_name", 1)[0].contains("wide t7 reward 1.050 success"));
    let slices = |pid: u64, tid: u64| -> Vec<(&str, i64, i64)> {
        let of = events.iter().filter(|e| e["ph"] == "X" && e["pid"] == pid && e["tid"] == tid);
        of.map(|e| (e["name"].as_str().unwrap(), e["ts"].as_i64().unwrap(), e["dur"].as_i64().unwrap()))
            .collect()
    };
    // Both calls of the sub-agent run side by side, the longer around the shorter.
    let searching = [("scout", 10_000, 20_000), ("turn 0", 10_000, 10_000)];
    let calls = [("search", 20_000, 5_000), ("search", 20_000, 2_000), ("turn 1", 25_000, 5_000)];
    assert_eq!(slices(1, 5), [&searching[..], &calls].concat());
    assert_eq!(slices(2, 9)[0], ("scout", 10_005, 20_000), "episodes share a clock");
    let path = [("stage 0", 0, 40_000), ("orchestrator", 0, 10_000), ("1 scout", 10_000, 20_000)];
    assert_eq!(slices(1, 3), [&path[..], &[("stage 1", 40_000, 1), ("orchestrator", 40_000, 1)]].concat());
    let flows = |ph: &str| events.iter().filter(|e| e["ph"] == ph && e["pid"] == 1).count();
    assert_eq!((flows("s"), flows("f")), (4, 4), "two sent out, two back");
}

#[test]
fn a_trace_stands_when_nothing_takes_time() {
    let mut record = episode();
    for step in &mut record.steps {
        (step.t_queue_ms, step.t_start_ms, step.t_end_ms) = (0, 0, 0);
        for call in &mut step.tool_calls {
            (call.t_start_ms, call.t_end_ms) = (0, 0);
        }
    }
    for agent in &mut record.agents {
        (agent.t_start_ms, agent.t_end_ms) = (0, 0);
    }
    check_trace(&chrome_trace::trace(&[record], ORIGIN));
}

#[test]
fn a_trajectory_refers_to_those_of_its_sub_agents() {
    let whole = atif::trajectory(&episode(), ORIGIN);
    let sources: Vec<&str> =
        whole["steps"].as_array().unwrap().iter().map(|s| s["source"].as_str().unwrap()).collect();
    assert_eq!(sources, ["system", "user", "agent", "agent"]);
    assert_eq!(whole["steps"][3]["step_id"], 4);
    let first = &whole["steps"][2];
    assert_eq!(first["timestamp"], "2023-11-14T22:13:20.01Z");
    assert_eq!(first["metrics"]["prompt_token_ids"], json!([1, 50, 9, 2, 51, 9, 3]));
    assert_eq!(first["metrics"]["completion_token_ids"], json!([60, 61]));
    assert_eq!(first["metrics"]["logprobs"], json!([-0.5, -0.1_f32]));
    let results = first["observation"]["results"].as_array().unwrap();
    assert_eq!(results.len(), 5);
    assert_eq!(results[1]["source_call_id"], "1");
    assert_eq!(results[1]["subagent_trajectory_ref"], json!([{"trajectory_id": "s000003-g0001-e0000/1"}]));
    assert!(results[4].get("source_call_id").is_none());
    let subs = whole["subagent_trajectories"].as_array().unwrap();
    let ids: Vec<&Value> = subs.iter().map(|s| &s["trajectory_id"]).collect();
    assert_eq!(ids, ["s000003-g0001-e0000/1", "s000003-g0001-e0000/2"]);
    assert!(subs[0]["steps"][2]["metrics"].get("logprobs").is_none(), "sub-agents are frozen");
    // The second never spoke: what it was told is its trajectory.
    assert_eq!(subs[1]["steps"].as_array().unwrap().len(), 2);
    assert_eq!(whole["extra"]["rewards"]["r_parallel"]["value"], 0.05);
}

#[test]
fn tokens_stand_with_the_messages_that_they_are_of() {
    let mut record = episode();
    let line = verifiers::episode(&record, ORIGIN, &opens);
    let traces = line["traces"].as_array().unwrap();
    assert_eq!(
        traces.iter().map(|t| t["info"]["agent_idx"].as_i64().unwrap()).collect::<Vec<_>>(),
        [1, 2, 0]
    );
    let nodes = traces[2]["nodes"].as_array().unwrap();
    let ids = |node: &Value| node["token_ids"].clone();
    let wanted = [
        json!([1, 50, 9]),
        json!([2, 51, 9]),
        json!([3, 60, 61]),
        // The end that the template gave to the cut turn, and the first result.
        json!([9, 4, 52, 9]),
        json!([4, 53, 9]),
        json!([4, 54, 9]),
        json!([4, 55, 9]),
        json!([4, 56, 9]),
        json!([3, 62, 9]),
    ];
    assert_eq!(nodes.iter().map(ids).collect::<Vec<_>>(), wanted);
    assert_eq!(nodes[2]["mask"], json!([false, true, true]));
    assert_eq!(
        (&nodes[8]["logprobs"], &nodes[8]["advantages"]),
        (&json!([-0.25, -0.75]), &json!([0.25, 0.25]))
    );
    assert_eq!((&nodes[0]["parent"], &nodes[8]["parent"]), (&Value::Null, &json!(7)));
    assert_eq!(traces[2]["calls"][1]["node"], 8);
    assert_eq!(traces[2]["rewards"]["r_parallel"], json!({"score": 0.5, "weight": 0.1}));
    assert!(traces[0]["agent"]["trainable"] == false && traces[0]["nodes"][0].get("token_ids").is_none());
    assert_eq!(traces[1]["errors"][0]["message"], "down");
    // A context that the messages do not tell of is left out, whole.
    record.branches[0].token_ids[3] = 77;
    let line = verifiers::episode(&record, ORIGIN, &opens);
    assert!(line["traces"][2]["nodes"].as_array().unwrap().iter().all(|n| n.get("token_ids").is_none()));
}

#[test]
fn a_completion_begins_where_the_model_first_spoke() {
    let row = trl_parquet::row(&episode(), ORIGIN);
    assert_eq!(row.prompt, [Said::plain("system", "lead"), Said::plain("user", "x ?")]);
    let roles: Vec<&str> = row.completion.iter().map(|m| m.role.as_str()).collect();
    assert_eq!(roles, ["assistant", "tool", "tool", "tool", "tool", "tool", "assistant"]);
    assert_eq!(row.completion[0].tool_calls.len(), 4);
    assert_eq!(row.completion[2].name.as_deref(), Some("assign_task"));
    assert_eq!((row.step, row.advantage, row.reward), (3, Some(0.25), Some(1.05)));
    assert_eq!(row.rewards, [("r_perf".to_owned(), 1.0), ("r_parallel".to_owned(), 0.5)]);
}

#[test]
fn a_file_is_named_by_plain_ids_only() {
    let mut record = episode();
    assert_eq!(file_name(&record).unwrap(), "s000003-g0001-e0000");
    for id in ["", "../../x", "a/b", "a\0", "."] {
        record.episode_id = id.to_owned();
        assert!(file_name(&record).unwrap_err().to_string().contains("no name for a file"), "{id}");
    }
}
