//! A micro-batch: families of samples as tensors, its loss and its gradients.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use parl_kernels::shape::ModelShape;
use tch::{Device, Kind, Tensor};

use super::attention::Segments;
use super::by_hand::{self, Layers};
use super::head::{Drawn, drawn};
use super::model::{Packed, Params, head_name, hidden, wide};
use super::objective::Tokens;
use super::packing::Family;
use super::{Objective, Sample};

/// The tensors of a micro-batch. Trained tokens stand in the order of families, members, tokens.
pub(super) struct MicroBatch {
    packed: Packed,
    /// Of the predictions that differ: the row of `packed` that a token is drawn at, the token, the temperature.
    rows: Tensor,
    targets: Tensor,
    temperatures: Tensor,
    /// Of the trained tokens: which of the predictions each is, and what the objective asks for.
    prediction: Tensor,
    old: Tensor,
    advantage: Tensor,
    weight: Tensor,
    sequence: Tensor,
    lengths: Tensor,
}

/// What came of a micro-batch: sums over its trained tokens, and gradients by name.
pub(super) struct Micro {
    pub grads: BTreeMap<String, Tensor>,
    pub loss: f64,
    pub entropy: f64,
    pub kl: f64,
    pub worst: f64,
    pub outside: (f64, f64),
    pub tokens: usize,
    pub forward_seconds: f64,
    pub backward_seconds: f64,
}

impl MicroBatch {
    /// Of these families; `options` are the type and the place of the parameters, `shares` is each sample's tokens' share
    /// of the loss.
    pub(super) fn of(
        samples: &[Sample],
        families: &[Family],
        shares: &[f64],
        options: (Kind, Device),
    ) -> Self {
        let (mut tokens, mut positions) = (Vec::new(), Vec::new());
        let (mut rows, mut targets, mut temperatures) = (Vec::new(), Vec::new(), Vec::new());
        let (mut prediction, mut old, mut advantage) = (Vec::new(), Vec::new(), Vec::new());
        let (mut weight, mut sequence, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        // Samples that go on alike in their prefix draw the same tokens at the same places.
        let mut known: HashMap<(usize, u32, u32), i64> = HashMap::new();
        let mut segments = Vec::new();
        let mut compute = |inputs: &[u32], from: usize| {
            tokens.extend(inputs.iter().map(|t| i64::from(*t)));
            positions.extend((from..from + inputs.len()).map(|p| p as i64));
            tokens.len() - inputs.len()
        };
        for Family { prefix, members } in families {
            let base = compute(&samples[members[0]].inputs()[..*prefix], 0);
            let mut suffixes = Vec::new();
            for i in members {
                let sample = &samples[*i];
                let own = &sample.inputs()[*prefix..];
                let start = compute(own, *prefix);
                suffixes.push(own.len());
                for t in (0..sample.tokens.len()).filter(|t| sample.mask[*t]) {
                    // A token is predicted from the place before it.
                    let row = if t > *prefix { start + t - 1 - prefix } else { base + t - 1 };
                    let (token, temperature) = (sample.tokens[t], sample.temperatures[t]);
                    prediction.push(*known.entry((row, token, temperature.to_bits())).or_insert_with(|| {
                        rows.push(row as i64);
                        targets.push(i64::from(token));
                        temperatures.push(temperature);
                        rows.len() as i64 - 1
                    }));
                    old.push(sample.logprobs[t]);
                    advantage.push(sample.advantage);
                    weight.push(shares[*i] as f32);
                    sequence.push(lengths.len() as i64);
                }
                lengths.push(sample.trained() as f32);
            }
            segments.push(Segments::new(*prefix, &suffixes, options));
        }
        let whole = |values: &[i64]| Tensor::from_slice(values).to_device(options.1);
        let real = |values: &[f32]| Tensor::from_slice(values).to_device(options.1);
        Self {
            packed: Packed { tokens: whole(&tokens), positions: whole(&positions), families: segments },
            rows: whole(&rows),
            targets: whole(&targets),
            temperatures: real(&temperatures),
            prediction: whole(&prediction),
            old: real(&old),
            advantage: real(&advantage),
            weight: real(&weight),
            sequence: whole(&sequence),
            lengths: real(&lengths),
        }
    }

    /// Those of the hidden states that predict, over their temperatures, `[predictions, hidden]`: logits / T are these
    /// times the head.
    fn drawn_at(&self, hidden: &Tensor) -> Tensor {
        wide(&hidden.index_select(0, &self.rows)) / self.temperatures.unsqueeze(1)
    }

    /// Log-probs of the trained tokens, without gradient.
    pub(super) fn log_probs(&self, shape: &ModelShape, params: &Params) -> Tensor {
        let hidden = if by_hand::fits(params.values()) {
            Layers::new(shape, params, &self.packed).forward(false)
        } else {
            tch::no_grad(|| hidden(shape, params, &self.packed))
        };
        let x = self.drawn_at(&hidden);
        drawn(&params[head_name(shape)], &x, &self.targets, false).logp.index_select(0, &self.prediction)
    }

    /// Loss and gradients; `params` are handles that nobody else has, so that each gets a gradient of its own.
    pub(super) fn backward(&self, shape: &ModelShape, params: Params, objective: Objective) -> Micro {
        let started = Instant::now();
        let by_hand = by_hand::fits(params.values());
        let leaves: Params =
            params.into_iter().map(|(name, p)| (name, p.set_requires_grad(!by_hand))).collect();
        let head = &leaves[head_name(shape)];
        let mut layers = by_hand.then(|| Layers::new(shape, &leaves, &self.packed));
        let hidden = match &mut layers {
            Some(layers) => layers.forward(true),
            None => hidden(shape, &leaves, &self.packed),
        };
        let x = self.drawn_at(&hidden);
        let words: Drawn = drawn(head, &x, &self.targets, true);
        let entropy = words.entropy.index_select(0, &self.prediction);
        let predicted = words.logp.shallow_clone().set_requires_grad(true);
        let logp = predicted.index_select(0, &self.prediction);
        let tokens = Tokens {
            logp: &logp,
            old: &self.old,
            advantage: &self.advantage,
            weight: &self.weight,
            sequence: &self.sequence,
            lengths: &self.lengths,
        };
        let loss = objective.loss(&tokens);
        let forward_seconds = started.elapsed().as_secs_f64();
        loss.backward();
        let (by_x, by_head) = words.gradients(head, &x, &self.targets, &predicted.grad());
        let mut grads: BTreeMap<String, Tensor> = if let Some(layers) = layers {
            let by_chosen = by_x / self.temperatures.unsqueeze(1);
            let tokens = hidden.size()[0];
            layers.backward(&Tensor::embedding_dense_backward(&by_chosen, &self.rows, tokens, -1, false))
        } else {
            // The gradient of this sum with respect to `x` is `by_x`.
            (&x * by_x).sum(None).backward();
            let found = leaves.iter().map(|(name, leaf)| (name, leaf.grad())).filter(|(_, g)| g.defined());
            found.map(|(name, g)| (name.clone(), wide(&g))).collect()
        };
        match grads.get_mut(head_name(shape)) {
            Some(embedding) => drop(embedding.g_add_(&by_head)),
            None => drop(grads.insert(head_name(shape).to_owned(), by_head)),
        }
        let backward_seconds = started.elapsed().as_secs_f64() - forward_seconds;
        let number = |t: &Tensor| t.to_kind(Kind::Double).sum(None).double_value(&[]);
        let (kl, worst, outside) = tch::no_grad(|| {
            let log_ratio = (&logp - &self.old).to_kind(Kind::Double);
            let kl = log_ratio.exp() - 1.0 - &log_ratio;
            (number(&kl), log_ratio.abs().max().double_value(&[]), objective.outside(&tokens))
        });
        Micro {
            grads,
            loss: number(&loss.detach()),
            entropy: number(&entropy),
            kl,
            worst,
            outside,
            tokens: logp.numel(),
            forward_seconds,
            backward_seconds,
        }
    }
}
