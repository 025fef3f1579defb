//! The rules of the swarm, one situation a test: turns are told in words, observations are read back.

use std::sync::Arc;

use parl_rewards::critical::{critical_steps, total_steps};

use super::driver;
use super::episode::Episode;
use super::*;
use crate::dialect::{Dialect, Mode};
use crate::policy::scripted::{Script, Scripted};
use crate::policy::{Identity, Policy, pair::Pair};
use crate::tasks::atlas::{AtlasConfig, AtlasWorld, vocabulary};
use crate::tasks::{Split, TaskKind, TaskSource};
use crate::tools::corpus::CorpusTools;
use crate::tools::{ToolOutcome, ToolSpec, Tools};
use crate::trajectory::log::{LogMeta, TrajectoryLog};
use crate::trajectory::record::{EpisodeRecord, Status};

fn dialect() -> Dialect {
    let mut words = vocabulary();
    words.extend(observation::words().into_iter().map(str::to_owned).filter(|w| !vocabulary().contains(w)));
    Dialect::of_words(&words).unwrap()
}

fn rules() -> Rules {
    let seat = |system: &str| SeatRules {
        system_prompt: system.to_owned(),
        mode: Mode::Instant,
        max_turns: 200,
        max_context_tokens: 4000,
        max_new_tokens: 2000,
    };
    let tool = |name: &str, parameter: &str| ToolSpec {
        name: name.into(),
        parameters: vec![parameter.into()],
        description: String::new(),
    };
    Rules {
        orchestrator: seat("lead"),
        subagent: seat("sub"),
        subagent_steps: 6,
        critical_steps: 14,
        on_exhaustion: OnExhaustion::Answer,
        max_concurrent: 100,
        max_assignments: 100,
        outage_rate: 0.0,
        tools: [tool("search", "query"), tool("open", "doc")].into(),
    }
}

fn task() -> Arc<Task> {
    Arc::new(Task {
        id: "t".into(),
        kind: TaskKind::Wide,
        split: Split::Train,
        n_items: 1,
        prompt: "colour of n1 amber falcon".into(),
        answer: "n1 teal".into(),
        metric: parl_rewards::metrics::Metric::ItemF1,
        parts: Vec::new(),
    })
}

fn spec(task: Arc<Task>, n: u64) -> EpisodeSpec {
    let (episode_id, group_id) = (format!("e{n:04}"), format!("g{n:04}"));
    EpisodeSpec { episode_id, group_id, env_id: "test".into(), run_seed: 7, stream_id: n, subagents: 0, task }
}

/// An episode that is told every turn and tool result.
struct Told<'a> {
    episode: Episode<'a>,
    dialect: &'a Dialect,
    open: Vec<Action>,
}

impl<'a> Told<'a> {
    fn new(rules: &'a Rules, dialect: &'a Dialect) -> Self {
        let (episode, open) = Episode::start(spec(task(), 1), rules, dialect, Moment::default()).unwrap();
        Self { episode, dialect, open }
    }

    fn step(&mut self, event: Event) {
        let actions = self.episode.step(event, Moment::default()).unwrap();
        self.open.extend(actions);
    }

    /// Gives `agent` its turn; every tool call that follows answers `ok`.
    fn turn(&mut self, agent: u32, text: &str, calls: &[Call]) -> &mut Self {
        self.ids(agent, self.dialect.encode_turn(text, calls).unwrap(), TurnEnd::Stop)
    }

    fn ids(&mut self, agent: u32, ids: Vec<u32>, end: TurnEnd) -> &mut Self {
        let at = self.open.iter().position(|a| matches!(a, Action::Sample { agent: b, .. } if *b == agent));
        self.open.remove(at.unwrap_or_else(|| panic!("agent {agent} has no open turn: {:?}", self.open)));
        let n = ids.len();
        let versions = vec![(0, n as u32, 3)];
        let turn = Turn {
            ids,
            logprobs: vec![-0.5; n],
            versions,
            temperature: 1.0,
            end,
            started: Moment::default(),
        };
        self.step(Event::Turn { agent, turn });
        while let Some(at) = self.open.iter().position(|a| matches!(a, Action::Call { .. })) {
            let Action::Call { agent, call, .. } = self.open.remove(at) else { unreachable!() };
            self.step(Event::Tool { agent, call, outcome: ToolOutcome::Ok("ok".into()) });
        }
        self
    }

    fn last(&self, agent: u32) -> &str {
        &self.episode.messages(agent).last().unwrap().text
    }

    fn record(self) -> EpisodeRecord {
        let identity = |name: &str| Identity { name: name.into(), trainable: false };
        let seats = finish::Seats { orchestrator: identity("a"), subagent: identity("b") };
        self.episode.into_record(&seats, 0, false).unwrap()
    }
}

fn create(name: &str) -> Call {
    Call::new(CREATE, &[name, "finder"])
}

fn assign(name: &str, prompt: &str) -> Call {
    Call::new(ASSIGN, &[name, prompt])
}

fn search() -> Call {
    Call::new("search", &["n1"])
}

#[test]
fn every_mistake_is_an_error_observation_and_costs_a_step() {
    let (rules, dialect) = (Rules { max_concurrent: 2, ..rules() }, dialect());
    let cases: [(Vec<Call>, &str); 9] = [
        (vec![Call::new("fly", &["x"])], "error : unknown tool"),
        (vec![Call::new("search", &[])], "error : wrong arguments"),
        (vec![Call::new("search", &["a", "b"])], "error : wrong arguments"),
        (vec![assign("nobody", "x")], "error : unknown agent"),
        (vec![create("a"), create("a")], "error : duplicate name"),
        (vec![create(" ")], "error : empty name"),
        (vec![Call::new(CREATE, &["a"])], "error : wrong arguments"),
        (vec![search(), create("a")], "error : mixed turn"),
        (vec![Call::new(ASSIGN, &["a"])], "error : wrong arguments"),
    ];
    for (calls, wanted) in cases {
        let mut told = Told::new(&rules, &dialect);
        told.turn(0, "", &calls);
        assert_eq!(told.last(0), wanted, "{calls:?}");
        told.turn(0, "n1 teal", &[]);
        let record = told.record();
        assert_eq!((record.status, record.critical_steps), (Status::Ok, 2), "{calls:?}");
    }
    let mut told = Told::new(&rules, &dialect);
    told.turn(0, "", &[create("a"), assign("a", "x"), assign("a", "y"), assign("a", "z")]);
    told.turn(1, "done", &[]).turn(2, "done", &[]);
    assert_eq!(told.last(0), "error : too many agents");
}

#[test]
fn a_malformed_turn_is_answered_and_masked_no_differently() {
    let (rules, dialect) = (rules(), dialect());
    let mut told = Told::new(&rules, &dialect);
    let mut ids = dialect.encode_turn("", &[search()]).unwrap();
    let end = ids.pop().unwrap();
    ids.pop();
    ids.push(end);
    told.ids(0, ids, TurnEnd::Stop);
    assert_eq!(told.last(0), "error : malformed call");
    told.turn(0, "n1 teal", &[]);
    let record = told.record();
    assert_eq!((record.critical_steps, record.total_steps), (2, 2));
    let branch = &record.branches[0];
    assert!(branch.step_offsets.iter().all(|at| branch.loss_mask[*at as usize]));
}

#[test]
fn masks_cover_what_was_drawn_and_nothing_else() {
    let (rules, dialect) = (rules(), dialect());
    let mut told = Told::new(&rules, &dialect);
    told.turn(0, "", &[search()]);
    // Cut off before the end token: the template closes the turn, outside of the mask.
    let answer = dialect.encode_text("n1 teal").unwrap();
    told.ids(0, answer.clone(), TurnEnd::Length);
    let record = told.record();
    assert_eq!((record.status, record.failure_kind.as_deref()), (Status::Truncated, Some("length")));
    let branch = &record.branches[0];
    let drawn: Vec<u32> =
        branch.token_ids.iter().zip(&branch.loss_mask).filter(|(_, m)| **m).map(|(id, _)| *id).collect();
    assert_eq!(drawn, [dialect.encode_turn("", &[search()]).unwrap(), answer].concat());
    assert_eq!(branch.token_ids.last(), Some(&dialect.special().end));
    assert!(branch.logprobs.iter().zip(&branch.loss_mask).all(|(l, m)| l.is_sign_negative() == *m));
    let covered: u32 = branch.policy_versions.iter().map(|run| run.end - run.start).sum();
    assert_eq!(covered as usize, drawn.len());
}

#[test]
fn a_stage_costs_its_longest_sub_agent_and_the_budget_is_hard() {
    let (rules, dialect) = (Rules { critical_steps: 6, ..rules() }, dialect());
    let mut told = Told::new(&rules, &dialect);
    told.turn(0, "", &[create("a"), assign("a", "x"), assign("a", "y")]);
    told.turn(1, "", &[search()]).turn(1, "n1 teal", &[]);
    for _ in 0..5 {
        told.turn(2, "", &[search()]);
    }
    // Five steps fit (1 + 5 = 6); a sixth does not, though the sub-agent's own limit is 6.
    told.turn(2, "", &[search()]);
    assert_eq!(told.episode.messages(0)[5].text, "failed step limit : y");
    assert!(told.episode.forced(0) && told.last(0) == observation::ANSWER_NOW);
    told.turn(0, "n1 teal", &[]);
    let record = told.record();
    assert_eq!((record.status, record.critical_steps, record.total_steps), (Status::Budget, 7, 8));
    assert_eq!((record.n_assigned, record.n_finished, record.max_concurrency), (2, 1, 2));
    let last = record.steps.iter().rfind(|s| s.agent_idx == 0).unwrap();
    assert_eq!(last.finish_reason, "forced");
    let critical: Vec<bool> = record.agents.iter().map(|a| a.on_critical_path).collect();
    assert_eq!(critical, [true, false, true]);
}

#[test]
fn direct_calls_beyond_the_budget_are_refused() {
    let (rules, dialect) = (Rules { critical_steps: 5, ..rules() }, dialect());
    let mut told = Told::new(&rules, &dialect);
    told.turn(0, "", &vec![search(); 24]);
    let results: Vec<&str> = told.episode.messages(0)[3..27].iter().map(|m| m.text.as_str()).collect();
    assert_eq!(results.iter().filter(|r| **r == "ok").count(), 5);
    assert_eq!(results.iter().filter(|r| **r == "error : step budget").count(), 19);
    told.turn(0, "n1 teal", &[]);
    assert_eq!(told.record().critical_steps, 6);
    let fail = Rules { on_exhaustion: OnExhaustion::Fail, ..rules };
    let mut told = Told::new(&fail, &dialect);
    told.turn(0, "", &vec![search(); 24]);
    assert_eq!(told.record().failure_kind.as_deref(), Some("budget"));
}

#[test]
fn sub_agents_fail_visibly_and_their_stage_goes_on() {
    let (rules, dialect) = (rules(), dialect());
    let mut told = Told::new(&rules, &dialect);
    told.turn(0, "", &[create("a"), assign("a", "x"), assign("a", "y"), assign("a", "z"), assign("a", "w")]);
    told.turn(1, "", &[create("b")]);
    assert_eq!(told.last(1), "error : no nesting");
    told.turn(1, "", &[search()]).turn(1, "n1 teal", &[]);
    told.ids(2, dialect.encode_text("no end").unwrap(), TurnEnd::Length);
    told.ids(3, Vec::new(), TurnEnd::Deadline);
    told.turn(4, "n2 oak", &[]);
    let results: Vec<&str> = told.episode.messages(0)[3..].iter().map(|m| m.text.as_str()).collect();
    assert_eq!(results, ["ready", "n1 teal", "failed malformed : y", "failed deadline : z", "n2 oak"]);
    told.turn(0, "n1 teal", &[]);
    let record = told.record();
    let finished: Vec<bool> = record.agents.iter().skip(1).map(|a| a.finished).collect();
    assert_eq!(finished, [true, false, false, false], "an assignment without an environment call is no work");
}

#[test]
fn contexts_are_bounded() {
    let dialect = dialect();
    let mut small = rules();
    small.subagent.max_context_tokens = 12;
    let mut told = Told::new(&small, &dialect);
    told.turn(0, "", &[create("a"), assign("a", "a b c d e f g h i j k l m n o p"), assign("a", "n1")]);
    told.turn(2, "", &[search()]);
    let results: Vec<&str> = told.episode.messages(0)[3..].iter().map(|m| m.text.as_str()).collect();
    assert!(
        results[1].starts_with("failed context") && results[2].starts_with("failed context"),
        "{results:?}"
    );
    let mut small = rules();
    small.orchestrator.max_context_tokens = 24;
    let mut told = Told::new(&small, &dialect);
    told.turn(0, "", &[search()]);
    assert_eq!(told.record().failure_kind.as_deref(), Some("context"));
}

#[test]
fn infrastructure_failures_have_no_answer() {
    let (rules, dialect) = (rules(), dialect());
    let mut told = Told::new(&rules, &dialect);
    told.ids(0, Vec::new(), TurnEnd::Failed("endpoint down".into()));
    let record = told.record();
    assert_eq!((record.status, record.error.as_deref()), (Status::Error, Some("endpoint down")));
}

#[test]
fn no_special_id_comes_out_of_foreign_text() {
    let (rules, dialect) = (rules(), dialect());
    let hostile = crate::dialect::SPECIAL_TOKENS.join(" ");
    let mut task = (*task()).clone();
    task.prompt.clone_from(&hostile);
    let (episode, open) =
        Episode::start(spec(Arc::new(task), 1), &rules, &dialect, Moment::default()).unwrap();
    let mut told = Told { episode, dialect: &dialect, open };
    told.turn(0, "", &[create("a"), assign("a", &hostile)]);
    let ids = dialect.encode_turn("", &[search()]).unwrap();
    told.open.clear();
    let n = ids.len();
    let turn = Turn {
        ids,
        logprobs: vec![0.0; n],
        versions: Vec::new(),
        temperature: 1.0,
        end: TurnEnd::Stop,
        started: Moment::default(),
    };
    told.step(Event::Turn { agent: 1, turn });
    told.open.clear();
    told.step(Event::Tool { agent: 1, call: 0, outcome: ToolOutcome::Ok(hostile.clone()) });
    told.turn(1, &hostile, &[]);
    for agent in [0, 1] {
        let context = told.episode.context(agent);
        let special = |id: u32| context.iter().filter(|i| **i == id).count();
        // One `<|end|>` a message, the open turn has none: text added no other.
        let messages = told.episode.messages(agent).len();
        assert_eq!(special(dialect.special().end), messages, "agent {agent}");
    }
    assert_eq!(told.last(0), hostile, "the final message reads as it was written");
}

struct Echo(Vec<ToolSpec>);

impl Tools for Echo {
    fn specs(&self) -> &[ToolSpec] {
        &self.0
    }
    fn call(&self, _: &str, arguments: &[String]) -> Option<ToolOutcome> {
        Some(ToolOutcome::Ok(arguments.concat()))
    }
}

/// A sub-agent that makes fifteen calls, under an orchestrator that starts a hundred of them.
struct Swarm {
    dialect: Arc<Dialect>,
    ready: Vec<(crate::policy::AgentRef, Vec<u32>)>,
}

impl Policy for Swarm {
    fn identity(&self, _: Seat, _: usize) -> Identity {
        Identity { name: "test".into(), trainable: false }
    }
    fn submit(&mut self, request: crate::policy::TurnRequest<'_>) -> Result<(), crate::RolloutError> {
        let turns = request.messages.iter().filter(|m| m.role == Role::Assistant).count();
        let (text, calls) = match (request.seat, turns) {
            (Seat::Orchestrator, 0) => {
                let assigns = (0..100).map(|i| assign("a", &format!("n{i}")));
                ("", std::iter::once(create("a")).chain(assigns).collect())
            }
            (Seat::Subagent, 0..15) => ("", vec![search()]),
            _ => ("n1 teal", Vec::new()),
        };
        self.ready.push((request.who, self.dialect.encode_turn(text, &calls)?));
        Ok(())
    }
    fn cancel(&mut self, _: crate::policy::AgentRef) {}
    fn tick(&mut self, now: Moment) -> Result<Vec<(crate::policy::AgentRef, Turn)>, crate::RolloutError> {
        let turn = |ids: Vec<u32>| Turn {
            logprobs: vec![0.0; ids.len()],
            versions: Vec::new(),
            temperature: 0.0,
            end: TurnEnd::Stop,
            started: now,
            ids,
        };
        Ok(self.ready.drain(..).map(|(who, ids)| (who, turn(ids))).collect())
    }
}

fn run(
    rules: &Rules,
    dialect: &Dialect,
    tools: &dyn Tools,
    policy: &mut dyn Policy,
    specs: Vec<EpisodeSpec>,
) -> Vec<EpisodeRecord> {
    let stage = driver::Stage {
        rules,
        dialect,
        tools,
        tool_fault_rate: 0.02,
        max_concurrent_episodes: 16,
        keep_subagent_contexts: false,
        clock_ms: &|| 0,
        epoch_us: 0,
    };
    driver::run(&stage, policy, specs, &mut |_| {}).unwrap()
}

#[test]
fn a_hundred_sub_agents_and_fifteen_hundred_steps() {
    let dialect = Arc::new(dialect());
    let mut rules = Rules { subagent_steps: 15, critical_steps: 100, ..rules() };
    rules.orchestrator.max_context_tokens = 20_000;
    let mut policy = Swarm { dialect: Arc::clone(&dialect), ready: Vec::new() };
    let tools = Echo(rules.tools.to_vec());
    let records = run(&rules, &dialect, &tools, &mut policy, vec![spec(task(), 1)]);
    let record = &records[0];
    assert_eq!((record.n_assigned, record.max_concurrency, record.n_finished), (100, 100, 100));
    assert_eq!((record.critical_steps, record.total_steps), (1 + 15 + 1, 1 + 1500 + 1));
    let stages: Vec<_> = record.stages().into_values().collect();
    assert_eq!((critical_steps(&stages), total_steps(&stages)), (1 + 15 + 1, 1 + 1500 + 1));
}

fn atlas(script: Script, rules: &Rules, split: Split, n: u64) -> (Vec<EpisodeRecord>, Vec<Arc<Task>>) {
    let world = AtlasWorld::new(&AtlasConfig::default()).unwrap();
    let tools = CorpusTools::new(world.documents(), 1).unwrap();
    let dialect = Arc::new(dialect());
    let seat = || Box::new(Scripted::new(script, Arc::clone(&dialect)));
    let mut policy = Pair {
        orchestrator: seat(),
        subagent: Box::new(Scripted::new(Script::Serial, Arc::clone(&dialect))),
    };
    let tasks: Vec<Arc<Task>> = (0..n).map(|i| Arc::new(world.task(split, i))).collect();
    let specs = tasks.iter().zip(0..).map(|(task, i)| spec(Arc::clone(task), i)).collect();
    (run(rules, &dialect, &tools, &mut policy, specs), tasks)
}

fn success(records: &[EpisodeRecord], tasks: &[Arc<Task>]) -> f64 {
    let right = records
        .iter()
        .zip(tasks)
        .filter(|(r, t)| r.answer.as_deref().is_some_and(|a| t.metric.score(a, &t.answer).success));
    right.count() as f64 / records.len() as f64
}

#[test]
fn scripted_experts_solve_the_world_and_the_budget_divides_them() {
    let lifted = Rules { critical_steps: 1000, ..rules() };
    let flaky = Rules { outage_rate: 0.05, ..rules() };
    let (serial, tasks) = atlas(Script::Serial, &lifted, Split::Heldout, 120);
    assert!(success(&serial, &tasks) >= 1.0, "{}", success(&serial, &tasks));
    let (cut, _) = atlas(Script::Serial, &rules(), Split::Heldout, 120);
    let (parallel, _) = atlas(Script::Parallel, &flaky, Split::Heldout, 120);
    assert!(success(&parallel, &tasks) > 0.97, "{}", success(&parallel, &tasks));
    let alone = success(&cut, &tasks);
    assert!((0.3..0.75).contains(&alone), "{alone}");
    let (spam, _) = atlas(Script::Spammer, &rules(), Split::Heldout, 20);
    assert!(spam.iter().all(|r| r.n_assigned == 8 && r.n_finished == 0));
    let (spurious, _) =
        atlas(Script::Spurious, &Rules { critical_steps: 15, ..rules() }, Split::Heldout, 120);
    assert!(spurious.iter().all(|r| r.n_assigned == 4 && r.agents[1..].iter().all(|a| a.n_steps == 0)));
    // One step dearer than working alone, and no better.
    assert!((success(&spurious, &tasks) - alone).abs() < 1e-12, "{}", success(&spurious, &tasks));
    let (random, _) = atlas(Script::Random, &rules(), Split::Heldout, 60);
    assert!(random.iter().all(|r| r.critical_steps <= 15));
    for (record, task) in parallel.iter().zip(&tasks) {
        match task.kind {
            TaskKind::Deep => assert_eq!(record.n_assigned, 0),
            _ if record.n_items > 1 => assert!(record.n_assigned >= record.n_items),
            _ => {}
        }
    }
}

#[test]
fn steps_are_sealed_verified_and_set_aside() {
    let dir = std::env::temp_dir().join(format!("parl-log-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let (records, _) = atlas(Script::Parallel, &rules(), Split::Train, 12);
    let meta = LogMeta {
        run_id: "r".into(),
        attempt: 0,
        config_blake3: "c".into(),
        git_commit: "unknown".into(),
        model: "m".into(),
        tokenizer_blake3: "t".into(),
    };
    let log = TrajectoryLog::new(&dir);
    let first = log.write_step(&meta, 0, &records).unwrap();
    assert!(log.write_step(&meta, 0, &records).unwrap_err().to_string().contains("sealed already"));
    let second = log.write_step(&meta, 1, &records).unwrap();
    assert_eq!(first.canonical_blake3, second.canonical_blake3);
    let rows: Vec<u64> = first.files.iter().map(|f| f.rows).collect();
    assert_eq!((rows[0], rows[3]), (12, 12));
    assert_eq!(log.sealed_steps().unwrap(), [0, 1]);
    assert_eq!(log.verify(0).unwrap(), first);

    // Every kind of damage is seen: a flipped bit, a cut, a file of another step, one that is gone.
    let root = dir.join("trajectories/v1");
    let manifest = root.join("manifests/step_000000.json");
    for path in first.files.iter().map(|f| root.join(&f.path)).chain([manifest]) {
        let good = std::fs::read(&path).unwrap();
        for at in [0, good.len() / 2, good.len() - 2] {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&path, bad).unwrap();
            assert!(log.verify(0).is_err(), "{path:?} at {at}");
        }
        std::fs::write(&path, &good[..good.len() - 3]).unwrap();
        assert!(log.verify(0).is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(log.verify(0).is_err());
        std::fs::write(&path, good).unwrap();
    }
    log.verify(0).unwrap();

    // An unsealed step and those after the checkpoint leave the tables.
    std::fs::create_dir_all(root.join("agents/step_000002")).unwrap();
    std::fs::write(root.join("agents/step_000002/part-r0000-000.parquet"), b"half").unwrap();
    let quarantine = dir.join("quarantine/attempt_1");
    assert_eq!(log.quarantine_after(Some(0), &quarantine).unwrap(), [1, 2]);
    assert_eq!(log.sealed_steps().unwrap(), [0]);
    log.verify(0).unwrap();
    assert!(
        quarantine.join("agents/step_000002").is_dir()
            && quarantine.join("manifests/step_000001.json").is_file()
    );
    assert!(!root.join("tokens/step_000001").exists());
    std::fs::remove_dir_all(dir).unwrap();
}
