//! The head: log-probs of tokens that were drawn, and their gradients, over a stretch of rows at a time.
//!
//! Autograd would keep several matrices of rows × vocabulary. Here there is one, of probabilities, and the gradient of
//! a log-prob with respect to its logits is known: 1 at the token drawn, less the probabilities.

use tch::Tensor;

use super::model::wide;

/// Logits of a stretch, about: few enough to stay in the caches between the operations on them; on a card enough to fill
/// it.
const LOGITS: i64 = 1 << 20;
const LOGITS_ON_CARD: i64 = 1 << 28;
/// Rows of a stretch, at least: the matrix products need some.
const ROWS: i64 = 256;

/// What the head says of tokens that were drawn.
pub(super) struct Drawn {
    /// `[rows]`: log-probs.
    pub logp: Tensor,
    /// `[rows]`: entropies of the distributions, nats.
    pub entropy: Tensor,
    /// Of each stretch `[rows of it, vocab]`.
    probabilities: Vec<Tensor>,
}

fn stretch(head: &Tensor) -> i64 {
    let logits = if head.device().is_cuda() { LOGITS_ON_CARD } else { LOGITS };
    (logits / head.size()[0].max(1)).max(ROWS)
}

/// Log-probs of `targets[rows]` under softmax(`x` · `head`ᵀ), with `x[rows, hidden]` divided by the temperatures and
/// `head[vocab, hidden]`. No graph is made; probabilities are kept for [`Drawn::gradients`] if asked for.
pub(super) fn drawn(head: &Tensor, x: &Tensor, targets: &Tensor, keep: bool) -> Drawn {
    let (mut logp, mut entropy, mut probabilities) = (Vec::new(), Vec::new(), Vec::new());
    tch::no_grad(|| {
        let head = &wide(head);
        let rows = stretch(head);
        for (x, targets) in x.split(rows, 0).iter().zip(targets.split(rows, 0)) {
            let logits = x.linear::<&Tensor>(head, None);
            let mut log = logits.log_softmax(-1, None);
            logp.push(log.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1));
            // The logits are no longer needed, their memory is.
            let p = log.exp_out(&logits);
            entropy.push(-log.g_mul_(&p).sum_dim_intlist(-1, false, None));
            if keep {
                probabilities.push(p);
            }
        }
        Drawn { logp: Tensor::cat(&logp, 0), entropy: Tensor::cat(&entropy, 0), probabilities }
    })
}

impl Drawn {
    /// Gradients of Σ `slope[rows]` · log-prob with respect to `x[rows, hidden]` and `head[vocab, hidden]`, which are
    /// what [`drawn`] was given.
    pub(super) fn gradients(
        self,
        head: &Tensor,
        x: &Tensor,
        targets: &Tensor,
        slope: &Tensor,
    ) -> (Tensor, Tensor) {
        tch::no_grad(|| {
            let head = &wide(head);
            let rows = stretch(head);
            let of_rows = x.split(rows, 0).into_iter().zip(targets.split(rows, 0)).zip(slope.split(rows, 0));
            let (mut by_x, mut by_head) = (Vec::new(), head.zeros_like());
            for (mut p, ((x, targets), slope)) in self.probabilities.into_iter().zip(of_rows) {
                let slope = slope.unsqueeze(1);
                let mut by_logits = p.g_mul_(&-&slope);
                let by_logits = by_logits.scatter_add_(1, &targets.unsqueeze(1), &slope);
                by_x.push(by_logits.matmul(head));
                let _ = by_head.addmm_(&by_logits.transpose(0, 1), &x);
            }
            (Tensor::cat(&by_x, 0), by_head)
        })
    }
}
