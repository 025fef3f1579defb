//! Drawing a token from logits: greedy, or by the inverse of the distribution function, in one fixed order.

use crate::KernelError;
use crate::backend::{Draw, Drawn, Sampling};
use crate::cpu::Level;
use crate::cpu::math::{RUN, softmax_weights};

/// Temperatures allowed beside 0 (greedy): outside them f32 softmax means nothing.
pub const TEMPERATURES: std::ops::RangeInclusive<f32> = 1e-3..=1e3;

impl Sampling {
    /// Likeliest token, always.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0 };

    /// Checks the bounds.
    ///
    /// # Errors
    /// [`KernelError::Sampling`] naming the parameter and its bound.
    pub fn validate(&self) -> Result<(), KernelError> {
        let t = self.temperature;
        if t != 0.0 && !TEMPERATURES.contains(&t) {
            return Err(KernelError::Sampling(format!(
                "temperature is {t}, must be 0 or in {}..={}",
                TEMPERATURES.start(),
                TEMPERATURES.end()
            )));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(KernelError::Sampling(format!(
                "top_p is {}, must be above 0 and at most 1",
                self.top_p
            )));
        }
        Ok(())
    }
}

/// Memory that draws reuse.
#[derive(Debug, Default)]
pub struct Workspace {
    weights: Vec<f32>,
    runs: Vec<f32>,
    order: Vec<u32>,
}

/// Draws one token from `logits` (before temperature).
///
/// Truncation keeps the `top_k` likeliest (ties: the lower id), then of those the smallest set with at least
/// `top_p` of their mass. The log-prob is of softmax(logits / temperature) over the whole vocabulary.
///
/// # Errors
/// [`KernelError::Sampling`] when a parameter is out of bounds, or `logits` is empty or not finite.
pub fn draw(level: Level, logits: &[f32], draw: &Draw, work: &mut Workspace) -> Result<Drawn, KernelError> {
    let sampling = &draw.sampling;
    sampling.validate()?;
    if logits.is_empty() {
        return Err(KernelError::Sampling("there are no logits".to_owned()));
    }
    let greedy = sampling.temperature == 0.0;
    let temperature = if greedy { 1.0 } else { sampling.temperature };
    let largest = softmax_weights(level, logits, temperature, &mut work.weights, &mut work.runs)
        .ok_or_else(|| KernelError::Sampling("a logit is not finite".to_owned()))?;
    let total: f64 = work.runs.iter().map(|&r| f64::from(r)).sum();
    let weights = &work.weights[..logits.len()];
    let id = if greedy {
        logits.iter().position(|&l| l >= largest).unwrap_or(0)
    } else {
        let uniform = draw.key.uniform_f64(draw.position);
        let top_k = if sampling.top_k == 0 { logits.len() } else { sampling.top_k as usize };
        if top_k >= logits.len() && sampling.top_p >= 1.0 {
            draw_whole(weights, &work.runs, uniform * total)
        } else {
            keep(weights, total, top_k, sampling.top_p, &mut work.order);
            let mass: f64 = work.order.iter().map(|&i| f64::from(weights[i as usize])).sum();
            walk(work.order.iter().map(|&i| i as usize), weights, uniform * mass)
        }
    };
    let logprob = f64::from(logits[id] - largest) / f64::from(temperature) - total.ln();
    Ok(Drawn { id: id as u32, logprob: logprob as f32 })
}

/// The token at which the running sum passes `target`: first among the runs, then inside one.
fn draw_whole(weights: &[f32], runs: &[f32], target: f64) -> usize {
    let (mut before, mut run) = (0.0, 0);
    for (i, &sum) in runs.iter().enumerate() {
        if sum > 0.0 {
            run = i;
            if before + f64::from(sum) > target {
                break;
            }
        }
        before += f64::from(sum);
    }
    // Past the last run's rounded sum the walk ends at the run's last likely token.
    walk(run * RUN..((run + 1) * RUN).min(weights.len()), weights, target - before)
}

/// The first of `ids` at which the running sum passes `target`, else the last with any weight.
fn walk(ids: impl Iterator<Item = usize>, weights: &[f32], target: f64) -> usize {
    let (mut sum, mut last) = (0.0, 0);
    for id in ids {
        let weight = f64::from(weights[id]);
        if weight > 0.0 {
            last = id;
            sum += weight;
            if sum > target {
                break;
            }
        }
    }
    last
}

/// Fills `order` with the ids kept, likeliest first, ties by id.
fn keep(weights: &[f32], total: f64, top_k: usize, top_p: f32, order: &mut Vec<u32>) {
    order.clear();
    let likelier = |&a: &u32, &b: &u32| weights[b as usize].total_cmp(&weights[a as usize]).then(a.cmp(&b));
    if top_k >= weights.len() {
        // All tokens below this together weigh less than what top_p may drop, so none of them is kept: most of a
        // vocabulary need not be sorted. Halved, to stay clear of rounding.
        let floor = 0.5 * (1.0 - f64::from(top_p)) * total / weights.len() as f64;
        order.extend((0..weights.len() as u32).filter(|&i| f64::from(weights[i as usize]) >= floor));
    } else {
        order.extend(0..weights.len() as u32);
        order.select_nth_unstable_by(top_k - 1, likelier);
        order.truncate(top_k);
    }
    order.sort_unstable_by(likelier);
    if top_p < 1.0 {
        let mass = if top_k >= weights.len() {
            total
        } else {
            order.iter().map(|&i| f64::from(weights[i as usize])).sum()
        };
        let wanted = f64::from(top_p) * mass;
        let mut sum = 0.0;
        let kept = order.iter().position(|&i| {
            sum += f64::from(weights[i as usize]);
            sum >= wanted
        });
        order.truncate(kept.map_or(order.len(), |last| last + 1));
    }
}

#[cfg(test)]
mod tests;
