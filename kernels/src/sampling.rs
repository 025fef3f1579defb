//! Drawing a token: temperature, top-k, top-p, and the log-prob of what was drawn.
//!
//! The log-prob is always of softmax(logits / temperature) before anything is cut off, so that the learner can
//! recompute it from the logits alone.

use crate::KernelError;
use crate::backend::{Draw, Drawn, Sampling};

impl Sampling {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`KernelError::Sampling`] naming the parameter, its value and its bound.
    pub fn validate(&self) -> Result<(), KernelError> {
        let refuse = |text: String| Err(KernelError::Sampling(text));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refuse(format!("temperature is {}, must be 0 (greedy) or above", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse(format!("top_p is {}, must be above 0 and at most 1", self.top_p));
        }
        Ok(())
    }
}

/// Draws from `logits`; `scratch` is reused between calls.
pub fn draw(logits: &[f32], draw: &Draw, scratch: &mut Vec<(f64, u32)>) -> Drawn {
    let sampling = &draw.sampling;
    let temperature = if sampling.temperature > 0.0 { f64::from(sampling.temperature) } else { 1.0 };
    let best = argmax(logits);
    let top = f64::from(logits[best]) / temperature;
    let weight = |logit: f32| (f64::from(logit) / temperature - top).exp();
    // One pass in the order of the ids: the sum's bits depend on the logits alone.
    let total: f64 = logits.iter().map(|l| weight(*l)).sum();
    let drawn = |id: u32| {
        let logit = f64::from(logits[id as usize]) / temperature;
        Drawn { id, logprob: (logit - top - total.ln()) as f32 }
    };
    if sampling.temperature == 0.0 {
        return drawn(best as u32);
    }
    let uniform = draw.key.uniform_f64(draw.position);
    let cut = (sampling.top_k > 0 && (sampling.top_k as usize) < logits.len()) || sampling.top_p < 1.0;
    if !cut {
        let weights = logits.iter().zip(0u32..).map(|(l, id)| (weight(*l), id));
        return drawn(pick(weights, uniform * total, best as u32));
    }
    scratch.clear();
    scratch.extend(logits.iter().zip(0u32..).map(|(l, id)| (weight(*l), id)));
    // Likeliest first, equal ones in the order of their ids.
    scratch.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut keep =
        if sampling.top_k == 0 { scratch.len() } else { scratch.len().min(sampling.top_k as usize) };
    let mut mass = 0.0;
    for (i, (w, _)) in scratch[..keep].iter().enumerate() {
        mass += w;
        if mass >= f64::from(sampling.top_p) * total {
            keep = i + 1;
            break;
        }
    }
    drawn(pick(scratch[..keep].iter().copied(), uniform * mass, best as u32))
}

/// The first id at which the running sum passes `target`; `last_resort` when rounding leaves none.
fn pick(weights: impl Iterator<Item = (f64, u32)>, target: f64, last_resort: u32) -> u32 {
    let mut sum = 0.0;
    for (w, id) in weights {
        sum += w;
        if sum > target {
            return id;
        }
    }
    last_resort
}

fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{RngKey, Stream};

    fn at(temperature: f32, top_k: u32, top_p: f32, position: u32) -> Draw {
        let key = RngKey { seed: 3, stream: Stream::Sample, episode: 1, agent: 0 };
        Draw { sampling: Sampling { temperature, top_k, top_p }, key, position }
    }

    const LOGITS: [f32; 6] = [0.5, 2.0, -1.0, 2.5, 0.0, -3.0];

    fn probabilities(temperature: f64) -> Vec<f64> {
        let weights: Vec<f64> = LOGITS.iter().map(|l| (f64::from(*l) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|w| w / total).collect()
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let (n, mut scratch) = (40_000, Vec::new());
        for temperature in [1.0f32, 0.6] {
            let mut counts = [0u32; 6];
            for position in 0..n {
                let d = draw(&LOGITS, &at(temperature, 0, 1.0, position), &mut scratch);
                counts[d.id as usize] += 1;
                let p = probabilities(f64::from(temperature))[d.id as usize];
                assert!((f64::from(d.logprob) - p.ln()).abs() < 1e-5);
            }
            let chi2: f64 = counts
                .iter()
                .zip(probabilities(f64::from(temperature)))
                .map(|(c, p)| (f64::from(*c) - p * f64::from(n)).powi(2) / (p * f64::from(n)))
                .sum();
            // 5 degrees of freedom: 20.5 is the 99.9th percentile.
            assert!(chi2 < 20.5, "{chi2} at {temperature}");
        }
    }

    #[test]
    fn truncation_keeps_the_likeliest_and_the_log_prob_of_the_whole() {
        let mut scratch = Vec::new();
        for position in 0..500 {
            let k = draw(&LOGITS, &at(1.0, 2, 1.0, position), &mut scratch);
            assert!(k.id == 3 || k.id == 1);
            assert!((f64::from(k.logprob) - probabilities(1.0)[k.id as usize].ln()).abs() < 1e-5);
            // 0.52 is below the likeliest's mass, so that one alone is kept.
            assert_eq!(draw(&LOGITS, &at(1.0, 0, 0.5, position), &mut scratch).id, 3);
            assert_eq!(draw(&LOGITS, &at(0.0, 0, 1.0, position), &mut scratch).id, 3);
        }
        assert!(at(f32::NAN, 0, 1.0, 0).sampling.validate().is_err());
        assert!(at(1.0, 0, 0.0, 0).sampling.validate().is_err());
        assert!(at(1.0, 0, 1.1, 0).sampling.validate().is_err());
    }
}
