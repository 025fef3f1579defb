//! A card, by the calls of NVIDIA's driver library. CI has none: what has run on one stands in `docs/gpu-measured.md`.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use super::cache::Cubins;
use super::compile::{Compiler, Target};
use super::driver::{Address, Chip, Driver, GraphId, KernelsId, Launch, Pending, Types};
use super::library::Library;
use super::sources::sources;
use crate::KernelError;

/// The oldest driver whose calls are used, as the library counts: CUDA 12.0.
const OLDEST: i32 = 12_000;

/// The oldest driver that keeps in a graph which kernels may overlap.
const OVERLAPPING: i32 = 12_030;

/// Bytes of shared memory that a launch may ask for without saying so before.
const SHARED_UNSAID: u32 = 48 << 10;

/// Uploads up to this many bytes go by way of pinned memory, and nobody waits for them.
const STAGED: usize = 1 << 20;

/// Memory of the host that the card copies from and to, and the event after the last copy.
struct Pinned {
    memory: *mut u8,
    bytes: usize,
    event: sys::CUevent,
}

/// A card.
pub struct Card {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Whether the stream is libtorch's, which destroys it.
    borrowed: bool,
    /// A stream of libtorch's beside which the card works, and the event that joins the two.
    beside: Option<(sys::CUstream, sys::CUevent)>,
    architecture: String,
    chip: Chip,
    /// Whether a kernel may begin while the one before it is under way (`after_those_before` in `device.cuh`).
    overlaps: bool,
    compiler: Compiler,
    cubins: Box<dyn Cubins>,
    library: Option<Library>,
    /// Functions by name, for some types and each head.
    kernels: Vec<(Types, usize, HashMap<String, sys::CUfunction>)>,
    graphs: HashMap<GraphId, sys::CUgraphExec>,
    /// Uploads under way, or done.
    uploads: Vec<Pinned>,
    downloads: HashMap<Pending, (Pinned, usize)>,
    spare: Vec<Pinned>,
    next: u64,
}

// SAFETY: every call makes the context current for its thread first, and `&mut` lets one thread in at a time.
unsafe impl Send for Card {}

fn text(result: sys::CUresult) -> String {
    let mut found: *const c_char = ptr::null();
    // SAFETY: the library gives a string that lives as long as it, or leaves null.
    unsafe {
        sys::cuGetErrorString(result, &raw mut found);
        if found.is_null() {
            format!("{result:?}")
        } else {
            CStr::from_ptr(found).to_string_lossy().into_owned()
        }
    }
}

fn check(result: sys::CUresult, call: &str) -> Result<(), KernelError> {
    match result {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        other => Err(KernelError::Cuda(format!("{call} failed: {}", text(other)))),
    }
}

impl Card {
    /// Takes the card of this number. Its primary context is the one that libtorch uses too.
    ///
    /// # Errors
    /// [`KernelError::Cuda`] when there is no driver, no such card, no NVRTC, or one that is too old.
    pub fn open(number: i32, cubins: Box<dyn Cubins>) -> Result<Self, KernelError> {
        // SAFETY: loads a library of this name, whose constructors NVIDIA vouches for.
        if !unsafe { sys::is_culib_present() } {
            return Err(KernelError::Cuda(
                "NVIDIA's driver (libcuda.so) is not found: there is no card here, or its driver is not installed".to_owned(),
            ));
        }
        let (mut version, mut device) = (0, 0);
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        let (mut major, mut minor, mut multiprocessors, mut shared_bytes) = (0, 0, 0, 0);
        // SAFETY: the library is there; every call writes what its pointer is to.
        unsafe {
            check(sys::cuInit(0), "cuInit")?;
            check(sys::cuDriverGetVersion(&raw mut version), "cuDriverGetVersion")?;
            if version < OLDEST {
                return Err(KernelError::Cuda(format!(
                    "the driver is of CUDA {}.{}, must be at least {}.0",
                    version / 1000,
                    version % 1000 / 10,
                    OLDEST / 1000
                )));
            }
            check(sys::cuDeviceGet(&raw mut device, number), "cuDeviceGet")?;
            for (value, attribute) in [
                (&raw mut major, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                (&raw mut minor, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
                (&raw mut multiprocessors, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
                (&raw mut shared_bytes, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            ] {
                check(sys::cuDeviceGetAttribute(value, attribute, device), "cuDeviceGetAttribute")?;
            }
        }
        let architecture = Target::architecture(major, minor)?;
        let compiler = Compiler::find()?;
        // SAFETY: as above; the context is given back when the card is dropped.
        unsafe {
            check(sys::cuDevicePrimaryCtxRetain(&raw mut context, device), "cuDevicePrimaryCtxRetain")?;
            let made = check(sys::cuCtxSetCurrent(context), "cuCtxSetCurrent")
                // 1 is CU_STREAM_NON_BLOCKING: the null stream does not wait for it.
                .and_then(|()| check(sys::cuStreamCreate(&raw mut stream, 1), "cuStreamCreate"));
            if let Err(error) = made {
                sys::cuDevicePrimaryCtxRelease_v2(device);
                return Err(error);
            }
        }
        Ok(Self {
            device,
            context,
            stream,
            borrowed: false,
            beside: None,
            architecture,
            chip: Chip { multiprocessors: multiprocessors as usize, shared_bytes: shared_bytes as usize },
            overlaps: major >= 9 && version >= OVERLAPPING,
            compiler,
            cubins,
            library: None,
            kernels: Vec::new(),
            graphs: HashMap::new(),
            uploads: Vec::new(),
            downloads: HashMap::new(),
            spare: Vec::new(),
            next: 0,
        })
    }

    /// Lets cuBLASLt multiply where it is faster than kernels whose sums keep one order: a row's bits may then depend on
    /// the batch.
    ///
    /// # Errors
    /// [`KernelError::Cuda`] when it is not found, [`KernelError::Memory`] when there is no room for what it works in.
    pub fn use_library(&mut self) -> Result<(), KernelError> {
        self.enter()?;
        self.library = Some(Library::find()?);
        Ok(())
    }

    /// What kernels are compiled for, as `sm_90a`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Bytes of the card's memory, free or not.
    ///
    /// # Errors
    /// [`KernelError::Cuda`] when the driver fails.
    pub fn total_bytes(&self) -> Result<u64, KernelError> {
        self.enter()?;
        let mut total = 0;
        // SAFETY: writes a number.
        check(unsafe { sys::cuDeviceTotalMem_v2(&raw mut total, self.device) }, "cuDeviceTotalMem")?;
        Ok(total as u64)
    }

    /// Does everything from here on in `stream`, a handle of libtorch's, in place of a stream of its own: what the learner
    /// handed in before is then done before, and what it hands in later after. Nothing may be under way, and no graph
    /// captured.
    ///
    /// # Safety
    /// `stream` is of this card's primary context, is not the null stream, and outlives the card.
    ///
    /// # Errors
    /// [`KernelError::Cuda`] when the driver fails.
    pub unsafe fn follow(&mut self, stream: u64) -> Result<(), KernelError> {
        self.synchronize()?;
        if !self.borrowed {
            // SAFETY: it is this value's own, and nothing is under way in it.
            check(unsafe { sys::cuStreamDestroy_v2(self.stream) }, "cuStreamDestroy")?;
        }
        (self.stream, self.borrowed) = (stream as sys::CUstream, true);
        Ok(())
    }

    /// Goes on in its own stream beside `stream`, a handle of libtorch's, by which updates go meanwhile; the two meet where
    /// weights are installed.
    ///
    /// # Safety
    /// As for [`Card::follow`].
    ///
    /// # Errors
    /// [`KernelError::Cuda`] when the driver fails.
    pub unsafe fn work_beside(&mut self, stream: u64) -> Result<(), KernelError> {
        self.enter()?;
        let mut event = ptr::null_mut();
        // SAFETY: writes a handle; 2 is CU_EVENT_DISABLE_TIMING.
        check(unsafe { sys::cuEventCreate(&raw mut event, 2) }, "cuEventCreate")?;
        if let Some((_, old)) = self.beside.replace((stream as sys::CUstream, event)) {
            // SAFETY: it exists; what waits for it goes on waiting for what was recorded.
            unsafe { sys::cuEventDestroy_v2(old) };
        }
        Ok(())
    }

    fn enter(&self) -> Result<(), KernelError> {
        // SAFETY: the context is retained.
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, "cuCtxSetCurrent")
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Pinned memory of at least `bytes` that no copy uses.
    fn pinned(&mut self, bytes: usize) -> Result<Pinned, KernelError> {
        // SAFETY: the events exist.
        let done = |p: &mut Pinned| unsafe { sys::cuEventQuery(p.event) } == sys::CUresult::CUDA_SUCCESS;
        self.spare.extend(self.uploads.extract_if(.., done));
        if let Some(found) = self.spare.iter().position(|p| p.bytes >= bytes) {
            return Ok(self.spare.swap_remove(found));
        }
        let bytes = bytes.next_power_of_two().max(4096);
        let (mut memory, mut event) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: both calls write a pointer; 2 is CU_EVENT_DISABLE_TIMING.
        unsafe {
            check(sys::cuMemHostAlloc(&raw mut memory, bytes, 0), "cuMemHostAlloc")?;
            if let Err(error) = check(sys::cuEventCreate(&raw mut event, 2), "cuEventCreate") {
                sys::cuMemFreeHost(memory);
                return Err(error);
            }
        }
        Ok(Pinned { memory: memory.cast(), bytes, event })
    }
}

impl Driver for Card {
    fn has_library(&self) -> bool {
        self.library.is_some()
    }

    fn chip(&self) -> Chip {
        self.chip
    }

    fn free_bytes(&mut self) -> Result<u64, KernelError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        check(unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) }, "cuMemGetInfo")?;
        Ok(free as u64)
    }

    fn allocate(&mut self, bytes: u64) -> Result<Address, KernelError> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: writes an address; the driver aligns it to 256 bytes at least.
        match unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes.max(1) as usize) } {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(KernelError::Memory(format!("the card has no {bytes} bytes in one piece")))
            }
            result => check(result, "cuMemAlloc").map(|()| address),
        }
    }

    fn free(&mut self, address: Address) {
        // What fails here has failed before, and comes up at the next call that can tell.
        if self.synchronize().is_ok() {
            // SAFETY: the address is from `allocate`, and nothing that was handed in is under way.
            unsafe { sys::cuMemFree_v2(address) };
        }
    }

    fn synchronize(&mut self) -> Result<(), KernelError> {
        self.enter()?;
        // SAFETY: the stream exists.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, "cuStreamSynchronize")
    }

    fn join(&mut self) -> Result<(), KernelError> {
        let Some((stream, event)) = self.beside else { return Ok(()) };
        self.enter()?;
        // SAFETY: both streams and the event exist; 0 asks for nothing special.
        unsafe {
            check(sys::cuEventRecord(event, stream), "cuEventRecord")?;
            check(sys::cuStreamWaitEvent(self.stream, event, 0), "cuStreamWaitEvent")
        }
    }

    fn kernels(&mut self, types: Types, head_dim: usize) -> Result<KernelsId, KernelError> {
        self.enter()?;
        if let Some(found) = self.kernels.iter().position(|k| (k.0, k.1) == (types, head_dim)) {
            return Ok(KernelsId(found as u32));
        }
        let target = Target { architecture: self.architecture.clone(), types, head_dim };
        let mut functions = HashMap::new();
        for source in sources(types.element) {
            let cubin = self.compiler.cubin(&source, &target, self.cubins.as_mut())?;
            let mut module = ptr::null_mut();
            // SAFETY: the cubin is a whole ELF file, which tells its own length. Modules live as long as the context.
            check(
                unsafe { sys::cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()) },
                "cuModuleLoadData",
            )?;
            for name in source.kernels() {
                let c_name = CString::new(name)
                    .map_err(|_| KernelError::Cuda(format!("kernel `{name}` has a zero byte in its name")))?;
                let mut function = ptr::null_mut();
                // SAFETY: writes a handle.
                let found = unsafe { sys::cuModuleGetFunction(&raw mut function, module, c_name.as_ptr()) };
                check(found, &format!("cuModuleGetFunction for `{name}`"))?;
                // All kernels wish for one division of a multiprocessor's memory, the most that blocks can share: to divide
                // it anew it would have to be idle, and the next kernel could not begin while one is under way.
                let wish = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
                // SAFETY: a percentage in; the function exists. It is a wish: that it is not heard costs time alone.
                let _ = unsafe { sys::cuFuncSetAttribute(function, wish, 100) };
                functions.insert(name.to_owned(), function);
            }
        }
        self.kernels.push((types, head_dim, functions));
        Ok(KernelsId(self.kernels.len() as u32 - 1))
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), KernelError> {
        self.enter()?;
        if bytes.len() > STAGED {
            // SAFETY: the bytes live until the copy is done, for it is waited for.
            let copied =
                unsafe { sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.stream) };
            check(copied, "cuMemcpyHtoDAsync")?;
            return self.synchronize();
        }
        let pinned = self.pinned(bytes.len())?;
        // SAFETY: the pinned memory has room, and is used by nobody until its event is over.
        let result = unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), pinned.memory, bytes.len());
            let copied = sys::cuMemcpyHtoDAsync_v2(
                to,
                pinned.memory.cast::<c_void>().cast_const(),
                bytes.len(),
                self.stream,
            );
            check(copied, "cuMemcpyHtoDAsync")
                .and_then(|()| check(sys::cuEventRecord(pinned.event, self.stream), "cuEventRecord"))
        };
        self.uploads.push(pinned);
        result
    }

    fn download(&mut self, from: Address, bytes: u64) -> Result<Pending, KernelError> {
        self.enter()?;
        let bytes = bytes as usize;
        let pinned = self.pinned(bytes)?;
        // SAFETY: as in `upload`.
        let result = unsafe {
            let copied = sys::cuMemcpyDtoHAsync_v2(pinned.memory.cast(), from, bytes, self.stream);
            check(copied, "cuMemcpyDtoHAsync")
                .and_then(|()| check(sys::cuEventRecord(pinned.event, self.stream), "cuEventRecord"))
        };
        let pending = Pending(self.number());
        self.downloads.insert(pending, (pinned, bytes));
        result.map(|()| pending)
    }

    fn wait(&mut self, pending: Pending) -> Result<Vec<u8>, KernelError> {
        self.enter()?;
        let (pinned, bytes) = self
            .downloads
            .remove(&pending)
            .ok_or_else(|| KernelError::Cuda("a copy to the host was waited for twice".to_owned()))?;
        // SAFETY: the event exists; after it the copy is done.
        let result = unsafe {
            check(sys::cuEventSynchronize(pinned.event), "cuEventSynchronize")
                .map(|()| std::slice::from_raw_parts(pinned.memory, bytes).to_vec())
        };
        self.spare.push(pinned);
        result
    }

    fn launch(&mut self, kernels: KernelsId, launch: &Launch) -> Result<(), KernelError> {
        self.enter()?;
        if let (Some(library), Some(product)) = (&mut self.library, &launch.instead) {
            return library.multiply(product, self.stream);
        }
        let function = self.kernels.get(kernels.0 as usize).and_then(|k| k.2.get(launch.kernel));
        let &function =
            function.ok_or_else(|| KernelError::Cuda(format!("there is no kernel `{}`", launch.kernel)))?;
        let mut arguments: Vec<*mut c_void> =
            launch.arguments.iter().map(|a| ptr::from_ref(&a.0).cast_mut().cast()).collect();
        if launch.shared_bytes > SHARED_UNSAID {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a number in; the function exists.
            let set = unsafe { sys::cuFuncSetAttribute(function, most, launch.shared_bytes as i32) };
            check(set, "cuFuncSetAttribute")?;
        }
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let [x, y, z] = launch.blocks;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream,
            attrs: &raw mut overlap,
            numAttrs: u32::from(self.overlaps),
        };
        // SAFETY: the arguments are as the kernel's text has them (`launches.rs`); they and the attribute are read before
        // this returns.
        let result = unsafe {
            sys::cuLaunchKernelEx(&raw const config, function, arguments.as_mut_ptr(), ptr::null_mut())
        };
        check(result, &format!("the launch of `{}`", launch.kernel))
    }

    fn begin_capture(&mut self) -> Result<(), KernelError> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream exists, and is not the null stream, which cannot be captured.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) }, "cuStreamBeginCapture")
    }

    fn end_capture(&mut self) -> Result<GraphId, KernelError> {
        self.enter()?;
        let (mut graph, mut executable) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: writes handles; the graph is of no use once it is instantiated.
        unsafe {
            check(sys::cuStreamEndCapture(self.stream, &raw mut graph), "cuStreamEndCapture")?;
            let made = sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0);
            sys::cuGraphDestroy(graph);
            check(made, "cuGraphInstantiate")?;
        }
        let id = GraphId(self.number() as u32);
        self.graphs.insert(id, executable);
        Ok(id)
    }

    fn replay(&mut self, graph: GraphId) -> Result<(), KernelError> {
        self.enter()?;
        let &executable = self
            .graphs
            .get(&graph)
            .ok_or_else(|| KernelError::Cuda("a graph was replayed after it was forgotten".to_owned()))?;
        // SAFETY: both exist.
        check(unsafe { sys::cuGraphLaunch(executable, self.stream) }, "cuGraphLaunch")
    }

    fn forget(&mut self, graph: GraphId) {
        if let (Some(executable), Ok(())) = (self.graphs.remove(&graph), self.synchronize()) {
            // SAFETY: it exists, and does not run any more.
            unsafe { sys::cuGraphExecDestroy(executable) };
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        if self.synchronize().is_err() {
            return; // The card is lost, and everything on it.
        }
        let pinned = self.spare.drain(..).chain(self.uploads.drain(..));
        // SAFETY: nothing runs any more, and each is destroyed once.
        unsafe {
            for pinned in pinned.chain(self.downloads.drain().map(|(_, (pinned, _))| pinned)) {
                sys::cuEventDestroy_v2(pinned.event);
                sys::cuMemFreeHost(pinned.memory.cast());
            }
            for (_, executable) in self.graphs.drain() {
                sys::cuGraphExecDestroy(executable);
            }
            self.library = None;
            if let Some((_, event)) = self.beside.take() {
                sys::cuEventDestroy_v2(event);
            }
            if !self.borrowed {
                sys::cuStreamDestroy_v2(self.stream);
            }
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::cache::InMemory;

    /// Where there is a card, this opens it; where there is none, it says so.
    #[test]
    fn a_missing_card_is_an_error_to_read() {
        if let Err(error) = Card::open(0, Box::new(InMemory::default())) {
            assert!(matches!(error, KernelError::Cuda(_)), "{error}");
            // SAFETY: as in `open`.
            if !unsafe { sys::is_culib_present() } {
                assert!(error.to_string().contains("NVIDIA's driver (libcuda.so) is not found"), "{error}");
            }
        }
    }
}
