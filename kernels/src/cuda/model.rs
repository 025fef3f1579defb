//! A weight set on the card: leased in place where it lies there already, else copied.

use std::collections::{HashMap, HashSet};

use super::buckets::Bucket;
use super::driver::{Address, Driver, GraphId, KernelsId, Types};
use super::launches::{LayerAddresses, ModelAddresses, find_strays};
use crate::KernelError;
use crate::shape::ModelShape;
use crate::weights::{Dtype, WeightSet};

/// Widest head that the attention kernels are made for.
const MOST_HEAD_DIM: usize = 128;

/// Allocations are multiples of this many bytes.
pub(super) fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(256)
}

/// Sizes that two models must share to share blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) layers: usize,
    kv_heads: usize,
    head_dim: usize,
    types: Types,
}

/// A model that can be run.
pub(super) struct Model {
    /// The lease; none between a release and the next install.
    pub(super) lease: Option<WeightSet>,
    pub(super) shape: ModelShape,
    pub(super) types: Types,
    pub(super) kernels: KernelsId,
    pub(super) addresses: ModelAddresses,
    pub(super) graphs: HashMap<Bucket, GraphId>,
    /// Buckets that there were steps of.
    pub(super) met: HashSet<Bucket>,
    /// Whether the weights are a copy in `memory`.
    copied: bool,
    /// The angles, and the copy.
    memory: Address,
}

/// The types that a set is computed in: its one element type, and `kv_fp8`.
///
/// # Errors
/// [`KernelError::Weights`] for a set that the kernels are not made for.
pub(super) fn types_of(weights: &WeightSet, kv_fp8: bool) -> Result<Types, KernelError> {
    let shape = weights.shape();
    if shape.head_dim > MOST_HEAD_DIM {
        return Err(KernelError::Weights(format!(
            "head_dim is {}, on a card it must be at most {MOST_HEAD_DIM}",
            shape.head_dim
        )));
    }
    let element = weights.dtype("embed").unwrap_or(Dtype::F32);
    let on_card = weights.on_card("embed").is_some();
    for (name, _) in shape.tensors() {
        if weights.dtype(&name) != Some(element) {
            return Err(KernelError::Weights(format!(
                "tensor `{name}` is of another type than `embed` ({element:?}); on a card all must be of one"
            )));
        }
        if weights.on_card(&name).is_some() != on_card {
            return Err(KernelError::Weights(format!("tensor `{name}` lies elsewhere than `embed`")));
        }
    }
    if kv_fp8 && element == Dtype::F32 {
        return Err(KernelError::Weights(
            "weights are in f32, with keys and values in fp8 they must be in bf16".to_owned(),
        ));
    }
    Ok(Types { element, kv_fp8 })
}

impl Geometry {
    pub(super) fn of(shape: &ModelShape, types: Types) -> Self {
        Self { layers: shape.layers, kv_heads: shape.kv_heads, head_dim: shape.head_dim, types }
    }
}

/// A tensor's elements as bytes, if it lies in the host's memory.
fn bytes<'a>(weights: &'a WeightSet, name: &str) -> Option<&'a [u8]> {
    let f32 = weights.f32(name).map(bytemuck::cast_slice);
    f32.or_else(|| weights.bf16(name).map(bytemuck::cast_slice))
}

/// Elements of a tensor that one block looks at.
const PIECE: usize = 1 << 18;

/// Which tensors that lie on the card have an element that is not finite.
fn strays_on_card(
    driver: &mut dyn Driver,
    kernels: KernelsId,
    weights: &WeightSet,
) -> Result<Vec<bool>, KernelError> {
    let tensors = weights.shape().tensors();
    // Address and, in a word, how many elements and of which tensor.
    let mut pieces: Vec<u64> = Vec::new();
    for (tensor, (name, dims)) in tensors.iter().enumerate() {
        let place = weights.on_card(name).unwrap_or(0);
        let bytes = weights.dtype(name).map_or(0, |element| Types::plain(element).element_bytes());
        let count = dims.iter().product::<usize>();
        for first in (0..count).step_by(PIECE) {
            pieces.push(place + first as u64 * bytes);
            pieces.push((count - first).min(PIECE) as u64 | (tensor as u64) << 32);
        }
    }
    let (records, flags) = (8 * pieces.len() as u64, 4 * tensors.len());
    let memory = driver.allocate(records + flags as u64)?;
    let mut look = || {
        driver.upload(memory, bytemuck::cast_slice(&pieces))?;
        driver.upload(memory + records, &vec![0; flags])?;
        driver.launch(kernels, &find_strays(memory, pieces.len() / 2, memory + records))?;
        let pending = driver.download(memory + records, flags as u64)?;
        driver.wait(pending)
    };
    let found = look();
    driver.free(memory);
    Ok(found?.chunks_exact(4).map(|word| word.iter().any(|&byte| byte != 0)).collect())
}

/// Looks for an element that is not finite, where the weights lie.
///
/// # Errors
/// [`KernelError::Weights`] naming the tensor; what the driver refuses.
pub(super) fn check_finite(
    driver: &mut dyn Driver,
    kernels: KernelsId,
    weights: &WeightSet,
) -> Result<(), KernelError> {
    let tensors = weights.shape().tensors();
    let strays = if weights.on_card("embed").is_some() {
        strays_on_card(driver, kernels, weights)?
    } else {
        let stray = |name: &str| {
            weights.f32(name).is_some_and(|all| !all.iter().all(|x| x.is_finite()))
                || weights.bf16(name).is_some_and(|all| !all.iter().all(|x| x.is_finite()))
        };
        tensors.iter().map(|(name, _)| stray(name)).collect()
    };
    match strays.iter().position(|&stray| stray).and_then(|i| tensors.get(i)) {
        Some((name, _)) => {
            Err(KernelError::Weights(format!("tensor `{name}` has an element that is not finite")))
        }
        None => Ok(()),
    }
}

/// Per position: the cosines of half a head, then the sines.
fn angles(shape: &ModelShape) -> Vec<f32> {
    let head_dim = shape.head_dim;
    let mut all = Vec::with_capacity(shape.max_positions * head_dim);
    for position in 0..shape.max_positions {
        let angle = |i: usize| position as f64 * shape.rope_theta.powf(-2.0 * i as f64 / head_dim as f64);
        all.extend((0..head_dim / 2).map(|i| angle(i).cos() as f32));
        all.extend((0..head_dim / 2).map(|i| angle(i).sin() as f32));
    }
    all
}

/// Where the tensors lie on the card, given a way to find each by name.
fn addresses(shape: &ModelShape, angles: Address, find: impl Fn(&str) -> Address) -> ModelAddresses {
    let layer = |l: usize| {
        let of = |name: &str| find(&format!("layers.{l}.{name}"));
        LayerAddresses {
            attn_norm: of("attn_norm"),
            qkv: of("qkv"),
            qkv_bias: of("qkv_bias"),
            q_norm: of("q_norm"),
            k_norm: of("k_norm"),
            o: of("o"),
            ffn_norm: of("ffn_norm"),
            gate_up: of("gate_up"),
            down: of("down"),
        }
    };
    ModelAddresses {
        embed: find("embed"),
        layers: (0..shape.layers).map(layer).collect(),
        norm: find("norm"),
        head: find(if shape.tied_head { "embed" } else { "head" }),
        angles,
    }
}

impl Model {
    /// Bytes that an install of `weights` allocates.
    pub(super) fn memory_bytes(weights: &WeightSet, types: Types) -> u64 {
        let shape = weights.shape();
        let angles = aligned(4 * (shape.max_positions * shape.head_dim) as u64);
        if weights.on_card("embed").is_some() {
            return angles;
        }
        let tensor = |dims: &[usize]| aligned(dims.iter().product::<usize>() as u64 * types.element_bytes());
        angles + shape.tensors().iter().map(|(_, dims)| tensor(dims)).sum::<u64>()
    }

    /// Makes `weights` ready: copies them, unless they lie on the card.
    ///
    /// # Errors
    /// What the driver refuses.
    pub(super) fn new(
        driver: &mut dyn Driver,
        kernels: KernelsId,
        weights: WeightSet,
        types: Types,
    ) -> Result<Self, KernelError> {
        let shape = weights.shape().clone();
        let memory = driver.allocate(Self::memory_bytes(&weights, types))?;
        let copied = weights.on_card("embed").is_none();
        let angles = angles(&shape);
        let mut filled = driver.upload(memory, bytemuck::cast_slice(&angles));
        let mut at = memory + aligned(4 * angles.len() as u64);
        let mut places = HashMap::new();
        for (name, _) in shape.tensors() {
            let mut place = weights.on_card(&name).unwrap_or(0);
            if let Some(bytes) = bytes(&weights, &name) {
                place = at;
                at += aligned(bytes.len() as u64);
                filled = filled.and_then(|()| driver.upload(place, bytes));
            }
            places.insert(name, place);
        }
        if let Err(error) = filled {
            driver.free(memory);
            return Err(error);
        }
        let addresses = addresses(&shape, memory, |name| places.get(name).copied().unwrap_or(0));
        Ok(Self {
            lease: Some(weights),
            shape,
            types,
            kernels,
            addresses,
            graphs: HashMap::new(),
            met: HashSet::new(),
            copied,
            memory,
        })
    }

    /// Whether `weights` lie where this model's lay.
    pub(super) fn fits(&self, weights: &WeightSet) -> bool {
        !self.copied
            && *weights.shape() == self.shape
            && addresses(&self.shape, self.memory, |name| weights.on_card(name).unwrap_or(0))
                == self.addresses
    }

    /// Whether the weights are a copy, of no use without the lease.
    pub(super) fn copied(&self) -> bool {
        self.copied
    }

    /// Forgets the graphs, for an address in them has changed.
    pub(super) fn forget_graphs(&mut self, driver: &mut dyn Driver) {
        for (_, graph) in self.graphs.drain() {
            driver.forget(graph);
        }
    }

    /// Gives everything back.
    pub(super) fn drop_from(mut self, driver: &mut dyn Driver) {
        self.forget_graphs(driver);
        driver.free(self.memory);
    }
}
