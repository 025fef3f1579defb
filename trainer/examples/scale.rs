//! What the swarm and the engine cost beside the model, and what sharing prefixes saves: one JSON line.
//!
//! `cargo run --release --workspace --example scale`; scripts/bench/scale writes it down.
#![expect(clippy::print_stdout, reason = "the line is the program's output")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parl_kernels::KernelError;
use parl_kernels::backend::{Backend, Drawn, InstallReport, Output, Plan, Sampling, SetId, Ticket};
use parl_kernels::cpu::CpuBackend;
use parl_kernels::rng::{RngKey, Stream};
use parl_kernels::shape::ModelShape;
use parl_kernels::weights::WeightSet;
use parl_rollout::RolloutError;
use parl_rollout::dialect::{Call, Dialect, Role};
use parl_rollout::engine::{Begun, Engine, EngineConfig, Request, RequestId};
use parl_rollout::policy::scripted::Script;
use parl_rollout::policy::{AgentRef, Identity, Policy, TurnRequest};
use parl_rollout::swarm::driver::{self, Stage};
use parl_rollout::swarm::{EpisodeSpec, Moment, Rules, Seat, Turn, TurnEnd};
use parl_trainer::config::Config;
use parl_trainer::run::environment::Environment;
use parl_trainer::run::seats;
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

const AGENTS: u64 = 100;
const STEPS_OF_AN_AGENT: u64 = 15;
const EPISODES: u32 = 1000;
/// Ticks that a turn takes at most, where latencies are simulated.
const SLOWEST_TURN: u64 = 20;

/// A backend that computes nothing: what is left is the engine's own time.
struct Nothing;

impl Backend for Nothing {
    fn install(&mut self, _: SetId, _: WeightSet) -> Result<InstallReport, KernelError> {
        Ok(InstallReport::default())
    }
    fn release(&mut self, _: SetId) {}
    fn reserve_kv(&mut self, _: u32, _: u32) -> Result<(), KernelError> {
        Ok(())
    }
    fn kv_block_bytes(&self) -> u64 {
        0
    }
    fn submit(&mut self, plan: &Plan) -> Result<Ticket, KernelError> {
        // The rows of a plan, for `collect`.
        Ok(Ticket(plan.groups.iter().fold(0, |n, group| n << 32 | group.rows.len() as u64)))
    }
    fn collect(&mut self, ticket: Ticket) -> Result<Output, KernelError> {
        let rows = (ticket.0 & u64::from(u32::MAX)) as usize;
        Ok(Output { draws: vec![vec![Some(Drawn { id: 7, logprob: -1.0 }); rows]] })
    }
    fn logits(&mut self, _: &Plan) -> Result<Vec<Vec<Vec<Vec<f32>>>>, KernelError> {
        Ok(Vec::new())
    }
}

/// A hundred sub-agents under one orchestrator; each makes its searches, then reports.
struct Hundred {
    dialect: Arc<Dialect>,
    ready: Vec<(AgentRef, Vec<u32>)>,
}

/// Another policy's turns, each some ticks later.
struct Slow {
    policy: Box<dyn Policy>,
    tick: u64,
    keys: HashMap<AgentRef, (RngKey, u32)>,
    later: Vec<(u64, AgentRef, Turn)>,
}

fn turn(ids: Vec<u32>, now: Moment) -> Turn {
    let n = ids.len();
    Turn {
        ids,
        logprobs: vec![0.0; n],
        versions: Vec::new(),
        temperature: 0.0,
        end: TurnEnd::Stop,
        started: now,
    }
}

impl Policy for Hundred {
    fn identity(&self, _: Seat, _: usize) -> Identity {
        Identity { name: "scale".into(), trainable: false }
    }
    fn submit(&mut self, request: TurnRequest<'_>) -> Result<(), RolloutError> {
        let turns = request.messages.iter().filter(|m| m.role == Role::Assistant).count() as u64;
        let (text, calls) = match (request.seat, turns) {
            (Seat::Orchestrator, 0) => {
                let assign = |i| Call::new("assign_task", &["scout", &format!("n{}", i % 48 + 1)]);
                let create = Call::new("create_subagent", &["scout", "finder"]);
                ("", std::iter::once(create).chain((0..AGENTS).map(assign)).collect())
            }
            (Seat::Subagent, n) if n < STEPS_OF_AN_AGENT => {
                ("", vec![Call::new("search", &["n1 bold garden"])])
            }
            _ => ("n1 teal", Vec::new()),
        };
        self.ready.push((request.who, self.dialect.encode_turn(text, &calls)?));
        Ok(())
    }
    fn cancel(&mut self, _: AgentRef) {}
    fn tick(&mut self, now: Moment) -> Result<Vec<(AgentRef, Turn)>, RolloutError> {
        Ok(self.ready.drain(..).map(|(who, ids)| (who, turn(ids, now))).collect())
    }
}

impl Policy for Slow {
    fn identity(&self, seat: Seat, number: usize) -> Identity {
        self.policy.identity(seat, number)
    }
    fn submit(&mut self, request: TurnRequest<'_>) -> Result<(), RolloutError> {
        self.keys.entry(request.who).or_insert((request.key, 0)).1 += 1;
        self.policy.submit(request)
    }
    fn cancel(&mut self, who: AgentRef) {
        self.policy.cancel(who);
        self.later.retain(|(_, other, _)| *other != who);
    }
    fn tick(&mut self, now: Moment) -> Result<Vec<(AgentRef, Turn)>, RolloutError> {
        self.tick += 1;
        for (who, turn) in self.policy.tick(now)? {
            let wait = self.keys.get(&who).map_or(0.0, |(key, turns)| key.uniform_f64(u32::MAX - turns));
            self.later.push((self.tick + (wait * SLOWEST_TURN as f64) as u64, who, turn));
        }
        let due = self.tick;
        Ok(self.later.extract_if(.., |(at, _, _)| *at <= due).map(|(_, who, turn)| (who, turn)).collect())
    }
}

/// A line of this process's memory as Linux counts it, bytes.
fn memory(of: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(of))?;
    Some(1024 * line.split_whitespace().nth(1)?.parse::<u64>().ok()?)
}

fn peak_bytes() -> Option<u64> {
    memory("VmHWM")
}

fn resident_bytes() -> Option<u64> {
    memory("VmRSS")
}

fn run(
    environment: &Environment,
    rules: &Rules,
    policy: &mut dyn Policy,
    specs: Vec<EpisodeSpec>,
) -> Result<Value, Failure> {
    let stage = Stage {
        rules,
        dialect: &environment.dialect,
        tools: &environment.tools,
        tool_fault_rate: 0.0,
        max_concurrent_episodes: usize::MAX,
        keep_subagent_contexts: false,
        clock_ms: &|| 0,
        epoch_us: 0,
    };
    let mut ticks = 0;
    let (episodes, begin) = (specs.len(), Instant::now());
    let records = driver::run(&stage, policy, specs, &mut |progress| ticks = progress.ticks)?;
    let seconds = begin.elapsed().as_secs_f64();
    let drawn: u64 = records.iter().flat_map(|r| &r.agents).map(|a| a.tokens_out).sum();
    Ok(json!({
        "episodes": episodes,
        "assignments": records.iter().map(|r| u64::from(r.n_assigned)).sum::<u64>(),
        "steps": records.iter().map(|r| u64::from(r.total_steps)).sum::<u64>(),
        "ticks": ticks,
        "drawn_tokens": drawn,
        "seconds": seconds,
        "episodes_per_second": episodes as f64 / seconds,
        "microseconds_per_token": 1e6 * seconds / drawn as f64,
        "peak_bytes": peak_bytes(),
    }))
}

fn hundred(environment: &Environment) -> Result<Value, Failure> {
    let mut rules = Rules {
        subagent_steps: STEPS_OF_AN_AGENT as u32,
        critical_steps: 100,
        max_concurrent: AGENTS as u32,
        max_assignments: AGENTS as u32,
        outage_rate: 0.0,
        ..environment.rules.clone()
    };
    rules.orchestrator.max_context_tokens = 20_000;
    rules.orchestrator.max_new_tokens = 10_000;
    rules.subagent.max_context_tokens = 20_000;
    rules.subagent.max_turns = 100;
    let mut policy = Hundred { dialect: Arc::clone(&environment.dialect), ready: Vec::new() };
    run(environment, &rules, &mut policy, environment.heldout_specs(1, 0))
}

fn thousand(environment: &Environment) -> Result<Value, Failure> {
    let policy = seats::experts(environment, Script::Parallel);
    let mut policy = Slow { policy, tick: 0, keys: HashMap::new(), later: Vec::new() };
    run(environment, &environment.rules, &mut policy, environment.heldout_specs(EPISODES, 0))
}

/// The default run's model, with weights that know nothing.
fn shape(vocab: usize) -> ModelShape {
    ModelShape {
        vocab,
        hidden: 128,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        ffn: 384,
        max_positions: 4096,
        rope_theta: 1e4,
        rms_eps: 1e-6,
        qkv_bias: false,
        qk_norm: false,
        tied_head: true,
    }
}

fn weights(shape: &ModelShape) -> Result<WeightSet, KernelError> {
    let tensors = shape.tensors().into_iter().enumerate().map(|(n, (name, dims))| {
        let key = RngKey { seed: n as u64, stream: Stream::Init, episode: 0, agent: 0 };
        let count = dims.iter().product::<usize>() as u32;
        (name, (0..count).map(|i| 0.1 * (key.uniform_f32(i) - 0.5)).collect::<Vec<f32>>())
    });
    WeightSet::from_f32(shape.clone(), 0, tensors.collect::<HashMap<_, _>>())
}

const SET: SetId = SetId(0);

/// `agents` contexts of `prefix + own` tokens, `drawn` more of each; the prefix is one for all, or one for each.
fn contexts(agents: u64, shared: bool) -> impl Iterator<Item = Request> {
    let (prefix, own, drawn) = (2048u64, 32u64, 32);
    (0..agents).map(move |agent| {
        let of = if shared { 0 } else { agent };
        let begin = (0..prefix).map(|i| ((i * 31 + of * 97 + of * i) % 600) as u32);
        let rest = (0..own).map(|i| ((i * 17 + agent * 131) % 600) as u32);
        Request {
            id: RequestId(agent),
            set: SET,
            prompt: begin.chain(rest).collect(),
            max_new_tokens: drawn,
            stop: Vec::new(),
            sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
            key: RngKey { seed: 0, stream: Stream::Sample, episode: 0, agent: agent as u32 },
            begun: Begun::default(),
            deadline_ticks: 0,
        }
    })
}

/// Seconds, memory, and the engine's counters, of all contexts to their ends on the CPU.
fn serve(agents: u64, shared: bool) -> Result<Value, Failure> {
    let config = EngineConfig { kv_blocks: 40_000, ..EngineConfig::default() };
    let shape = shape(704);
    let block_bytes = {
        let mut backend = CpuBackend::default();
        backend.reserve_kv(1, config.block_tokens)?;
        backend.install(SET, weights(&shape)?)?;
        backend.kv_block_bytes()
    };
    let before = resident_bytes();
    let mut engine = Engine::new(Box::new(CpuBackend::default()), config.clone())?;
    let packed = engine.install(SET, weights(&shape)?)?.packed_bytes;
    let begin = Instant::now();
    let mut drawing_seconds = 0.0;
    let mut tick = |engine: &mut Engine| -> Result<(), RolloutError> {
        let (before, begin) = (engine.stats(), Instant::now());
        engine.tick()?;
        let after = engine.stats();
        if after.computed_tokens - before.computed_tokens == after.drawn_tokens - before.drawn_tokens {
            drawing_seconds += begin.elapsed().as_secs_f64();
        }
        Ok(())
    };
    // The stage's first sub-agent brings the prefix; the others come when it is there, as in an episode they do whose
    // orchestrator's prompt was computed before.
    for request in contexts(agents, shared) {
        engine.submit(request)?;
        if engine.stats().computed_tokens == 0 {
            tick(&mut engine)?;
        }
    }
    while !engine.is_idle() {
        tick(&mut engine)?;
    }
    let (seconds, stats) = (begin.elapsed().as_secs_f64(), engine.stats());
    let parameters: usize = shape.tensors().iter().map(|(_, dims)| dims.iter().product::<usize>()).sum();
    // Every token that was computed once has keys and values of its own.
    let kv = stats.computed_tokens.div_ceil(u64::from(config.block_tokens)) * block_bytes;
    let planned = (parameters * size_of::<f32>()) as u64 + packed + kv;
    Ok(json!({
        "agents": agents,
        "planned_bytes": planned,
        "resident_bytes": resident_bytes().zip(before).map(|(after, before)| after.saturating_sub(before)),
        "seconds": seconds,
        "drawing_seconds": drawing_seconds,
        "computed_tokens": stats.computed_tokens,
        "cached_tokens": stats.cached_tokens,
        "drawn_tokens": stats.drawn_tokens,
    }))
}

/// The engine's own microseconds a drawn token beside those with the CPU backend, at a batch like the default run's.
fn overhead() -> Result<Value, Failure> {
    let mut parts = Vec::new();
    for backend in [Box::new(Nothing) as Box<dyn Backend>, Box::new(CpuBackend::default())] {
        let mut engine = Engine::new(backend, EngineConfig::default())?;
        engine.install(SET, weights(&shape(704))?)?;
        let mut best = f64::INFINITY;
        for round in 0..5 {
            for agent in 0..256u64 {
                engine.submit(Request {
                    id: RequestId(agent),
                    set: SET,
                    prompt: (0..64).map(|i| ((i * 17 + agent * 131 + round) % 600) as u32).collect(),
                    max_new_tokens: 64,
                    stop: Vec::new(),
                    sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
                    key: RngKey { seed: round, stream: Stream::Sample, episode: agent, agent: 0 },
                    begun: Begun::default(),
                    deadline_ticks: 0,
                })?;
            }
            let (before, begin) = (engine.stats().drawn_tokens, Instant::now());
            while !engine.is_idle() {
                engine.tick()?;
            }
            let drawn = engine.stats().drawn_tokens - before;
            best = best.min(1e6 * begin.elapsed().as_secs_f64() / drawn as f64);
        }
        parts.push(best);
    }
    Ok(json!({"engine_microseconds_per_token": parts[0], "with_model_microseconds_per_token": parts[1],
              "share": parts[0] / parts[1]}))
}

fn main() -> Result<(), Failure> {
    let environment = Environment::new(&Config::default())?;
    let (hundred, thousand, overhead) = (hundred(&environment)?, thousand(&environment)?, overhead()?);
    let mut sharing = Vec::new();
    for agents in [1, 10, 30, 100] {
        for shared in [true, false] {
            let mut line = serve(agents, shared)?;
            line["shared"] = json!(shared);
            sharing.push(line);
        }
    }
    println!(
        "{}",
        json!({"kind": "scale", "threads": rayon::current_num_threads(), "hundred": hundred, "thousand": thousand,
               "overhead": overhead, "sharing": sharing, "peak_bytes": peak_bytes()})
    );
    Ok(())
}
