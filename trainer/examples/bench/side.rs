//! Our side of the comparison: the engine and the learner that a run has, on given tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parl_kernels::backend::{Sampling, SetId};
use parl_kernels::cpu::{CpuBackend, Part, Times};
use parl_kernels::rng::{RngKey, Stream};
use parl_kernels::weights::Dtype;
use parl_rewards::advantage::{Rule, group_advantages};
use parl_rollout::engine::{Begun, Completion, Engine, EngineConfig, Request, RequestId};
use parl_trainer::learner::config::LearnerConfig;
use parl_trainer::learner::{Learner, Objective, Place, Sample, StepReport, initial};
use serde::Serialize;

use crate::work::{self, Work};

/// The trained set of a run.
const SET: SetId = SetId(0);
/// Of the weights and of the draws.
const SEED: u64 = 1;
/// As TRL has them by default.
const OBJECTIVE: Objective = Objective::Grpo { clip_low: 0.2, clip_high: 0.2 };
/// Large enough to compute with, too small to change what is computed.
const LR: f64 = 1e-6;

type Failure = Box<dyn std::error::Error>;

/// Seconds of the parts of a repetition; 0 for those that it has not.
#[derive(Debug, Default, Serialize)]
pub struct Phases {
    /// Engine passes that compute prompts.
    pub prefill: f64,
    /// Engine passes that compute one token of each sequence.
    pub decode: f64,
    /// Rewards, advantages, and completions made into samples.
    pub samples: f64,
    /// Forward passes of the learner, log-probs included; the mean over its workers.
    pub forward: f64,
    /// Backward passes; the mean over the workers.
    pub backward: f64,
    /// The optimizer.
    pub optimizer: f64,
    /// The rest of the update: uneven workers, the sum of the gradients, their norm.
    pub learner_rest: f64,
    /// The lease given back, taken anew and packed by the engine.
    pub publish: f64,
}

/// What one repetition did.
#[derive(Debug, Default, Serialize)]
pub struct Done {
    /// Seconds in all.
    pub seconds: f64,
    /// Parts of them.
    pub phases: Phases,
    /// Tokens drawn, each with its log-prob.
    pub drawn_tokens: usize,
    /// Tokens trained on.
    pub trained_tokens: usize,
    /// Largest distance between the engine's log-probs and the learner's, on the tokens trained on.
    pub mismatch_max: f64,
    /// Shares of the parts in the passes that compute one token of each sequence; none where there were none.
    pub drawing: BTreeMap<&'static str, f64>,
    /// What was drawn: ids and log-probs, sequence after sequence.
    #[serde(skip)]
    pub completions: Vec<(Vec<u32>, Vec<f32>)>,
}

/// What to do in a repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Draw from every prompt, learn from it, publish the weights.
    Step,
    /// Draw from every prompt.
    Sample,
    /// Draw one sequence from the first prompt.
    Decode1,
    /// One update on the sequences given.
    Learner,
}

/// The engine over the learner's weights.
pub struct Side {
    work: Work,
    engine: Engine,
    times: Arc<Times>,
    learner: Learner,
}

impl Side {
    /// Fresh weights of the work's shape, published to the engine.
    ///
    /// # Errors
    /// What engine and learner refuse.
    pub fn new(work: Work) -> Result<Self, Failure> {
        let config = LearnerConfig::default();
        let params = initial(&work.shape, SEED);
        let dtype = match work.dtype {
            work::Dtype::F32 => Dtype::F32,
            work::Dtype::Bf16 => Dtype::Bf16,
        };
        let (place, shape) = (Place::cpu(dtype), work.shape.clone());
        let mut learner = Learner::at(place, shape, params, config.optimizer(), work.threads)?;
        learner.grad_clip = config.grad_clip;
        learner.micro_batch_tokens = config.micro_batch_tokens as usize;
        let backend = CpuBackend::default();
        let times = backend.times();
        let engine = Engine::new(Box::new(backend), EngineConfig::default())?;
        let mut side = Self { work, engine, times, learner };
        side.publish()?;
        Ok(side)
    }

    fn publish(&mut self) -> Result<(), Failure> {
        self.engine.install(SET, self.learner.lease()?)?;
        Ok(())
    }

    /// Does repetition `index` of the work; past the last one it begins anew.
    ///
    /// # Errors
    /// What engine and learner fail with; a work without repetitions.
    pub fn repeat(&mut self, mode: Mode, index: usize) -> Result<Done, Failure> {
        let mut done = Done::default();
        // Prepared beforehand, since a run has them: log-probs were recorded when the tokens were drawn.
        let given = if mode == Mode::Learner { self.given(index)? } else { Vec::new() };
        let begin = Instant::now();
        match mode {
            Mode::Decode1 => drop(self.draw(index, 1, 1, &mut done)?),
            Mode::Sample => drop(self.draw(index, usize::MAX, self.work.group, &mut done)?),
            Mode::Learner => self.learn(&given, &mut done)?,
            Mode::Step => {
                let samples = self.draw(index, usize::MAX, self.work.group, &mut done)?;
                self.learn(&samples, &mut done)?;
                let publishing = Instant::now();
                self.publish()?;
                done.phases.publish += publishing.elapsed().as_secs_f64();
            }
        }
        done.seconds = begin.elapsed().as_secs_f64();
        Ok(done)
    }

    /// Draws `group` sequences from each of the first `prompts` prompts, and makes samples of them.
    fn draw(
        &mut self,
        index: usize,
        prompts: usize,
        group: usize,
        done: &mut Done,
    ) -> Result<Vec<Sample>, Failure> {
        let tokens = nth(&self.work.repetitions, index)?;
        let prompts = tokens.prompts.get(..prompts).unwrap_or(&tokens.prompts);
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
        let total = prompts.len() * group;
        for number in 0..total {
            let episode = (index * self.work.sequences() + number) as u64;
            self.engine.submit(Request {
                id: RequestId(number as u64),
                set: SET,
                prompt: prompts[number / group].clone(),
                begun: Begun::default(),
                max_new_tokens: self.work.new_tokens,
                // Every sequence gets its exact number of tokens.
                stop: Vec::new(),
                sampling,
                key: RngKey { seed: SEED, stream: Stream::Sample, episode, agent: 0 },
                deadline_ticks: 0,
            })?;
        }
        let mut completions: Vec<Completion> = Vec::with_capacity(total);
        let mut parts = [0.0; Part::ALL.len()];
        while !self.engine.is_idle() {
            let (before, spent, begin) = (self.engine.stats(), self.times.seconds(), Instant::now());
            completions.extend(self.engine.tick()?);
            let (after, seconds) = (self.engine.stats(), begin.elapsed().as_secs_f64());
            let computed = after.computed_tokens - before.computed_tokens;
            let prompt = computed > after.drawn_tokens - before.drawn_tokens;
            let phase = if prompt { &mut done.phases.prefill } else { &mut done.phases.decode };
            *phase += seconds;
            if !prompt {
                let spent = self.times.seconds().into_iter().zip(spent).map(|(after, before)| after - before);
                parts.iter_mut().zip(spent).for_each(|(part, seconds)| *part += seconds);
            }
        }
        let all: f64 = parts.iter().sum();
        if all > 0.0 {
            done.drawing = Part::ALL.iter().zip(parts).map(|(part, s)| (part.name(), s / all)).collect();
        }
        // As between the steps of a run.
        self.engine.park();
        completions.sort_by_key(|c| c.id);
        let begin = Instant::now();
        let samples = samples(prompts, group, &completions, self.work.shape.vocab);
        done.phases.samples += begin.elapsed().as_secs_f64();
        done.drawn_tokens = completions.iter().map(|c| c.ids.len().min(c.logprobs.len())).sum();
        done.completions = completions.into_iter().map(|c| (c.ids, c.logprobs)).collect();
        Ok(samples)
    }

    /// One update; the engine's lease is given back first, and stays so.
    fn learn(&mut self, samples: &[Sample], done: &mut Done) -> Result<(), Failure> {
        let begin = Instant::now();
        self.engine.release(SET);
        done.phases.publish += begin.elapsed().as_secs_f64();
        let report: StepReport = self.learner.train_step(samples, OBJECTIVE, LR, &|_, _| {})?;
        (done.trained_tokens, done.mismatch_max) = (report.trained_tokens, report.mismatch_max);
        done.phases.forward = report.forward_seconds;
        done.phases.backward = report.backward_seconds;
        done.phases.optimizer = report.optimizer_seconds;
        done.phases.learner_rest =
            report.seconds - report.forward_seconds - report.backward_seconds - report.optimizer_seconds;
        Ok(())
    }

    /// The sequences given, as samples with the log-probs of the present weights.
    fn given(&self, index: usize) -> Result<Vec<Sample>, Failure> {
        let tokens = nth(&self.work.repetitions, index)?;
        let drawn = self.work.new_tokens as usize;
        let mut samples: Vec<Sample> = Vec::new();
        for (i, sequence) in tokens.sequences.iter().enumerate() {
            let logprobs = vec![0.0; drawn];
            let (prompt, ids) = sequence.split_at(sequence.len() - drawn);
            let advantage = if i % 2 == 0 { 0.5 } else { -0.5 };
            samples.push(sample(prompt, ids, &logprobs, advantage, i / self.work.group));
        }
        let known = self.learner.log_probs(&samples)?;
        for (sample, known) in samples.iter_mut().zip(known) {
            let at = sample.logprobs.len() - known.len();
            sample.logprobs[at..].copy_from_slice(&known);
        }
        Ok(samples)
    }
}

impl Work {
    /// Sequences of a repetition.
    fn sequences(&self) -> usize {
        self.repetitions.first().map_or(0, |r| r.prompts.len()) * self.group
    }
}

fn nth<T>(all: &[T], index: usize) -> Result<&T, Failure> {
    all.get(index % all.len().max(1)).ok_or_else(|| "the work has no repetitions".into())
}

/// The mean of a completion's ids over the vocabulary: cheap, and hardly ever equal within a group, so that no sample
/// is left out for want of an advantage.
fn reward(ids: &[u32], vocab: usize) -> f64 {
    ids.iter().map(|id| f64::from(*id)).sum::<f64>() / (ids.len() * vocab).max(1) as f64
}

fn samples(prompts: &[Vec<u32>], group: usize, completions: &[Completion], vocab: usize) -> Vec<Sample> {
    let mut samples = Vec::with_capacity(completions.len());
    for (g, (prompt, members)) in prompts.iter().zip(completions.chunks(group)).enumerate() {
        let rewards: Vec<f64> = members.iter().map(|c| reward(&c.ids, vocab)).collect();
        let compared = group_advantages(&rewards, Rule::default());
        for (member, advantage) in members.iter().zip(compared.advantages) {
            samples.push(sample(prompt, &member.ids, &member.logprobs, advantage as f32, g));
        }
    }
    samples
}

/// A sample that is trained on `ids`, drawn at temperature 1.
fn sample(prompt: &[u32], ids: &[u32], logprobs: &[f32], advantage: f32, group: usize) -> Sample {
    let n = prompt.len() + ids.len();
    let mut mask = vec![false; prompt.len()];
    mask.resize(n, true);
    let mut all = vec![0.0; prompt.len()];
    all.extend_from_slice(logprobs);
    let tokens = prompt.iter().chain(ids).copied().collect();
    Sample { tokens, mask, logprobs: all, temperatures: vec![1.0; n], advantage, group, stale: false }
}
