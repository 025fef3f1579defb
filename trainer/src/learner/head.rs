//! The head: log-probs of tokens that were drawn, and their gradients, over a stretch of rows at a time.
//!
//! Autograd would keep several matrices of rows × vocabulary. Here there is one, of probabilities, and the gradient of
//! a log-prob with respect to its logits is known: 1 at the token drawn, less the probabilities.

use parl_kernels::cpu::{Level, training};
use tch::{Device, Kind, Tensor};

use super::by_hand;
use super::model::wide;
use super::shim::{floats, floats_mut};

/// Logits of a stretch, about: rows enough that the products reach their speed, since softmax works row by row; on a card
/// enough to fill it.
const LOGITS: i64 = 1 << 22;
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
            let (p, of_target, of_row) = softmax(logits, &targets);
            logp.push(of_target);
            entropy.push(of_row);
            if keep {
                probabilities.push(p);
            }
        }
        Drawn { logp: Tensor::cat(&logp, 0), entropy: Tensor::cat(&entropy, 0), probabilities }
    })
}

/// Of `logits[rows, vocab]`, whose memory may be used again: probabilities, log-probs of `targets[rows]`, and entropies.
fn softmax(mut logits: Tensor, targets: &Tensor) -> (Tensor, Tensor, Tensor) {
    if !by_hand::fits([&logits]) {
        let mut log = logits.log_softmax(-1, None);
        let of_target = log.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
        let p = log.exp_out(&logits);
        let entropy = -log.g_mul_(&p).sum_dim_intlist(-1, false, None);
        return (p, of_target, entropy);
    }
    let (rows, vocab) = logits.size2().unwrap_or((0, 0));
    let [mut logp, mut entropy] = [(); 2].map(|()| Tensor::empty([rows], (Kind::Float, Device::Cpu)));
    let told = (floats_mut(&mut logp), floats_mut(&mut entropy));
    let (p, targets) = (floats_mut(&mut logits), whole(targets));
    training::softmax(Level::best(), p, vocab as usize, &targets, told.0, told.1);
    (logits, logp, entropy)
}

/// The gradient of Σ `slope[rows]` · log-prob with respect to the logits, in the place of the probabilities.
fn softmax_backward(mut p: Tensor, targets: &Tensor, slope: &Tensor) -> Tensor {
    if !by_hand::fits([&p]) {
        let slope = slope.unsqueeze(1);
        return p.g_mul_(&-&slope).scatter_add_(1, &targets.unsqueeze(1), &slope);
    }
    let vocab = p.size()[1] as usize;
    training::softmax_backward(Level::best(), floats_mut(&mut p), vocab, &whole(targets), floats(slope));
    p
}

fn whole(targets: &Tensor) -> Vec<i64> {
    let mut values = vec![0; targets.numel()];
    let n = values.len();
    targets.copy_data(&mut values, n);
    values
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
            for (p, ((x, targets), slope)) in self.probabilities.into_iter().zip(of_rows) {
                let by_logits = softmax_backward(p, &targets, &slope);
                by_x.push(by_logits.matmul(head));
                let _ = by_head.addmm_(&by_logits.transpose(0, 1), &x);
            }
            (Tensor::cat(&by_x, 0), by_head)
        })
    }
}
