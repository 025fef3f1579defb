//! AdamW over named tensors, whose state can be saved and put back exactly (Loshchilov & Hutter, 2019).

use std::collections::BTreeMap;

use tch::Tensor;

use super::model::Params;

/// AdamW with its state.
#[derive(Debug)]
pub struct AdamW {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second mean.
    pub eps: f64,
    /// Decoupled weight decay; norms and biases (one-dimensional) have none.
    pub weight_decay: f64,
    /// Updates made.
    pub(super) steps: u64,
    pub(super) moments: BTreeMap<String, (Tensor, Tensor)>,
}

impl AdamW {
    /// A fresh one.
    pub fn new(beta1: f64, beta2: f64, eps: f64, weight_decay: f64) -> Self {
        Self { beta1, beta2, eps, weight_decay, steps: 0, moments: BTreeMap::new() }
    }

    /// One update of `params` along `grads`, names in a fixed order.
    pub(super) fn update(&mut self, params: &Params, grads: &BTreeMap<String, Tensor>, lr: f64) {
        self.steps += 1;
        let t = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let (c1, c2) = (1.0 - self.beta1.powi(t), 1.0 - self.beta2.powi(t));
        tch::no_grad(|| {
            for (name, grad) in grads {
                let mut param = params[name].shallow_clone();
                let (m, v) = self
                    .moments
                    .entry(name.clone())
                    .or_insert_with(|| (param.zeros_like(), param.zeros_like()));
                *m = &*m * self.beta1 + grad * (1.0 - self.beta1);
                *v = &*v * self.beta2 + grad.square() * (1.0 - self.beta2);
                let step = (&*m / c1) / ((&*v / c2).sqrt() + self.eps);
                let decay = if param.dim() > 1 { 1.0 - lr * self.weight_decay } else { 1.0 };
                let updated = &param * decay - step * lr;
                param.copy_(&updated);
            }
        });
    }
}
