//! What updates did, in figures.

/// What an update did, or the updates of a step together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepReport {
    /// Updates.
    pub updates: usize,
    /// The objective's value before the update; their mean.
    pub loss: f64,
    /// Norm of all gradients together, before clipping; the largest.
    pub grad_norm: f64,
    /// Mean entropy of the trained tokens' distributions, nats.
    pub entropy: f64,
    /// Mean of r − 1 − ln r with r = π_learner / π_engine, before the first update.
    pub mismatch_kl: f64,
    /// Largest |log π_learner − log π_engine|, before the first update.
    pub mismatch_max: f64,
    /// Share of tokens whose ratio fell below the objective's bounds.
    pub clipped_low: f64,
    /// Share of tokens whose ratio rose above them.
    pub clipped_high: f64,
    /// Groups of attention heads that QK-Clip scaled down after the update.
    pub qk_clipped: usize,
    /// Tokens trained on; those of samples without a gradient are left out.
    pub trained_tokens: usize,
    /// Tokens computed; what samples begin with alike counts once.
    pub computed_tokens: usize,
    /// Seconds.
    pub seconds: f64,
    /// Of them: forward passes up to the loss, and backward passes, as means over the workers.
    pub forward_seconds: f64,
    /// See `forward_seconds`.
    pub backward_seconds: f64,
    /// Of them: the optimizer, QK-Clip included.
    pub optimizer_seconds: f64,
}

impl StepReport {
    /// The report of consecutive updates as one; `None` when there is none.
    pub fn together(reports: &[Self]) -> Option<Self> {
        let (first, rest) = reports.split_first()?;
        if rest.is_empty() {
            return Some(*first);
        }
        let sum = |of: fn(&Self) -> usize| reports.iter().map(of).sum::<usize>();
        let seconds = |of: fn(&Self) -> f64| reports.iter().map(of).sum::<f64>();
        let trained_tokens = sum(|r| r.trained_tokens);
        let mean = |of: fn(&Self) -> f64| {
            let weighed: f64 = reports.iter().map(|r| of(r) * r.trained_tokens as f64).sum();
            weighed / trained_tokens.max(1) as f64
        };
        // An update on nothing moves nothing: the engine is compared with the learner by the first one that had tokens.
        let unmoved = reports.iter().find(|r| r.trained_tokens > 0).unwrap_or(first);
        Some(Self {
            updates: sum(|r| r.updates),
            loss: reports.iter().map(|r| r.loss).sum::<f64>() / reports.len() as f64,
            grad_norm: reports.iter().map(|r| r.grad_norm).fold(0.0, f64::max),
            entropy: mean(|r| r.entropy),
            mismatch_kl: unmoved.mismatch_kl,
            mismatch_max: unmoved.mismatch_max,
            clipped_low: mean(|r| r.clipped_low),
            clipped_high: mean(|r| r.clipped_high),
            qk_clipped: sum(|r| r.qk_clipped),
            trained_tokens,
            computed_tokens: sum(|r| r.computed_tokens),
            seconds: seconds(|r| r.seconds),
            forward_seconds: seconds(|r| r.forward_seconds),
            backward_seconds: seconds(|r| r.backward_seconds),
            optimizer_seconds: seconds(|r| r.optimizer_seconds),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_are_told_together() {
        let update = |loss, tokens, kl, clipped| StepReport {
            updates: 1,
            loss,
            grad_norm: loss * 2.0,
            entropy: loss,
            mismatch_kl: kl,
            mismatch_max: kl,
            clipped_high: clipped,
            trained_tokens: tokens,
            seconds: 1.0,
            ..StepReport::default()
        };
        assert_eq!(StepReport::together(&[]), None);
        let one = update(0.1, 3, 0.1, 0.3);
        assert_eq!(StepReport::together(&[one]), Some(one));
        // The first had nothing to learn from; the third is far from what drew its tokens.
        let three = [update(0.0, 0, 0.0, 0.0), update(1.0, 30, 0.25, 0.0), update(2.0, 10, 0.5, 1.0)];
        let told = StepReport::together(&three).unwrap();
        assert_eq!((told.updates, told.trained_tokens, told.loss, told.grad_norm), (3, 40, 1.0, 4.0));
        assert_eq!((told.entropy, told.clipped_high, told.seconds), (1.25, 0.25, 3.0));
        assert_eq!((told.mismatch_kl, told.mismatch_max), (0.25, 0.25));
    }
}
