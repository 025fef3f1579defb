//! The few calls of a card's driver that the backend makes, all in the order of one stream.

use crate::KernelError;
use crate::weights::Dtype;

/// Where something lies in the card's memory; 0 is nowhere.
pub type Address = u64;

/// The types of numbers that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Types {
    /// Of weights, and of activations between products.
    pub element: Dtype,
    /// Whether keys and values are kept in fp8 (E4M3) beside elements in bf16, not as elements.
    pub kv_fp8: bool,
}

impl Types {
    /// Keys and values are kept as elements.
    pub fn plain(element: Dtype) -> Self {
        Self { element, kv_fp8: false }
    }

    /// Bytes of an element.
    pub fn element_bytes(self) -> u64 {
        match self.element {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }

    /// Bytes of a key's or a value's element.
    pub fn kv_bytes(self) -> u64 {
        if self.kv_fp8 { 1 } else { self.element_bytes() }
    }
}

/// Kernels that a driver made ready for some types and one head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelsId(pub u32);

/// A captured run of launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GraphId(pub u32);

/// A copy to the host under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pending(pub u64);

/// The value of a kernel's parameter: at most seven words of 8 bytes, as C lays it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument(pub [u64; 7]);

impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self([value, 0, 0, 0, 0, 0, 0])
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self::from(u64::from(value))
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::from(value.to_bits())
    }
}

/// `y[rows, outputs] = x[rows, inputs] · w[outputs, inputs]ᵀ`, `x` and `w` in bf16, `y` in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the formula says what they are")]
pub struct Matmul {
    pub x: Address,
    pub w: Address,
    pub y: Address,
    pub rows: u32,
    pub outputs: u32,
    pub inputs: u32,
}

/// One kernel, to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Which kernel.
    pub kernel: &'static str,
    /// Blocks along x, y and z, each at least 1.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block, besides what the kernel's text has.
    pub shared_bytes: u32,
    /// Its parameters.
    pub arguments: Vec<Argument>,
    /// What a library may do in its place, if the driver has one.
    pub instead: Option<Matmul>,
}

/// What a card has of what kernels share out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chip {
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of shared memory that a block may take.
    pub shared_bytes: usize,
}

/// A card, or what stands for one in a test. Whatever is handed in is done in the order it came.
pub trait Driver: Send {
    /// Bytes of the card's memory that are free.
    ///
    /// # Errors
    /// [`KernelError::Cuda`] when the driver fails, here and in every call below.
    fn free_bytes(&mut self) -> Result<u64, KernelError>;

    /// Whether it has a library that multiplies matrices, to be used in kernels' place where that is faster.
    fn has_library(&self) -> bool {
        false
    }

    /// What the card is made of.
    fn chip(&self) -> Chip;

    /// Reserves memory whose address is a multiple of 256; what is in it is undefined.
    ///
    /// # Errors
    /// Besides, [`KernelError::Memory`] when there is not as much.
    fn allocate(&mut self, bytes: u64) -> Result<Address, KernelError>;

    /// Gives memory back, after everything that was handed in is done.
    fn free(&mut self, address: Address);

    /// Waits until everything that was handed in is done.
    ///
    /// # Errors
    /// As above; faults of kernels show here.
    fn synchronize(&mut self) -> Result<(), KernelError>;

    /// Lets what is handed in from here on come after what the learner has handed in by now, where its work goes by
    /// another stream. Nobody waits.
    ///
    /// # Errors
    /// As above.
    fn join(&mut self) -> Result<(), KernelError>;

    /// Makes the kernels for some types and a head ready.
    ///
    /// # Errors
    /// Besides, [`KernelError::Compile`].
    fn kernels(&mut self, types: Types, head_dim: usize) -> Result<KernelsId, KernelError>;

    /// Copies `bytes` to the card; they may be changed after the call.
    ///
    /// # Errors
    /// As above.
    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), KernelError>;

    /// Begins to copy to the host.
    ///
    /// # Errors
    /// As above.
    fn download(&mut self, from: Address, bytes: u64) -> Result<Pending, KernelError>;

    /// Waits for a copy to the host.
    ///
    /// # Errors
    /// As above; faults of kernels that ran before show here.
    fn wait(&mut self, pending: Pending) -> Result<Vec<u8>, KernelError>;

    /// Runs a kernel, or adds it to the graph that is being captured.
    ///
    /// # Errors
    /// As above.
    fn launch(&mut self, kernels: KernelsId, launch: &Launch) -> Result<(), KernelError>;

    /// From here on launches become a graph and do not run.
    ///
    /// # Errors
    /// As above.
    fn begin_capture(&mut self) -> Result<(), KernelError>;

    /// Ends the capture.
    ///
    /// # Errors
    /// As above.
    fn end_capture(&mut self) -> Result<GraphId, KernelError>;

    /// Runs a graph.
    ///
    /// # Errors
    /// As above.
    fn replay(&mut self, graph: GraphId) -> Result<(), KernelError>;

    /// Forgets a graph.
    fn forget(&mut self, graph: GraphId);
}

impl<D: Driver + ?Sized> Driver for Box<D> {
    fn free_bytes(&mut self) -> Result<u64, KernelError> {
        (**self).free_bytes()
    }

    fn has_library(&self) -> bool {
        (**self).has_library()
    }

    fn chip(&self) -> Chip {
        (**self).chip()
    }

    fn allocate(&mut self, bytes: u64) -> Result<Address, KernelError> {
        (**self).allocate(bytes)
    }

    fn free(&mut self, address: Address) {
        (**self).free(address);
    }

    fn synchronize(&mut self) -> Result<(), KernelError> {
        (**self).synchronize()
    }

    fn join(&mut self) -> Result<(), KernelError> {
        (**self).join()
    }

    fn kernels(&mut self, types: Types, head_dim: usize) -> Result<KernelsId, KernelError> {
        (**self).kernels(types, head_dim)
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), KernelError> {
        (**self).upload(to, bytes)
    }

    fn download(&mut self, from: Address, bytes: u64) -> Result<Pending, KernelError> {
        (**self).download(from, bytes)
    }

    fn wait(&mut self, pending: Pending) -> Result<Vec<u8>, KernelError> {
        (**self).wait(pending)
    }

    fn launch(&mut self, kernels: KernelsId, launch: &Launch) -> Result<(), KernelError> {
        (**self).launch(kernels, launch)
    }

    fn begin_capture(&mut self) -> Result<(), KernelError> {
        (**self).begin_capture()
    }

    fn end_capture(&mut self) -> Result<GraphId, KernelError> {
        (**self).end_capture()
    }

    fn replay(&mut self, graph: GraphId) -> Result<(), KernelError> {
        (**self).replay(graph)
    }

    fn forget(&mut self, graph: GraphId) {
        (**self).forget(graph);
    }
}
