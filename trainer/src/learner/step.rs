//! One update: samples to micro-batches to gradients to weights.

use std::any::Any;
use std::collections::BTreeMap;
use std::mem::take;
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parl_kernels::shape::ModelShape;
use parl_kernels::weights::{Dtype, WeightSet};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::micro_batch::MicroBatch;
use super::model::Params;
use super::optimizer::stretch;
use super::packing::{Family, families, micro_batches};
use super::{LearnerError, Objective, Optimizer, Place, StepReport, guarded, lease, qk_clip};

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

    /// The tokens that trained ones are predicted from: all before the last of them.
    pub(super) fn inputs(&self) -> &[u32] {
        &self.tokens[..self.mask.iter().rposition(|trained| *trained).unwrap_or(0)]
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
    /// Tokens of a micro-batch, at most; a longer sample is one of its own.
    pub micro_batch_tokens: usize,
    workers: rayon::ThreadPool,
    place: Place,
    version: u64,
    leases: Vec<Weak<dyn Any + Send + Sync>>,
    /// What [`Learner::copied`] leases, and the lease.
    copy: Option<(Params, Weak<dyn Any + Send + Sync>)>,
}

impl Learner {
    /// A learner on `threads` workers, one libtorch thread each, that works on `params` as they are: on the CPU, in f32.
    ///
    /// # Errors
    /// As [`Learner::at`].
    pub fn new(
        shape: ModelShape,
        params: Params,
        optimizer: Optimizer,
        threads: usize,
    ) -> Result<Self, LearnerError> {
        Self::at(Place::cpu(Dtype::F32), shape, params, optimizer, threads)
    }

    /// A learner whose tensors lie in `place`. On a card there is one worker, whatever `threads` says.
    ///
    /// # Errors
    /// [`LearnerError::Torch`] when the workers cannot be started, [`LearnerError::Memory`] when a card has no room.
    pub fn at(
        place: Place,
        shape: ModelShape,
        params: Params,
        optimizer: Optimizer,
        threads: usize,
    ) -> Result<Self, LearnerError> {
        // One libtorch thread everywhere, on the caller's too: a sum that libtorch shares out has other bits.
        tch::set_num_threads(1);
        super::shim::choose_kernels_by_instructions();
        let workers = rayon::ThreadPoolBuilder::new()
            .num_threads(if place.is_card() { 1 } else { threads.max(1) })
            .start_handler(move |_| {
                tch::set_num_threads(1);
                // What fails here fails again where it can be told.
                let _ = place.enter();
            })
            .build()
            .map_err(|e| LearnerError::Torch(e.to_string()))?;
        let params =
            guarded(|| params.into_iter().map(|(name, p)| (name, place.weight(&p))).collect::<Params>())?;
        Ok(Self {
            shape,
            params,
            optimizer,
            grad_clip: 1.0,
            micro_batch_tokens: 4096,
            workers,
            place,
            version: 0,
            leases: Vec::new(),
            copy: None,
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

    /// Where its tensors lie.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// The weights as they are now, copied: updates go on while the copy is read. It lies where the copy before it lay, so
    /// that graphs of a card that read there stay good; nobody may read that one any more.
    ///
    /// # Errors
    /// [`LearnerError::Samples`] while the copy before is leased, else as [`Learner::lease`].
    pub fn copied(&mut self) -> Result<WeightSet, LearnerError> {
        self.place.enter()?;
        if self.copy.iter().any(|(_, lease)| lease.strong_count() > 0) {
            return Err(leased());
        }
        let mut copies = self.copy.take().map(|(copies, _)| copies).unwrap_or_default();
        let params = &self.params;
        guarded(|| {
            tch::no_grad(|| {
                for (name, values) in params {
                    match copies.get_mut(name) {
                        Some(copy) => copy.copy_(values),
                        None => drop(copies.insert(name.clone(), values.detach().copy())),
                    }
                }
            });
        })?;
        let (set, lease) = lease::lease(&self.shape, &copies, self.version)?;
        self.copy = Some((copies, lease));
        Ok(set)
    }

    /// Says whether the weights may be written.
    pub(super) fn exclusive(&self) -> Result<(), LearnerError> {
        self.place.enter()?;
        if self.leases.iter().any(|lease| lease.strong_count() > 0) {
            return Err(leased());
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
        // libtorch counts its threads for each of the program's own, and this one may be new.
        tch::set_num_threads(1);
        let started = Instant::now();
        self.check(samples)?;
        let shares = objective.shares(samples);
        let asked = (0..samples.len()).filter(|i| objective.asks(&samples[*i])).collect();
        let batches = self.micro_batches(samples, asked);
        let done = AtomicUsize::new(0);
        let (shape, options) = (&self.shape, self.place.options());
        let weights = self.widened()?;
        let mut report = StepReport { updates: 1, ..StepReport::default() };
        let workers = self.workers.current_num_threads() as f64;
        let mut parts: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        // One worker adds up as it goes, in the same order, for want of room for the gradients of all.
        let at_once = if self.workers.current_num_threads() == 1 { 1 } else { batches.len().max(1) };
        for some in batches.chunks(at_once) {
            let results = self.of_each(&weights, some, |batch, leaves| {
                let micro =
                    MicroBatch::of(samples, batch, &shares, options).backward(shape, leaves, objective);
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, batches.len());
                micro
            })?;
            // In the order of the batches, whoever was done first.
            for micro in results {
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
                    parts.entry(name).or_default().push(grad);
                }
            }
            if at_once == 1 {
                let added = || parts.values_mut().for_each(|all| *all = sum(take(all)).into_iter().collect());
                guarded(|| self.workers.install(added))?;
            }
        }
        report.computed_tokens = batches.iter().flatten().map(|family| family.tokens(samples)).sum();
        let n = report.trained_tokens.max(1) as f64;
        for mean in
            [&mut report.entropy, &mut report.mismatch_kl, &mut report.clipped_low, &mut report.clipped_high]
        {
            *mean /= n;
        }
        let summed = |(name, parts): (String, Vec<Tensor>)| sum(parts).map(|sum| (name, square(&sum), sum));
        let summed: Vec<(String, f64, Tensor)> =
            guarded(|| self.workers.install(|| parts.into_par_iter().filter_map(summed).collect()))?;
        report.grad_norm = summed.iter().map(|(_, square, _)| square).sum::<f64>().sqrt();
        for (what, value) in [("the loss", report.loss), ("the gradient's norm", report.grad_norm)] {
            if !value.is_finite() {
                return Err(LearnerError::NotFinite { what, value });
            }
        }
        let moving = Instant::now();
        let scale = (self.grad_clip / report.grad_norm).min(1.0);
        let grads = summed.into_iter().map(|(name, _, grad)| (name, grad)).collect();
        let (optimizer, params) = (&mut self.optimizer, &self.params);
        let workers = &self.workers;
        guarded(|| optimizer.update(params, grads, scale, lr, &|name| shape.part_rows(name), workers))?;
        if let Some(limit) = self.optimizer.qk_clip().filter(|_| !self.shape.qk_norm) {
            let watched: Vec<Vec<i64>> = samples
                .iter()
                .take(WATCHED)
                .map(|s| s.tokens.iter().map(|t| i64::from(*t)).collect())
                .collect();
            let weights = self.widened()?;
            report.qk_clipped = guarded(|| {
                let peaks = qk_clip::peaks(&self.shape, &weights, &watched);
                qk_clip::clip(&self.shape, &self.optimizer.masters(), &peaks, limit);
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
        let asked = (0..samples.len()).filter(|i| samples[*i].trained() > 0).collect();
        let batches = self.micro_batches(samples, asked);
        let (shape, options) = (&self.shape, self.place.options());
        let shares = vec![0.0; samples.len()];
        let results = self.of_each(&self.widened()?, &batches, |batch, params| {
            floats(&MicroBatch::of(samples, batch, &shares, options).log_probs(shape, &params))
        })?;
        let mut all = vec![Vec::new(); samples.len()];
        for (batch, logprobs) in batches.iter().zip(results) {
            let mut logprobs = logprobs.into_iter();
            for i in batch.iter().flat_map(|family| &family.members) {
                all[*i] = logprobs.by_ref().take(samples[*i].trained()).collect();
            }
        }
        Ok(all)
    }

    fn micro_batches(&self, samples: &[Sample], asked: Vec<usize>) -> Vec<Vec<Family>> {
        let budget = self.micro_batch_tokens;
        micro_batches(samples, families(samples, asked, budget), budget)
    }

    /// The parameters in the type of what goes through the layers; where that is theirs, in their own memory.
    fn widened(&self) -> Result<Params, LearnerError> {
        self.place.enter()?;
        let (kind, _) = self.place.options();
        let widened = |(name, p): (&String, &Tensor)| (name.clone(), p.detach().to_kind(kind));
        guarded(|| self.params.iter().map(widened).collect())
    }

    /// Does `work` for each micro-batch, shared out to the workers; the results stand in the order of the batches. Each
    /// gets handles of its own on `params`, which share the memory but not the gradients.
    fn of_each<T: Send>(
        &self,
        params: &Params,
        batches: &[Vec<Family>],
        work: impl Fn(&[Family], Params) -> T + Sync,
    ) -> Result<Vec<T>, LearnerError> {
        let alias = |(name, p): (&String, &Tensor)| (name.clone(), p.detach());
        let handed: Vec<(&Vec<Family>, Params)> =
            guarded(|| batches.iter().map(|b| (b, params.iter().map(alias).collect())).collect())?;
        let one = |(batch, params): (&Vec<Family>, Params)| guarded(|| work(batch, params));
        let results: Vec<Result<T, LearnerError>> =
            self.workers.install(|| handed.into_par_iter().map(one).collect());
        results.into_iter().collect()
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

fn leased() -> LearnerError {
    LearnerError::Samples("the weights are leased: give the lease back first".to_owned())
}

/// The sum, in order, in the place of the first.
fn sum(parts: Vec<Tensor>) -> Option<Tensor> {
    tch::no_grad(|| parts.into_iter().reduce(|mut sum, part| sum.g_add_(&part)))
}

/// Σ x² in f64, over a cache's worth of elements at a time; on a card at once.
fn square(tensor: &Tensor) -> f64 {
    if tensor.device().is_cuda() {
        return tensor.square().sum(Kind::Double).double_value(&[]);
    }
    let parts = tensor.flatten(0, -1).split(stretch(tensor), 0);
    parts.iter().map(|x| x.to_kind(Kind::Double).square().sum(None).double_value(&[])).sum()
}

/// A tensor's elements.
pub(super) fn floats(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.detach().to_kind(Kind::Float).contiguous().view([-1]);
    let mut out = vec![0.0f32; flat.numel()];
    let n = out.len();
    flat.copy_data(&mut out, n);
    out
}
