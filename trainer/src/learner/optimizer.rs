//! Optimizers over named tensors, whose state can be saved and put back exactly.
//!
//! AdamW after Loshchilov & Hutter (2019). Muon after K. Jordan et al. (2024) with the update's RMS matched to AdamW's
//! (0.2·√max(n, m), as in Moonlight): it moves the projections; embeddings, head, norms and biases go by AdamW.

use std::collections::BTreeMap;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::model::Params;

/// AdamW's settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW {
    /// Decay of the mean of gradients.
    #[schemars(range(min = 0.0, max = 0.999_999))]
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    #[schemars(range(min = 0.0, max = 0.999_999_9))]
    pub beta2: f64,
    /// Added to the root of the second mean.
    #[schemars(range(min = 1e-20, max = 1.0))]
    pub eps: f64,
    /// Decoupled weight decay; norms and biases (one-dimensional) have none.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// Muon's settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Muon {
    /// Decay of the mean of gradients.
    #[schemars(range(min = 0.0, max = 0.999_999))]
    pub momentum: f64,
    /// Decoupled weight decay.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub weight_decay: f64,
    /// Its learning rate over AdamW's.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub lr_factor: f64,
    /// QK-Clip: attention logits above this have their query and key projections scaled down. `null` leaves it
    /// out; it cannot be had with qk-norm, which bounds them itself.
    #[schemars(range(min = 1.0, max = 1e6))]
    pub qk_clip: Option<f64>,
}

impl Default for Muon {
    fn default() -> Self {
        Self { momentum: 0.95, weight_decay: 0.1, lr_factor: 1.0, qk_clip: Some(100.0) }
    }
}

/// Elements of a tensor that are worked on at a time: few enough for all operations on them to find them in the caches;
/// on a card, enough to fill it, and not so many that what is made of them on the way matters.
pub(super) fn stretch(tensor: &Tensor) -> i64 {
    if tensor.device().is_cuda() { 1 << 25 } else { 1 << 15 }
}

/// An optimizer with its state.
pub struct Optimizer {
    adamw: AdamW,
    muon: Option<Muon>,
    /// Updates made.
    pub(super) steps: u64,
    /// Tensors by name: `m.NAME` and `v.NAME` of AdamW, `momentum.NAME` of Muon; `master.NAME` of a weight in bf16, its
    /// value in f32, in which small updates add up.
    pub(super) state: BTreeMap<String, Tensor>,
}

const MASTER: &str = "master.";

/// A tensor's name, the tensor, its value in f32, its gradient, its slots, and Muon where it goes by that.
type Work = (String, Tensor, Tensor, Tensor, Vec<Tensor>, Option<Muon>);

impl Optimizer {
    /// A fresh one; with `muon`, projections go by it.
    pub fn new(adamw: AdamW, muon: Option<Muon>) -> Self {
        Self { adamw, muon, steps: 0, state: BTreeMap::new() }
    }

    /// Largest attention logit that is left alone, if there is a bound.
    pub(super) fn qk_clip(&self) -> Option<f64> {
        self.muon.and_then(|muon| muon.qk_clip)
    }

    /// The values that updates are made on: the parameter itself, or its master.
    fn master(&mut self, name: &str, param: &Tensor) -> Tensor {
        if param.kind() != Kind::BFloat16 {
            return param.shallow_clone();
        }
        let made = || param.to_kind(Kind::Float);
        self.state.entry(format!("{MASTER}{name}")).or_insert_with(made).shallow_clone()
    }

    /// The masters that there are, by their parameters' names.
    pub(super) fn masters(&self) -> Params {
        let named = |(slot, master): (&String, &Tensor)| {
            slot.strip_prefix(MASTER).map(|name| (name.to_owned(), master.shallow_clone()))
        };
        self.state.iter().filter_map(named).collect()
    }

    fn slot(&mut self, name: String, like: &Tensor) -> Tensor {
        self.state.entry(name).or_insert_with(|| like.zeros_like()).shallow_clone()
    }

    /// One update of `params` along `grads`, which are scaled by `scale` first; tensors are shared out to `workers`.
    /// `rows` cuts fused projections into their parts, each of which is orthogonalised alone.
    pub(super) fn update(
        &mut self,
        params: &Params,
        grads: Vec<(String, Tensor)>,
        scale: f64,
        lr: f64,
        rows: &(dyn Fn(&str) -> Vec<i64> + Sync),
        workers: &rayon::ThreadPool,
    ) {
        self.steps += 1;
        let (adamw, steps) = (self.adamw, i32::try_from(self.steps).unwrap_or(i32::MAX));
        let mut work: Vec<Work> = Vec::with_capacity(grads.len());
        for (name, grad) in grads {
            let param = params[&name].shallow_clone();
            let projection = name.starts_with("layers.") && param.dim() == 2;
            let muon = self.muon.filter(|_| projection);
            let slots = if muon.is_some() { &["momentum"][..] } else { &["m", "v"] };
            let master = self.master(&name, &param);
            let state: Vec<Tensor> =
                slots.iter().map(|slot| self.slot(format!("{slot}.{name}"), &master)).collect();
            work.push((name, param, master, grad, state, muon));
        }
        let one = |(name, mut param, master, mut grad, state, muon): Work| {
            if scale < 1.0 {
                let _ = grad.g_mul_scalar_(scale);
            }
            match (muon, &state[..]) {
                (Some(muon), [mean]) => muon.step(&master, &grad, mean, lr, &rows(&name)),
                (_, [m, v]) => adamw.step(&master, &grad, (m, v), lr, steps),
                _ => {}
            }
            if param.kind() == Kind::BFloat16 {
                param.copy_(&master);
            }
        };
        workers.install(|| work.into_par_iter().for_each(|tensor| tch::no_grad(|| one(tensor))));
    }
}

impl AdamW {
    /// Step number `t`, from 1.
    fn step(self, param: &Tensor, grad: &Tensor, (m, v): (&Tensor, &Tensor), lr: f64, t: i32) {
        let Self { beta1, beta2, eps, weight_decay } = self;
        let decay = if param.dim() > 1 { 1.0 - lr * weight_decay } else { 1.0 };
        let length = stretch(param);
        let stretches = |x: &Tensor| x.view([-1]).split(length, 0).into_iter();
        let each = stretches(param).zip(stretches(&grad.contiguous())).zip(stretches(m).zip(stretches(v)));
        for ((mut param, grad), (mut m, mut v)) in each {
            m.copy_(&(&m * beta1 + &grad * (1.0 - beta1)));
            v.copy_(&(&v * beta2 + grad.square() * (1.0 - beta2)));
            let step = (&m / (1.0 - beta1.powi(t))) / ((&v / (1.0 - beta2.powi(t))).sqrt() + eps);
            param.copy_(&(&param * decay - step * lr));
        }
    }
}

impl Muon {
    fn step(self, param: &Tensor, grad: &Tensor, mean: &Tensor, lr: f64, rows: &[i64]) {
        let lr = lr * self.lr_factor;
        let mut mean = mean.shallow_clone();
        mean.copy_(&(&mean * self.momentum + grad));
        // Nesterov: look ahead along the mean.
        let ahead = grad + &mean * self.momentum;
        let parts: Vec<Tensor> = ahead.split_with_sizes(rows, 0).iter().map(matched).collect();
        let step = Tensor::cat(&parts, 0);
        param.shallow_clone().copy_(&(param * (1.0 - lr * self.weight_decay) - step * lr));
    }
}

/// The orthogonal matrix next to `g`, scaled so that its elements' RMS is 0.2 whatever its shape.
fn matched(g: &Tensor) -> Tensor {
    let (rows, columns) = g.size2().unwrap_or((1, 1));
    orthogonal(g) * (0.2 * (rows.max(columns) as f64).sqrt())
}

/// Five rounds of the quintic Newton–Schulz iteration on g / ‖g‖.
fn orthogonal(g: &Tensor) -> Tensor {
    let (a, b, c) = (3.4445, -4.7750, 2.0315);
    let tall = g.size2().is_ok_and(|(rows, columns)| rows > columns);
    let mut x = if tall { g.transpose(0, 1) } else { g.shallow_clone() };
    x = &x / (x.norm() + 1e-7);
    for _ in 0..5 {
        let square = x.matmul(&x.transpose(0, 1));
        let polynomial = &square * b + square.matmul(&square) * c;
        x = &x * a + polynomial.matmul(&x);
    }
    if tall { x.transpose(0, 1) } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn muon_steps_are_orthogonal_and_of_matched_size() {
        tch::manual_seed(1);
        for (rows, columns) in [(16, 48), (48, 16), (20, 20)] {
            let g = Tensor::randn([rows, columns], (Kind::Float, tch::Device::Cpu));
            let (_, singular, _) = orthogonal(&g).svd(true, true);
            let (low, high) = (singular.min().double_value(&[]), singular.max().double_value(&[]));
            assert!(low > 0.3 && high < 1.3, "{rows}x{columns}: {low} {high}");
            let rms = matched(&g).square().mean(Kind::Float).sqrt().double_value(&[]);
            assert!((0.12..0.26).contains(&rms), "{rms}");
        }
    }
}
