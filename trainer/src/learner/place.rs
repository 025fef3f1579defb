//! Where a learner's tensors lie, and of which type its weights are.

use parl_kernels::KernelError;
use parl_kernels::cuda::card::Card;
use parl_kernels::weights::Dtype;
use tch::{Device, Kind, Tensor};

use super::LearnerError;
use super::shim::{self, Stream};

/// The host's memory or a card's, the type of the weights, and that of what goes through the layers. Optimizer states,
/// log-probs and losses are f32 anywhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    device: Device,
    kind: Kind,
    arithmetic: Kind,
    /// On a card: what its work goes by. libtorch's default stream could not be captured in a graph.
    stream: Option<Stream>,
}

fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::Bf16 => Kind::BFloat16,
    }
}

impl Place {
    /// The host's memory. Weights in bf16 are multiplied in f32, as the engine does here too: a CPU without instructions
    /// for bf16 takes many times as long in it.
    pub fn cpu(dtype: Dtype) -> Self {
        Self { device: Device::Cpu, kind: kind(dtype), arithmetic: Kind::Float, stream: None }
    }

    /// The host's memory, with what a card computes in: to look at a card's arithmetic where there is none.
    pub fn cpu_like_card(dtype: Dtype) -> Self {
        Self { arithmetic: kind(dtype), ..Self::cpu(dtype) }
    }

    /// Looks for libtorch's part for cards, and lets it give unused memory back.
    ///
    /// # Errors
    /// [`LearnerError::Torch`] telling what is missing.
    pub fn find_card() -> Result<(), LearnerError> {
        shim::load(c"libtorch_cuda.so").map_err(|e| {
            LearnerError::Torch(format!(
                "its part for cards is not found: name the `lib` folder of a torch 2.11.0 with CUDA in LD_LIBRARY_PATH ({e})"
            ))
        })?;
        // Not before it is loaded: the answer is kept.
        if !tch::Cuda::is_available() {
            return Err(LearnerError::Torch("it finds no card that it can use".to_owned()));
        }
        shim::empty_cache()
    }

    /// The memory of the first card, after [`Place::find_card`], of which libtorch takes no more than `share`. The first
    /// share that a process gives is the one that counts.
    ///
    /// # Errors
    /// [`LearnerError::Torch`] when libtorch fails.
    pub fn card(dtype: Dtype, share: f64) -> Result<Self, LearnerError> {
        shim::cap(share)?;
        if dtype == Dtype::Bf16 {
            // What is f32 then is the head, which has no more bits than bf16, and what it is multiplied with.
            shim::tensor_cores()?;
        }
        let (kind, stream) = (kind(dtype), Some(Stream::of_pool()?));
        let place = Self { device: Device::Cuda(0), kind, arithmetic: kind, stream };
        place.enter()?;
        Ok(place)
    }

    /// Lets the engine's work go by the stream that the learner's goes by, so that each finds the other's done.
    ///
    /// # Errors
    /// [`KernelError::Cuda`] when the driver fails.
    pub fn lend_stream(&self, card: &mut Card) -> Result<(), KernelError> {
        self.stream.map_or(Ok(()), |stream| stream.lend(card))
    }

    /// Lets the engine's work go by a stream of its own, beside the learner's; the two meet where weights are installed.
    ///
    /// # Errors
    /// [`KernelError::Cuda`] when the driver fails.
    pub fn part_streams(&self, card: &mut Card) -> Result<(), KernelError> {
        self.stream.map_or(Ok(()), |stream| stream.accompany(card))
    }

    /// Lets this thread's libtorch work here.
    pub(super) fn enter(&self) -> Result<(), LearnerError> {
        self.stream.map_or(Ok(()), Stream::enter)
    }

    /// Whether it is a card.
    pub(super) fn is_card(&self) -> bool {
        self.device.is_cuda()
    }

    /// Type of what goes through the layers, and where it is.
    pub(super) fn options(&self) -> (Kind, Device) {
        (self.arithmetic, self.device)
    }

    /// A weight, here and of the weights' type.
    pub(super) fn weight(&self, tensor: &Tensor) -> Tensor {
        tensor.to_kind(self.kind).to_device(self.device)
    }

    /// Anything else, here.
    pub(super) fn put(&self, tensor: &Tensor) -> Tensor {
        tensor.to_device(self.device)
    }
}
