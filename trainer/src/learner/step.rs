//! One update: samples to micro-batches to gradients to weights.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parl_kernels::shape::ModelShape;
use parl_kernels::weights::WeightSet;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::model::{Params, hidden, log_probs};
use super::objective::Tokens;
use super::{LearnerError, Objective, Optimizer, StepReport, guarded, lease, qk_clip};

/// Sequences on which attention logits are measured for QK-Clip.
const WATCHED: usize = 4;

/// One context to learn from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    /// The whole context.
    pub tokens: Vec<u32>,
    /// Which of them are trained on.
    pub mask: Vec<bool>,
    /// As recorded when they were drawn; 0 off the mask.
    pub logprobs: Vec<f32>,
    /// Temperature at which each was drawn; 1 where nothing was.
    pub temperatures: Vec<f32>,
    /// Of the episode.
    pub advantage: f32,
    /// Number of the group.
    pub group: usize,
    /// The weights have moved since it was drawn.
    pub stale: bool,
}

impl Sample {
    /// How many of its tokens are trained on.
    pub(super) fn trained(&self) -> usize {
        self.mask.iter().filter(|m| **m).count()
    }
}

/// A model that is trained.
pub struct Learner {
    shape: ModelShape,
    params: Params,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Gradients longer than this are scaled down to it.
    pub grad_clip: f64,
    /// Tokens of a micro-batch, padding included.
    pub micro_batch_tokens: usize,
    workers: rayon::ThreadPool,
    version: u64,
    leases: Vec<Weak<dyn Any + Send + Sync>>,
}

struct Micro {
    grads: BTreeMap<String, Tensor>,
    loss: f64,
    entropy: f64,
    kl: f64,
    worst: f64,
    outside: (f64, f64),
    tokens: usize,
    forward_seconds: f64,
    backward_seconds: f64,
}

impl Learner {
    /// A learner on `threads` workers, one libtorch thread each.
    ///
    /// # Errors
    /// [`LearnerError::Torch`] when the workers cannot be started.
    pub fn new(
        shape: ModelShape,
        params: Params,
        optimizer: Optimizer,
        threads: usize,
    ) -> Result<Self, LearnerError> {
        // One libtorch thread everywhere, on the caller's too: a sum that libtorch shares out has other bits.
        tch::set_num_threads(1);
        let workers = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .start_handler(|_| tch::set_num_threads(1))
            .build()
            .map_err(|e| LearnerError::Torch(e.to_string()))?;
        Ok(Self {
            shape,
            params,
            optimizer,
            grad_clip: 1.0,
            micro_batch_tokens: 4096,
            workers,
            version: 0,
            leases: Vec::new(),
        })
    }

    /// Sizes of the model.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// The parameters, by name.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Number of updates that these weights have seen.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The weights for reading; no update is made while the lease lives.
    ///
    /// # Errors
    /// [`LearnerError::Weights`] or [`LearnerError::Kernel`] when they cannot be leased.
    pub fn lease(&mut self) -> Result<WeightSet, LearnerError> {
        let (set, alive) = lease::lease(&self.shape, &self.params, self.version)?;
        self.leases.retain(|lease| lease.strong_count() > 0);
        self.leases.push(alive);
        Ok(set)
    }

    /// Says whether the weights may be written.
    pub(super) fn exclusive(&self) -> Result<(), LearnerError> {
        if self.leases.iter().any(|lease| lease.strong_count() > 0) {
            return Err(LearnerError::Samples(
                "the weights are leased: give the lease back first".to_owned(),
            ));
        }
        Ok(())
    }

    /// Other weights of the same shape.
    pub(super) fn replace(&mut self, params: Params, version: u64) {
        (self.params, self.version) = (params, version);
    }

    /// One update. `progress` is told of micro-batches done and in all.
    ///
    /// # Errors
    /// [`LearnerError::NotFinite`] when loss or gradient are no numbers, [`LearnerError::Samples`] for samples that do
    /// not fit; nothing has changed then.
    pub fn train_step(
        &mut self,
        samples: &[Sample],
        objective: Objective,
        lr: f64,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<StepReport, LearnerError> {
        self.exclusive()?;
        let started = Instant::now();
        self.check(samples)?;
        let shares = objective.shares(samples);
        let batches = micro_batches(samples, self.micro_batch_tokens, objective);
        let done = AtomicUsize::new(0);
        let shape = &self.shape;
        // Aliases share the memory but have gradients of their own; each worker is handed its own handles.
        let alias = |(name, p): (&String, &Tensor)| (name.clone(), p.detach().set_requires_grad(true));
        let work: Vec<(&Vec<usize>, Params)> =
            guarded(|| batches.iter().map(|b| (b, self.params.iter().map(alias).collect())).collect())?;
        let results: Vec<Result<Micro, LearnerError>> = self.workers.install(|| {
            work.into_par_iter()
                .map(|(batch, leaves)| {
                    let micro = guarded(|| backward(shape, leaves, samples, batch, &shares, objective));
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1, batches.len());
                    micro
                })
                .collect()
        });
        let mut report = StepReport { updates: 1, ..StepReport::default() };
        let workers = self.workers.current_num_threads() as f64;
        let mut grads: BTreeMap<String, Tensor> = BTreeMap::new();
        // In the order of the batches, whoever was done first.
        for micro in results {
            let micro = micro?;
            report.loss += micro.loss;
            report.entropy += micro.entropy;
            report.mismatch_kl += micro.kl;
            report.mismatch_max = report.mismatch_max.max(micro.worst);
            report.clipped_low += micro.outside.0;
            report.clipped_high += micro.outside.1;
            report.trained_tokens += micro.tokens;
            report.forward_seconds += micro.forward_seconds / workers;
            report.backward_seconds += micro.backward_seconds / workers;
            for (name, grad) in micro.grads {
                match grads.get_mut(&name) {
                    Some(sum) => *sum = &*sum + grad,
                    None => drop(grads.insert(name, grad)),
                }
            }
        }
        report.computed_tokens = batches.iter().map(|b| b.len() * longest(samples, b)).sum();
        let n = report.trained_tokens.max(1) as f64;
        for mean in
            [&mut report.entropy, &mut report.mismatch_kl, &mut report.clipped_low, &mut report.clipped_high]
        {
            *mean /= n;
        }
        let square = |g: &Tensor| g.to_kind(Kind::Double).square().sum(None).double_value(&[]);
        report.grad_norm = guarded(|| grads.values().map(square).sum::<f64>())?.sqrt();
        for (what, value) in [("the loss", report.loss), ("the gradient's norm", report.grad_norm)] {
            if !value.is_finite() {
                return Err(LearnerError::NotFinite { what, value });
            }
        }
        if report.grad_norm > self.grad_clip {
            let scale = self.grad_clip / report.grad_norm;
            for grad in grads.values_mut() {
                *grad = &*grad * scale;
            }
        }
        let moving = Instant::now();
        let (optimizer, params) = (&mut self.optimizer, &self.params);
        let shape = &self.shape;
        guarded(|| optimizer.update(params, &grads, lr, &|name| shape.part_rows(name)))?;
        if let Some(limit) = self.optimizer.qk_clip().filter(|_| !self.shape.qk_norm) {
            let watched: Vec<Vec<i64>> = samples
                .iter()
                .take(WATCHED)
                .map(|s| s.tokens.iter().map(|t| i64::from(*t)).collect())
                .collect();
            report.qk_clipped = guarded(|| {
                let peaks = qk_clip::peaks(&self.shape, &self.params, &watched);
                qk_clip::clip(&self.shape, &self.params, &peaks, limit)
            })?;
        }
        report.optimizer_seconds = moving.elapsed().as_secs_f64();
        self.version += 1;
        report.seconds = started.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Log-probs of the masked tokens of each sample, in order.
    ///
    /// # Errors
    /// As [`Learner::train_step`].
    pub fn log_probs(&self, samples: &[Sample]) -> Result<Vec<Vec<f32>>, LearnerError> {
        self.check(samples)?;
        let mut all = vec![Vec::new(); samples.len()];
        for (i, _) in samples.iter().enumerate() {
            all[i] = guarded(|| {
                tch::no_grad(|| {
                    let places = Places::of(samples, &[i], &vec![0.0; samples.len()]);
                    let h = hidden(&self.shape, &self.params, &places.tokens);
                    let rows = (&places.rows, &places.targets, &places.temperatures);
                    floats(&log_probs(&self.shape, &self.params, &h, rows).0)
                })
            })?;
        }
        Ok(all)
    }

    fn check(&self, samples: &[Sample]) -> Result<(), LearnerError> {
        for (i, s) in samples.iter().enumerate() {
            let n = s.tokens.len();
            let refuse = |text: String| Err(LearnerError::Samples(format!("sample {i}: {text}")));
            if [s.mask.len(), s.logprobs.len(), s.temperatures.len()].iter().any(|len| *len != n) {
                return refuse(format!("its lists are not all of {n} tokens"));
            }
            if s.mask.first() == Some(&true) {
                return refuse("its first token is trained on, but nothing comes before it".to_owned());
            }
            if let Some(token) = s.tokens.iter().find(|t| **t as usize >= self.shape.vocab) {
                return refuse(format!("token {token} is not below the vocabulary ({})", self.shape.vocab));
            }
            if n > self.shape.max_positions {
                return refuse(format!("{n} tokens are above max_positions ({})", self.shape.max_positions));
            }
            let numbers = s.logprobs.iter().chain([&s.advantage]);
            if let Some(value) = numbers.copied().find(|v| !v.is_finite()) {
                return Err(LearnerError::NotFinite {
                    what: "a sample's log-prob or advantage",
                    value: value.into(),
                });
            }
            if s.temperatures.iter().any(|t| !(t.is_finite() && *t > 0.0)) {
                return refuse("a temperature is not above 0".to_owned());
            }
        }
        Ok(())
    }
}

fn longest(samples: &[Sample], batch: &[usize]) -> usize {
    batch.iter().map(|i| samples[*i].tokens.len()).max().unwrap_or(0)
}

/// Samples of like length together, up to a budget of padded tokens; samples that ask for nothing are left out.
fn micro_batches(samples: &[Sample], budget: usize, objective: Objective) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..samples.len()).filter(|i| objective.asks(&samples[*i])).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(samples[*i].tokens.len()), *i));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * longest(samples, batch) <= budget => batch.push(i),
            _ => batches.push(vec![i]),
        }
    }
    batches
}

/// The tensors of a micro-batch.
struct Places {
    tokens: Tensor,
    rows: Tensor,
    targets: Tensor,
    temperatures: Tensor,
    old: Tensor,
    advantage: Tensor,
    weight: Tensor,
    sequence: Tensor,
    lengths: Tensor,
}

impl Places {
    fn of(samples: &[Sample], batch: &[usize], shares: &[f64]) -> Self {
        let width = longest(samples, batch);
        let mut tokens = vec![0i64; batch.len() * width];
        let (mut rows, mut targets, mut sequence) = (Vec::new(), Vec::new(), Vec::new());
        let (mut temperatures, mut old, mut advantage, mut weight) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (b, i) in batch.iter().enumerate() {
            let sample = &samples[*i];
            for (t, token) in sample.tokens.iter().enumerate() {
                tokens[b * width + t] = i64::from(*token);
                if sample.mask[t] {
                    // A token is predicted from the place before it.
                    rows.push((b * width + t - 1) as i64);
                    targets.push(i64::from(*token));
                    temperatures.push(sample.temperatures[t]);
                    old.push(sample.logprobs[t]);
                    advantage.push(sample.advantage);
                    weight.push(shares[*i] as f32);
                    sequence.push(b as i64);
                }
            }
        }
        let lengths: Vec<f32> = batch.iter().map(|i| samples[*i].trained() as f32).collect();
        Self {
            tokens: Tensor::from_slice(&tokens)
                .view([batch.len() as i64, width as i64])
                .to_device(Device::Cpu),
            rows: Tensor::from_slice(&rows),
            targets: Tensor::from_slice(&targets),
            temperatures: Tensor::from_slice(&temperatures),
            old: Tensor::from_slice(&old),
            advantage: Tensor::from_slice(&advantage),
            weight: Tensor::from_slice(&weight),
            sequence: Tensor::from_slice(&sequence),
            lengths: Tensor::from_slice(&lengths),
        }
    }
}

fn backward(
    shape: &ModelShape,
    leaves: Params,
    samples: &[Sample],
    batch: &[usize],
    shares: &[f64],
    objective: Objective,
) -> Micro {
    let started = Instant::now();
    let places = Places::of(samples, batch, shares);
    let h = hidden(shape, &leaves, &places.tokens);
    let (logp, entropy) =
        log_probs(shape, &leaves, &h, (&places.rows, &places.targets, &places.temperatures));
    let tokens = Tokens {
        logp: &logp,
        old: &places.old,
        advantage: &places.advantage,
        weight: &places.weight,
        sequence: &places.sequence,
        lengths: &places.lengths,
    };
    let loss = objective.loss(&tokens);
    let forward_seconds = started.elapsed().as_secs_f64();
    loss.backward();
    let backward_seconds = started.elapsed().as_secs_f64() - forward_seconds;
    let number = |t: &Tensor| t.to_kind(Kind::Double).sum(None).double_value(&[]);
    let (kl, worst, outside) = tch::no_grad(|| {
        let log_ratio = (&logp - &places.old).to_kind(Kind::Double);
        let kl = log_ratio.exp() - 1.0 - &log_ratio;
        (number(&kl), log_ratio.abs().max().double_value(&[]), objective.outside(&tokens))
    });
    let tokens = logp.numel();
    let grads = leaves.into_iter().map(|(name, leaf)| (name, leaf.grad())).filter(|(_, g)| g.defined());
    Micro {
        loss: number(&loss.detach()),
        entropy: number(&entropy),
        kl,
        worst,
        outside,
        tokens,
        forward_seconds,
        backward_seconds,
        grads: grads.collect(),
    }
}

/// A tensor's elements.
pub(super) fn floats(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.detach().to_kind(Kind::Float).contiguous().view([-1]);
    let mut out = vec![0.0f32; flat.numel()];
    let n = out.len();
    flat.copy_data(&mut out, n);
    out
}
