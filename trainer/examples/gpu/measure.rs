//! The measurements.

use std::time::Instant;

use parl_kernels::backend::{Backend, Draw, InstallReport, Plan, PlanGroup, PlanRow, Sampling, SetId};
use parl_kernels::rng::{RngKey, Stream};
use parl_kernels::weights::Dtype;
use parl_rollout::engine::{Begun, Completion, Engine, EngineConfig, Request, RequestId};
use parl_trainer::learner::config::LearnerConfig;
use parl_trainer::learner::{Learner, Objective, Place, Sample, initial};
use serde_json::{Value, json};

use crate::Failure;
use crate::sizes::Sizes;

const SET: SetId = SetId(0);
const SEED: u64 = 1;
const BLOCK_TOKENS: u32 = 16;
/// Repetitions before those that count.
const WARM: usize = 3;
/// Repetitions that count.
const TIMES: usize = 5;
/// Tokens that a sub-agent has for itself, and that it draws.
const OWN: u32 = 32;
/// As TRL has it by default.
const OBJECTIVE: Objective = Objective::Grpo { clip_low: 0.2, clip_high: 0.2 };
const LR: f64 = 1e-6;

/// Engine and learner of one model.
pub struct Side {
    sizes: Sizes,
    backend: Box<dyn Backend>,
    learner: Learner,
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A token of the vocabulary by chance, but the same one each time.
fn token(vocab: usize, sequence: u32, at: u32) -> u32 {
    let key = RngKey { seed: SEED, stream: Stream::Shuffle, episode: u64::from(sequence), agent: 0 };
    (key.uniform_f64(at) * vocab as f64) as u32
}

fn tokens(vocab: usize, sequence: u32, count: u32) -> Vec<u32> {
    (0..count).map(|at| token(vocab, sequence, at)).collect()
}

const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };

fn key(episode: u32) -> RngKey {
    RngKey { seed: SEED, stream: Stream::Sample, episode: u64::from(episode), agent: 0 }
}

impl Side {
    /// Fresh weights.
    ///
    /// # Errors
    /// What the learner refuses.
    pub fn new(sizes: &Sizes, place: Place, backend: Box<dyn Backend>) -> Result<Self, Failure> {
        let (config, shape) = (LearnerConfig::default(), &sizes.shape);
        let params = initial(shape, SEED);
        let mut learner = Learner::at(place, shape.clone(), params, config.optimizer(), config.workers())?;
        learner.micro_batch_tokens = sizes.step_tokens as usize;
        Ok(Self { sizes: sizes.clone(), backend, learner })
    }

    fn parameters(&self) -> usize {
        let tensors = self.sizes.shape.tensors();
        tensors.iter().map(|(_, dims)| dims.iter().product::<usize>()).sum()
    }

    /// Seconds that a plan takes.
    fn pass(&mut self, plan: &Plan) -> Result<f64, Failure> {
        let begin = Instant::now();
        let ticket = self.backend.submit(plan)?;
        self.backend.collect(ticket)?;
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Seconds of a decode step, by its rows, or for one number of them.
    ///
    /// # Errors
    /// What the backend fails with.
    pub fn decode(mut self, only: Option<u32>) -> Result<Value, Failure> {
        let Sizes { shape, context, steps, batches, .. } = self.sizes.clone();
        let batches = only.map_or(batches.to_vec(), |batch| vec![batch]);
        let steps = steps + WARM as u32;
        let (each, filled) = ((context + steps).div_ceil(BLOCK_TOKENS), context / BLOCK_TOKENS);
        let blocks = |s: u32| (s * each..(s + 1) * each).collect::<Vec<_>>();
        let plan = |rows| Plan { copies: Vec::new(), groups: vec![PlanGroup { set: SET, rows }] };
        let mut all = Vec::new();
        for batch in batches {
            self.backend.reserve_kv(batch * each, BLOCK_TOKENS)?;
            self.backend.install(SET, self.learner.lease()?)?;
            let prompt = tokens(shape.vocab, 0, context);
            // With a draw, so that it is waited for.
            let first = Some(Draw { sampling: SAMPLING, key: key(0), position: context });
            let prefill =
                self.pass(&plan(vec![PlanRow { tokens: prompt, start: 0, blocks: blocks(0), draw: first }]))?;
            // The other contexts are copies of the first, so that each row reads memory of its own.
            let copies = (1..batch).flat_map(|s| (0..filled).map(move |b| (b, s * each + b))).collect();
            self.pass(&Plan { copies, groups: Vec::new() })?;
            let mut seconds = Vec::new();
            for position in context..context + steps {
                let row = |s: u32| PlanRow {
                    tokens: vec![token(shape.vocab, s, position)],
                    start: position,
                    blocks: blocks(s),
                    draw: Some(Draw { sampling: SAMPLING, key: key(s), position: position + 1 }),
                };
                seconds.push(self.pass(&plan((0..batch).map(row).collect()))?);
            }
            let step = median(seconds.split_off(WARM));
            let rate = f64::from(batch) / step;
            all.push(json!({"batch": batch, "step_seconds": step, "tokens_per_second": rate,
                "prefill_seconds": prefill}));
        }
        let kv_elements = shape.layers * 2 * shape.kv_heads * shape.head_dim;
        Ok(json!({"parameters": self.parameters(), "kv_elements_per_position": kv_elements,
            "context": context, "decode": all}))
    }

    /// An engine over the learner's weights.
    fn engine(self, sequences: u32, length: u32) -> Result<(Engine, Learner, InstallReport), Failure> {
        let Self { sizes, backend, mut learner } = self;
        let config = EngineConfig {
            block_tokens: BLOCK_TOKENS,
            kv_blocks: sequences * (length.div_ceil(BLOCK_TOKENS) + 1),
            max_batch_tokens: sizes.step_tokens,
            max_running: sequences,
            ..EngineConfig::default()
        };
        let mut engine = Engine::new(backend, config)?;
        let report = engine.install(SET, learner.lease()?)?;
        Ok((engine, learner, report))
    }

    /// From an update's end to the first token of the new version; whether engine and learner say the same of a token
    /// before and after, and what was moved in between.
    ///
    /// # Errors
    /// What engine and learner fail with.
    pub fn update(self) -> Result<Value, Failure> {
        let (vocab, count, length) =
            (self.sizes.shape.vocab, self.sizes.samples / 2, self.sizes.sample_tokens / 2);
        let (mut engine, mut learner, _) = self.engine(count, length)?;
        let (mut seconds, mut apart, mut moved, mut versions) = (Vec::new(), Vec::new(), 0, Vec::new());
        for _ in 0..TIMES {
            let prompts: Vec<Vec<u32>> =
                (0..count).map(|s| tokens(vocab, s, (length - OWN / 2).max(OWN / 2))).collect();
            let mut samples = drawn(&mut engine, &prompts, OWN / 2)?;
            engine.release(SET);
            apart.extend(differences(&recorded(&samples), &learner.log_probs(&samples)?));
            for (i, sample) in samples.iter_mut().enumerate() {
                sample.advantage = if i % 2 == 0 { 0.5 } else { -0.5 };
            }
            learner.train_step(&samples, OBJECTIVE, LR, &|_, _| {})?;
            let begin = Instant::now();
            moved = engine.install(SET, learner.lease()?)?.packed_bytes;
            let first = complete(&mut engine, &prompts[..1], 1)?;
            seconds.push(begin.elapsed().as_secs_f64());
            versions.extend(first.iter().flat_map(|c| &c.versions).map(|(_, _, version)| *version));
        }
        let (engine_off, learner_off) = from_exact(&mut engine, &learner)?;
        let count = apart.len().max(1) as f64;
        let divergence = apart.iter().map(|d| d.exp() - 1.0 - d).sum::<f64>() / count;
        Ok(
            json!({"update_to_first_token_seconds": median(seconds), "moved_bytes": moved, "versions": versions,
            "mismatch_max": apart.iter().fold(0.0f64, |most, d| most.max(d.abs())),
            "mismatch_mean": apart.iter().map(|d| d.abs()).sum::<f64>() / count, "mismatch_kl": divergence,
            "engine_from_f32_mean": engine_off, "learner_from_f32_mean": learner_off}),
        )
    }

    /// An episode's sub-agents, whose contexts begin alike, with and without sharing what is alike.
    ///
    /// # Errors
    /// What the engine fails with.
    pub fn share(self) -> Result<Value, Failure> {
        let Sizes { shape, agents, prefix, .. } = self.sizes.clone();
        let (mut engine, _learner, _) = self.engine(agents, prefix + 2 * OWN)?;
        let mut of = |shared: bool| -> Result<Value, Failure> {
            let (mut seconds, mut computed) = (Vec::new(), 0);
            for _ in 0..TIMES.min(3) {
                engine.park();
                let prompts: Vec<Vec<u32>> = (0..agents)
                    .map(|agent| {
                        let common = tokens(shape.vocab, if shared { 0 } else { 1000 + agent }, prefix);
                        [common, tokens(shape.vocab, 2000 + agent, OWN)].concat()
                    })
                    .collect();
                let before = engine.stats().computed_tokens;
                let begin = Instant::now();
                if shared {
                    // One computes what all then find, as the first assignment of a stage does.
                    complete(&mut engine, &prompts[..1], 1)?;
                    complete(&mut engine, &prompts, OWN)?;
                } else {
                    complete(&mut engine, &prompts, OWN)?;
                }
                seconds.push(begin.elapsed().as_secs_f64());
                computed = engine.stats().computed_tokens - before;
            }
            Ok(json!({"seconds": median(seconds), "computed_tokens": computed}))
        };
        Ok(json!({"agents": agents, "prefix": prefix, "shared": of(true)?, "apart": of(false)?}))
    }

    /// Requests of mixed lengths, all at once: as many as a step has rows at most, 100 to 1024 tokens in and out each (a
    /// tenth of that where the model has few positions).
    ///
    /// # Errors
    /// What the engine fails with.
    pub fn mixed(self) -> Result<Value, Failure> {
        let (shape, count) = (self.sizes.shape.clone(), self.sizes.rows() as u32);
        let (least, most) = if shape.max_positions >= 2048 { (100, 1024) } else { (10, 102) };
        let length = |request: u32, at: u32| least + token((most - least + 1) as usize, request, at);
        let (mut engine, _learner, _) = self.engine(count, 2 * most)?;
        let requests: Vec<(Vec<u32>, u32)> = (0..count)
            .map(|request| (tokens(shape.vocab, request, length(request, 7001)), length(request, 7002)))
            .collect();
        let begin = Instant::now();
        for (number, (prompt, new)) in requests.iter().enumerate() {
            engine.submit(request(number, prompt, *new))?;
        }
        let mut drawn = 0;
        while !engine.is_idle() {
            drawn += engine.tick()?.iter().map(|c| c.ids.len()).sum::<usize>();
        }
        let seconds = begin.elapsed().as_secs_f64();
        let asked: usize = requests.iter().map(|(prompt, _)| prompt.len()).sum();
        Ok(json!({"requests": count, "prompt_tokens": asked, "drawn_tokens": drawn, "seconds": seconds,
            "drawn_tokens_per_second": drawn as f64 / seconds}))
    }

    /// Updates on given samples, and the arithmetic of one.
    ///
    /// # Errors
    /// What the learner fails with.
    pub fn learner(mut self) -> Result<Value, Failure> {
        let Sizes { shape, samples, sample_tokens, .. } = self.sizes.clone();
        let n = sample_tokens as usize;
        let mut given: Vec<Sample> = (0..samples)
            .map(|s| Sample {
                tokens: tokens(shape.vocab, s, sample_tokens),
                mask: (0..n).map(|at| at > 0).collect(),
                logprobs: vec![0.0; n],
                temperatures: vec![1.0; n],
                advantage: if s % 2 == 0 { 0.5 } else { -0.5 },
                group: s as usize / 2,
                stale: false,
            })
            .collect();
        let known = self.learner.log_probs(&given)?;
        for (sample, known) in given.iter_mut().zip(known) {
            sample.logprobs[1..].copy_from_slice(&known);
        }
        let mut reports = Vec::new();
        for _ in 0..WARM + TIMES {
            reports.push(self.learner.train_step(&given, OBJECTIVE, LR, &|_, _| {})?);
        }
        let reports = reports.split_off(WARM);
        let of = |seconds: fn(&parl_trainer::learner::StepReport) -> f64| {
            median(reports.iter().map(seconds).collect())
        };
        let computed = (samples as usize * (n - 1)) as f64;
        // Forward and backward: three times two operations a parameter and token, the head's included and the embedding's
        // not; of attention's square one half is seen.
        let embedding = if shape.tied_head { 0 } else { shape.vocab * shape.hidden };
        let attention = shape.layers * shape.heads * shape.head_dim * n;
        let operations = 6.0 * computed * (self.parameters() - embedding + attention) as f64;
        Ok(json!({"seconds": of(|r| r.seconds), "forward_seconds": of(|r| r.forward_seconds),
            "backward_seconds": of(|r| r.backward_seconds), "optimizer_seconds": of(|r| r.optimizer_seconds),
            "tokens": computed, "operations": operations}))
    }
}

/// Of each sample, what was recorded of its drawn tokens.
fn recorded(samples: &[Sample]) -> Vec<Vec<f32>> {
    let of = |sample: &Sample| {
        let drawn = sample.mask.iter().zip(&sample.logprobs).filter(|(drawn, _)| **drawn);
        drawn.map(|(_, logprob)| *logprob).collect()
    };
    samples.iter().map(of).collect()
}

/// The second less the first, of all samples.
fn differences(first: &[Vec<f32>], second: &[Vec<f32>]) -> Vec<f64> {
    let pairs = first.iter().flatten().zip(second.iter().flatten());
    pairs.map(|(a, b)| f64::from(*b) - f64::from(*a)).collect()
}

/// How far log-probs of engine and learner are from those of the same weights in f32 on the CPU, on average.
fn from_exact(engine: &mut Engine, learner: &Learner) -> Result<(f64, f64), Failure> {
    let shape = learner.shape();
    let length = (shape.max_positions as u32 / 4).min(48);
    let prompts: Vec<Vec<u32>> = (0..8).map(|s| tokens(shape.vocab, 500 + s, length)).collect();
    let samples = drawn(engine, &prompts, OWN / 2)?;
    engine.release(SET);
    let params = learner.params().iter().map(|(name, p)| (name.clone(), p.shallow_clone())).collect();
    let config = LearnerConfig::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(prompts.len());
    let mut exact = Learner::at(Place::cpu(Dtype::F32), shape.clone(), params, config.optimizer(), threads)?;
    exact.micro_batch_tokens = 1;
    let wanted = exact.log_probs(&samples)?;
    let off = |found: &[Vec<f32>]| {
        let all = differences(found, &wanted);
        all.iter().map(|d| d.abs()).sum::<f64>() / all.len().max(1) as f64
    };
    Ok((off(&recorded(&samples)), off(&learner.log_probs(&samples)?)))
}

/// Asks for `count` tokens after the prompt.
fn request(number: usize, prompt: &[u32], count: u32) -> Request {
    Request {
        id: RequestId(number as u64),
        set: SET,
        prompt: prompt.to_vec(),
        max_new_tokens: count,
        stop: Vec::new(),
        sampling: SAMPLING,
        key: key(number as u32),
        begun: Begun::default(),
        deadline_ticks: 0,
    }
}

/// Draws `count` tokens after each prompt; completions in the order of the prompts.
fn complete(engine: &mut Engine, prompts: &[Vec<u32>], count: u32) -> Result<Vec<Completion>, Failure> {
    for (number, prompt) in prompts.iter().enumerate() {
        engine.submit(request(number, prompt, count))?;
    }
    let mut completions = Vec::new();
    while !engine.is_idle() {
        completions.extend(engine.tick()?);
    }
    completions.sort_by_key(|c| c.id);
    Ok(completions)
}

/// As [`complete`], as samples.
fn drawn(engine: &mut Engine, prompts: &[Vec<u32>], count: u32) -> Result<Vec<Sample>, Failure> {
    let completions = complete(engine, prompts, count)?;
    let sample = |(prompt, completion): (&Vec<u32>, Completion)| {
        let n = prompt.len() + completion.ids.len();
        let mut logprobs = vec![0.0; prompt.len()];
        logprobs.extend(&completion.logprobs);
        Sample {
            mask: (0..n).map(|at| at >= prompt.len()).collect(),
            tokens: [&prompt[..], &completion.ids].concat(),
            logprobs,
            temperatures: vec![1.0; n],
            advantage: 0.0,
            group: 0,
            stale: false,
        }
    };
    Ok(prompts.iter().zip(completions).map(sample).collect())
}
