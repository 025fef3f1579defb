//! The layers forward and backward on a CPU in f32, by hand: autograd goes over memory several times for each norm,
//! rotation and gate, once here. Only attention is left to it. [`super::model`] says the same in autograd's terms, for
//! cards and other types; tests hold the two together.

use std::collections::BTreeMap;

use parl_kernels::cpu::{Level, training};
use parl_kernels::shape::ModelShape;
use tch::{Device, Kind, Tensor};

use super::attention::attention;
use super::model::{Packed, Params, angles, spread};
use super::shim::{floats, floats_mut};

/// Whether such tensors are worked on here.
pub(super) fn fits<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    tensors.into_iter().all(|t| t.device() == Device::Cpu && t.kind() == Kind::Float)
}

/// A norm's input and output, `[rows, width]`, and 1 / rms of each row.
struct Normed {
    x: Tensor,
    y: Tensor,
    inverse: Tensor,
}

impl Normed {
    fn new(level: Level, x: &Tensor, weight: &Tensor, eps: f64) -> Self {
        let (x, mut y) = (x.contiguous(), x.empty_like());
        let mut inverse = Tensor::empty([(x.numel() / weight.numel()) as i64], (Kind::Float, Device::Cpu));
        let (to, scales) = (floats_mut(&mut y), floats_mut(&mut inverse));
        training::rms_norm(level, floats(&x), floats(weight), eps as f32, to, scales);
        Self { x, y, inverse }
    }

    /// Adds to the gradient with respect to `x`; gives that with respect to `weight`.
    fn backward(&self, level: Level, weight: &Tensor, by_y: &Tensor, by_x: &mut Tensor) -> Tensor {
        let mut by_weight = weight.zeros_like();
        let (to, also) = (floats_mut(by_x), floats_mut(&mut by_weight));
        let (x, inverse) = (floats(&self.x), floats(&self.inverse));
        training::rms_norm_backward(level, x, floats(weight), inverse, floats(by_y), to, also);
        by_weight
    }
}

/// What a layer's backward pass asks of its forward pass.
struct Layer {
    input: Normed,
    /// Heads of q and k before and after their norms, where they have any.
    heads: Option<[Normed; 2]>,
    /// `[tokens, heads + 2 · kv_heads, head_dim]`, as attention takes them: the root of its graph.
    qkv: Tensor,
    /// `[tokens, heads · head_dim]`, the end of it.
    attended: Tensor,
    middle: Normed,
    /// `[tokens, 2 · ffn]`.
    gate_up: Tensor,
}

/// The layers of one model over one micro-batch.
pub(super) struct Layers<'a> {
    level: Level,
    shape: &'a ModelShape,
    params: &'a Params,
    packed: &'a Packed,
    cos_sin: [Tensor; 2],
    kept: Vec<Layer>,
    last: Option<Normed>,
}

impl<'a> Layers<'a> {
    /// Nothing computed yet.
    pub(super) fn new(shape: &'a ModelShape, params: &'a Params, packed: &'a Packed) -> Self {
        let cos_sin = angles(shape, &packed.positions, Kind::Float);
        Self { level: Level::best(), shape, params, packed, cos_sin, kept: Vec::new(), last: None }
    }

    fn param(&self, l: usize, part: &str) -> &'a Tensor {
        &self.params[&format!("layers.{l}.{part}")]
    }

    /// Hidden states after the last norm, `[tokens, hidden]`; keeps what [`Layers::backward`] asks for, if it is to be
    /// called.
    pub(super) fn forward(&mut self, keep: bool) -> Tensor {
        let (level, eps) = (self.level, self.shape.rms_eps);
        let [heads, kv_heads, hd] =
            [self.shape.heads, self.shape.kv_heads, self.shape.head_dim].map(|n| n as i64);
        let mut x = Tensor::embedding(&self.params["embed"], &self.packed.tokens, -1, false, false);
        for l in 0..self.shape.layers {
            let input = Normed::new(level, &x, self.param(l, "attn_norm"), eps);
            let bias = self.shape.qkv_bias.then(|| self.param(l, "qkv_bias"));
            let mut qkv = input.y.linear(self.param(l, "qkv"), bias).view([-1, heads + 2 * kv_heads, hd]);
            let normed_heads = self.shape.qk_norm.then(|| {
                let parts = qkv.split_with_sizes([heads, kv_heads, kv_heads], 1);
                let q = Normed::new(level, &parts[0], self.param(l, "q_norm"), eps);
                let k = Normed::new(level, &parts[1], self.param(l, "k_norm"), eps);
                qkv = Tensor::cat(&[&q.y, &k.y, &parts[2]], 1);
                [q, k]
            });
            self.rotate(&mut qkv, false);
            let qkv = qkv.set_requires_grad(keep);
            let parts = qkv.split_with_sizes([heads, kv_heads, kv_heads], 1);
            let [k, v] = [1, 2].map(|i| spread(&parts[i], heads));
            let attended = attention(&parts[0], &k, &v, &self.packed.families);
            let between = x.addmm(&attended.detach(), &self.param(l, "o").transpose(0, 1));
            let middle = Normed::new(level, &between, self.param(l, "ffn_norm"), eps);
            let gate_up = middle.y.linear::<&Tensor>(self.param(l, "gate_up"), None);
            let mut gated =
                Tensor::empty([gate_up.size()[0], self.shape.ffn as i64], (Kind::Float, Device::Cpu));
            training::swiglu(level, floats(&gate_up), self.shape.ffn, floats_mut(&mut gated));
            x = between.addmm(&gated, &self.param(l, "down").transpose(0, 1));
            if keep {
                self.kept.push(Layer { input, heads: normed_heads, qkv, attended, middle, gate_up });
            }
        }
        let last = Normed::new(level, &x, &self.params["norm"], eps);
        let hidden = last.y.shallow_clone();
        self.last = keep.then_some(last);
        hidden
    }

    fn rotate(&self, qkv: &mut Tensor, back: bool) {
        let (all, hd) = (self.shape.qkv_rows(), self.shape.head_dim);
        let turned = (self.shape.heads + self.shape.kv_heads) * hd;
        let [cos, sin] = self.cos_sin.each_ref().map(floats);
        training::rotate(self.level, floats_mut(qkv), all, turned, (cos, sin), back);
    }

    /// Gradients by name, given that with respect to the hidden states; none of what was not kept.
    pub(super) fn backward(mut self, by_hidden: &Tensor) -> BTreeMap<String, Tensor> {
        let (level, mut grads) = (self.level, BTreeMap::new());
        let Some(last) = self.last.take() else { return grads };
        let mut by_x = by_hidden.zeros_like();
        grads.insert("norm".to_owned(), last.backward(level, &self.params["norm"], by_hidden, &mut by_x));
        drop(last);
        while let Some(mut layer) = self.kept.pop() {
            let l = self.kept.len();
            let mut tell =
                |part: &str, gradient: Tensor| drop(grads.insert(format!("layers.{l}.{part}"), gradient));
            // Of a product with a matrix `[out, in]`, given its input: the gradient with respect to the matrix.
            let of_matrix = |by_out: &Tensor, input: &Tensor| by_out.transpose(0, 1).mm(input);

            let mut gated = by_x.mm(self.param(l, "down"));
            let mut by_gate_up = layer.gate_up;
            let (both, one) = (floats_mut(&mut by_gate_up), floats_mut(&mut gated));
            training::swiglu_backward(level, both, self.shape.ffn, one);
            tell("down", of_matrix(&by_x, &gated));
            tell("gate_up", of_matrix(&by_gate_up, &layer.middle.y));
            let by_middle = by_gate_up.mm(self.param(l, "gate_up"));
            tell("ffn_norm", layer.middle.backward(level, self.param(l, "ffn_norm"), &by_middle, &mut by_x));

            tell("o", of_matrix(&by_x, &layer.attended.detach()));
            let by_attended = by_x.mm(self.param(l, "o"));
            // The gradient of this sum with respect to `attended` is `by_attended`.
            (layer.attended * by_attended).sum(None).backward();
            let mut by_qkv = layer.qkv.grad().contiguous();
            self.rotate(&mut by_qkv, true);
            if let Some(normed) = layer.heads.take() {
                let sizes = [self.shape.heads, self.shape.kv_heads, self.shape.kv_heads].map(|n| n as i64);
                let mut parts = by_qkv.split_with_sizes(sizes, 1);
                for ((part, normed), name) in parts.iter_mut().zip(&normed).zip(["q_norm", "k_norm"]) {
                    let mut by_heads = normed.x.zeros_like();
                    tell(
                        name,
                        normed.backward(level, self.param(l, name), &part.contiguous(), &mut by_heads),
                    );
                    *part = by_heads;
                }
                by_qkv = Tensor::cat(&parts, 1);
            }
            let by_qkv = by_qkv.view([-1, self.shape.qkv_rows() as i64]);
            tell("qkv", of_matrix(&by_qkv, &layer.input.y));
            if self.shape.qkv_bias {
                tell("qkv_bias", by_qkv.sum_dim_intlist(0, false, None));
            }
            let by_input = by_qkv.mm(self.param(l, "qkv"));
            tell("attn_norm", layer.input.backward(level, self.param(l, "attn_norm"), &by_input, &mut by_x));
        }
        let words = self.params["embed"].size()[0];
        let by_embed = Tensor::embedding_dense_backward(&by_x, &self.packed.tokens, words, -1, false);
        grads.insert("embed".to_owned(), by_embed);
        grads
    }
}
