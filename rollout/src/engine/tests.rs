//! The engine over a backend that remembers which token stands in which block, and draws from what it reads there:
//! a wrong block table, stale KV or a lost version changes what is drawn.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use parl_kernels::KernelError;
use parl_kernels::backend::{Drawn, Output, Plan, PlanRow, Sampling, Ticket};
use parl_kernels::rng::{RngKey, Stream};
use parl_kernels::shape::ModelShape;

use super::*;

#[derive(Default)]
struct Fake {
    versions: HashMap<SetId, u64>,
    /// What was written: (set, version, token) by block and slot.
    kv: Vec<Vec<Option<(SetId, u64, u32)>>>,
    per_block: usize,
    output: Output,
    plans: Arc<Mutex<Vec<Plan>>>,
}

fn hash(parts: impl Iterator<Item = u64>) -> u64 {
    parts.fold(0xcbf2_9ce4_8422_2325, |h, p| (h ^ p).wrapping_mul(0x0100_0000_01b3))
}

/// What is drawn after `tokens`: a number from 0 to 30; 31 stands for the stop token.
fn next(set: SetId, version: u64, tokens: &[u32], key: RngKey) -> Drawn {
    let all = tokens.iter().map(|t| u64::from(*t)).chain([u64::from(set.0), version, key.episode]);
    let h = hash(all) >> 20;
    Drawn { id: (h % 32) as u32, logprob: -((h % 97) as f32) }
}

impl Fake {
    fn row(&mut self, set: SetId, row: &PlanRow) -> Option<Drawn> {
        let version = self.versions[&set];
        for (i, token) in row.tokens.iter().enumerate() {
            let at = row.start as usize + i;
            let slot = &mut self.kv[row.blocks[at / self.per_block] as usize][at % self.per_block];
            *slot = Some((set, version, *token));
        }
        let draw = row.draw?;
        let end = row.start as usize + row.tokens.len();
        let read = |at: usize| self.kv[row.blocks[at / self.per_block] as usize][at % self.per_block];
        let history: Vec<u32> = (0..end)
            .map(|at| {
                let (s, v, token) = read(at).expect("KV that was never written");
                assert_eq!((s, v), (set, version), "KV of another set or version at {at}");
                token
            })
            .collect();
        assert_eq!(draw.position as usize, end);
        Some(next(set, version, &history, draw.key))
    }
}

impl Backend for Fake {
    fn install(&mut self, set: SetId, weights: WeightSet) -> Result<InstallReport, KernelError> {
        self.versions.insert(set, weights.version());
        Ok(InstallReport::default())
    }
    fn release(&mut self, _: SetId) {}
    fn reserve_kv(&mut self, blocks: u32, block_tokens: u32) -> Result<(), KernelError> {
        self.per_block = block_tokens as usize;
        self.kv = vec![vec![None; self.per_block]; blocks as usize];
        Ok(())
    }
    fn kv_block_bytes(&self) -> u64 {
        0
    }
    fn submit(&mut self, plan: &Plan) -> Result<Ticket, KernelError> {
        for &(from, to) in &plan.copies {
            self.kv[to as usize] = self.kv[from as usize].clone();
        }
        let mut draws = Vec::new();
        let mut written = std::collections::HashSet::new();
        for group in &plan.groups {
            for row in &group.rows {
                let last = (row.start as usize + row.tokens.len() - 1) / self.per_block;
                for block in &row.blocks[row.start as usize / self.per_block..=last] {
                    assert!(written.insert(*block), "two rows write block {block}");
                }
            }
            draws.push(group.rows.iter().map(|row| self.row(group.set, row)).collect());
        }
        self.plans.lock().unwrap().push(plan.clone());
        self.output = Output { draws };
        Ok(Ticket(0))
    }
    fn collect(&mut self, _: Ticket) -> Result<Output, KernelError> {
        Ok(std::mem::take(&mut self.output))
    }
    fn logits(&mut self, _: &Plan) -> Result<Vec<Vec<Vec<Vec<f32>>>>, KernelError> {
        Err(KernelError::Plan("a fake has no logits".to_owned()))
    }
}

fn weights(version: u64) -> WeightSet {
    let shape = ModelShape {
        vocab: 32,
        hidden: 2,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        ffn: 1,
        max_positions: 4096,
        rope_theta: 1e4,
        rms_eps: 1e-5,
        qkv_bias: false,
        qk_norm: false,
        tied_head: true,
    };
    let tensors = shape.tensors().into_iter().map(|(n, d)| (n, vec![0.0; d.iter().product()])).collect();
    WeightSet::from_f32(shape, version, tensors).unwrap()
}

type Plans = Arc<Mutex<Vec<Plan>>>;

fn engine(kv_blocks: u32, max_batch_tokens: u32) -> (Engine, Plans) {
    let fake = Fake::default();
    let plans = Arc::clone(&fake.plans);
    let config = EngineConfig {
        block_tokens: 4,
        kv_blocks,
        max_batch_tokens,
        max_running: 64,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(Box::new(fake), config).unwrap();
    engine.install(SetId(0), weights(1)).unwrap();
    engine.install(SetId(1), weights(7)).unwrap();
    (engine, plans)
}

fn request(id: u64, set: u32, prompt: Vec<u32>, max_new_tokens: u32) -> Request {
    Request {
        id: RequestId(id),
        set: SetId(set),
        prompt,
        begun: Begun::default(),
        max_new_tokens,
        stop: vec![31],
        sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
        key: RngKey { seed: 0, stream: Stream::Sample, episode: id, agent: 0 },
        deadline_ticks: 0,
    }
}

/// What a request must come to, without an engine.
fn expected(request: &Request, version: u64) -> Vec<u32> {
    let mut tokens = request.prompt.clone();
    while tokens.len() - request.prompt.len() < request.max_new_tokens as usize {
        let id = next(request.set, version, &tokens, request.key).id;
        tokens.push(id);
        if request.stop.contains(&id) {
            break;
        }
    }
    tokens[request.prompt.len()..].to_vec()
}

fn drain(engine: &mut Engine) -> HashMap<RequestId, Completion> {
    let mut done = HashMap::new();
    for _ in 0..100_000 {
        if engine.is_idle() {
            return done;
        }
        for completion in engine.tick().unwrap() {
            assert!(done.insert(completion.id, completion).is_none(), "completed twice");
        }
        engine.check_integrity().unwrap();
    }
    panic!("the engine does not come to an end");
}

#[test]
fn a_shared_prompt_is_computed_once() {
    // It ends after the first token of a block, inside of one, and with one.
    for length in [21, 23, 24] {
        let (mut engine, _) = engine(64, 1000);
        let prompt: Vec<u32> = (0..length).collect();
        for id in 0..8 {
            engine.submit(request(id, 0, prompt.clone(), 3)).unwrap();
        }
        let mut done = drain(&mut engine);
        // Five full blocks are shared, what begins the sixth is copied, and the last token is computed by each of the
        // other seven; then what is drawn, but for the last of it.
        let drawn: u64 = done.values().map(|c| c.ids.len() as u64 - 1).sum();
        assert_eq!(engine.stats().computed_tokens, u64::from(length) + 7 + drawn);
        assert_eq!(engine.stats().cached_tokens, 7 * u64::from(length - 1));
        for id in 0..8 {
            let completion = done.remove(&RequestId(id)).unwrap();
            assert_eq!(completion.ids, expected(&request(id, 0, prompt.clone(), 3), 1));
        }
    }
}

#[test]
fn another_token_another_set_another_version_are_not_the_same_prompt() {
    let (mut engine, _) = engine(64, 1000);
    let prompt: Vec<u32> = (0..17).collect();
    let mut computed = 0;
    let mut run = |engine: &mut Engine, request: Request, version: u64| {
        engine.submit(request.clone()).unwrap();
        let done = drain(engine);
        assert_eq!(done[&request.id].ids, expected(&request, version));
        let now = engine.stats().computed_tokens;
        let new = now - computed;
        computed = now;
        new
    };
    assert_eq!(run(&mut engine, request(0, 0, prompt.clone(), 1), 1), 17);
    assert_eq!(run(&mut engine, request(1, 0, prompt.clone(), 1), 1), 1);
    let mut changed = prompt.clone();
    changed[5] = 30;
    assert_eq!(run(&mut engine, request(2, 0, changed, 1), 1), 12, "a block and a token are the same");
    assert_eq!(run(&mut engine, request(3, 1, prompt.clone(), 1), 7), 17);
    engine.install(SetId(0), weights(2)).unwrap();
    assert_eq!(run(&mut engine, request(4, 0, prompt.clone(), 1), 2), 17);
    assert_eq!(run(&mut engine, request(5, 1, prompt, 1), 7), 1, "the frozen set's blocks live on");
}

#[test]
fn the_next_turn_of_a_context_finds_the_last_one() {
    let (mut engine, plans) = engine(64, 1000);
    let first = request(0, 0, (0..10).collect(), 6);
    engine.submit(first.clone()).unwrap();
    let drawn = drain(&mut engine)[&RequestId(0)].ids.clone();
    let mut context = [first.prompt, drawn].concat();
    let held = context.len() - 1;
    context.extend([3, 4, 5]);
    engine.submit(request(1, 0, context.clone(), 2)).unwrap();
    plans.lock().unwrap().clear();
    drain(&mut engine);
    let row = plans.lock().unwrap()[0].groups[0].rows[0].clone();
    assert_eq!(row.start as usize, held, "all that the last turn computed is used again");
}

#[test]
fn preemption_and_chunks_change_nothing_that_is_drawn() {
    let requests: Vec<Request> = (0..12)
        .map(|id| request(id, (id % 2) as u32, (0..5 + id as u32 * 2).map(|t| t % 29).collect(), 9))
        .collect();
    let run = |blocks: u32, batch: u32| {
        let (mut engine, _) = engine(blocks, batch);
        for request in &requests {
            engine.submit(request.clone()).unwrap();
        }
        (drain(&mut engine), engine.stats().preemptions)
    };
    let (roomy, none) = run(256, 1000);
    let (tight, some) = run(10, 7);
    assert!(none == 0 && some > 0, "{none} {some}");
    for request in &requests {
        let version = if request.set == SetId(0) { 1 } else { 7 };
        assert_eq!(roomy[&request.id].ids, expected(request, version));
        assert_eq!(
            (&roomy[&request.id].ids, &roomy[&request.id].logprobs),
            (&tight[&request.id].ids, &tight[&request.id].logprobs)
        );
    }
}

#[test]
fn what_cannot_be_served_is_refused_and_what_is_late_ends() {
    let (mut engine, _) = engine(8, 100);
    for (bad, wanted) in [
        (request(0, 5, vec![1], 1), "set 5"),
        (request(0, 0, Vec::new(), 1), "no context"),
        (request(0, 0, vec![1; 30], 3), "33 tokens are more than"),
    ] {
        let error = engine.submit(bad).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    engine.submit(Request { deadline_ticks: 2, stop: Vec::new(), ..request(1, 0, vec![1], 20) }).unwrap();
    assert!(engine.submit(request(1, 0, vec![1], 1)).unwrap_err().to_string().contains("in use"));
    let done = drain(&mut engine);
    assert_eq!((done[&RequestId(1)].finish, done[&RequestId(1)].ids.len()), (Finish::Deadline, 2));
}

#[test]
fn ten_thousand_random_schedules_lose_no_block() {
    for seed in 0..10_000u64 {
        let key = RngKey { seed, stream: Stream::Shuffle, episode: 0, agent: 0 };
        let mut counter = 0;
        let mut below = |n: u32| {
            counter += 1;
            key.block(counter)[0] % n
        };
        let (mut engine, _) = engine(6 + below(20), 1 + below(30));
        let capacity = 24;
        let mut open: HashMap<RequestId, Request> = HashMap::new();
        let mut versions = [1, 7];
        let mut id = 0;
        let settle = |done: Vec<Completion>, open: &mut HashMap<RequestId, Request>, versions: [u64; 2]| {
            for c in done {
                let request = open.remove(&c.id).expect("completed once, and not after it was cancelled");
                if c.versions.iter().all(|v| v.2 == versions[request.set.0 as usize]) {
                    assert_eq!(c.ids, expected(&request, versions[request.set.0 as usize]));
                }
            }
        };
        for _ in 0..25 {
            match below(8) {
                0..3 => {
                    let length = 1 + below(14);
                    let alphabet = 1 + below(3);
                    let prompt = (0..length).map(|_| below(alphabet)).collect();
                    let request = request(id, below(2), prompt, 1 + below(capacity - 14));
                    open.insert(request.id, request.clone());
                    engine.submit(request).unwrap();
                    id += 1;
                }
                3 if id > 0 => {
                    let gone = RequestId(u64::from(below(id as u32)));
                    engine.cancel(gone);
                    open.remove(&gone);
                }
                4 => {
                    let set = below(2) as usize;
                    versions[set] += 10;
                    engine.install(SetId(set as u32), weights(versions[set])).unwrap();
                }
                _ => settle(engine.tick().unwrap(), &mut open, versions),
            }
            engine.check_integrity().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        settle(drain(&mut engine).into_values().collect(), &mut open, versions);
        assert!(open.is_empty(), "seed {seed}: {open:?}");
    }
}

/// What is drawn must not depend on whether the process went on or another took over, nor when which sequence is done.
#[test]
fn what_is_under_way_goes_on_in_another_engine_as_it_would_have() {
    let (mut begun, mut mixed) = (0, 0);
    for seed in 0..500u64 {
        let key = RngKey { seed, stream: Stream::Shuffle, episode: 1, agent: 0 };
        let mut counter = 0;
        let mut below = |n: u32| {
            counter += 1;
            key.block(counter)[0] % n
        };
        let size = (8 + below(12), 1 + below(20));
        let (mut kept, _) = engine(size.0, size.1);
        let mut requests: HashMap<RequestId, Request> = HashMap::new();
        for version in 2..5 {
            for _ in 0..below(9) {
                let (length, deadline_ticks) = (1 + below(12), u64::from(below(2) * below(40)));
                let prompt = (0..length).map(|_| below(2)).collect();
                let id = requests.len() as u64;
                let request = Request { deadline_ticks, ..request(id, below(2), prompt, 1 + below(16)) };
                kept.submit(request.clone()).unwrap();
                requests.insert(request.id, request);
            }
            for _ in 0..below(15) {
                kept.tick().unwrap();
            }
            kept.park();
            kept.install(SetId(0), weights(version)).unwrap();
            kept.check_integrity().unwrap();
        }
        let (mut fresh, _) = engine(size.0, size.1);
        fresh.install(SetId(0), weights(4)).unwrap();
        for (id, drawn) in kept.under_way() {
            begun += usize::from(!drawn.ids.is_empty());
            fresh.submit(Request { begun: drawn, ..requests[&id].clone() }).unwrap();
        }
        assert_eq!(kept.under_way(), fresh.under_way());
        while !kept.is_idle() {
            let [a, b] = [&mut kept, &mut fresh].map(|engine| {
                let done = engine.tick().unwrap().into_iter();
                done.map(|c| (c.id, c.ids, c.logprobs, c.versions, c.finish)).collect::<Vec<_>>()
            });
            assert_eq!(a, b, "seed {seed}");
            mixed += a.iter().filter(|done| done.3.len() > 1).count();
        }
        assert!(fresh.is_idle());
    }
    assert!(begun > 500 && mixed > 100, "{begun} {mixed}");
    let (mut engine, _) = engine(8, 10);
    let over = Begun { ids: vec![3, 31], logprobs: vec![0.0; 2], ..Begun::default() };
    let error = engine.submit(Request { begun: over, ..request(0, 0, vec![1], 9) }).unwrap_err().to_string();
    assert!(error.contains("no beginning"), "{error}");
}

#[test]
fn the_cpu_backend_draws_the_same_with_and_without_company() {
    let shape = ModelShape {
        vocab: 64,
        hidden: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 48,
        ..weights(1).shape().clone()
    };
    let mut tensors = HashMap::new();
    for (i, (name, dims)) in shape.tensors().into_iter().enumerate() {
        let key = RngKey { seed: 5, stream: Stream::Init, episode: i as u64, agent: 0 };
        let n: usize = dims.iter().product();
        let values: Vec<f32> = (0..n as u32)
            .map(|j| f32::from(name.contains("norm") as u8) + 0.4 * (key.uniform_f32(j) - 0.5))
            .collect();
        tensors.insert(name, values);
    }
    let requests: Vec<Request> = (0..20)
        .map(|id| request(id, 0, (0..9 + id as u32 % 3 * 8).map(|t| t * 3 % 60).collect(), 12))
        .collect();
    let run = |requests: &[Request], blocks: u32, batch: u32| {
        let backend = parl_kernels::cpu::CpuBackend::default();
        let config = EngineConfig {
            block_tokens: 4,
            kv_blocks: blocks,
            max_batch_tokens: batch,
            max_running: 32,
            ..EngineConfig::default()
        };
        let mut engine = Engine::new(Box::new(backend), config).unwrap();
        engine.install(SetId(0), WeightSet::from_f32(shape.clone(), 1, tensors.clone()).unwrap()).unwrap();
        for request in requests {
            engine.submit(request.clone()).unwrap();
        }
        drain(&mut engine)
    };
    let together = run(&requests, 512, 1000);
    let cramped = run(&requests, 24, 9);
    for request in &requests {
        let alone = &run(std::slice::from_ref(request), 512, 1000)[&request.id];
        for other in [&together[&request.id], &cramped[&request.id]] {
            assert_eq!(alone.ids, other.ids);
            let bits = |c: &Completion| c.logprobs.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(alone), bits(other));
        }
    }
}
