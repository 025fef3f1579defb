//! A driver without a card: it records what it is told, and runs kernels as plain C++ where it is asked to.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::disallowed_methods, reason = "its files may be lost")]
#![allow(unsafe_code, reason = "it calls C++ and keeps memory for it")]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use parl_kernels::KernelError;
use parl_kernels::cuda::cache::{Cubins, InMemory};
use parl_kernels::cuda::card::Card;
use parl_kernels::cuda::driver::{Address, Chip, Driver, GraphId, KernelsId, Launch, Pending, Types};
use parl_kernels::weights::Dtype;

unsafe extern "C" {
    fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

type Emulate = unsafe extern "C" fn(*const c_char, *const u32, u32, *const *const c_void) -> c_int;

/// Kernels compiled by a C++ compiler; one at a time runs, for they share their blocks' memory.
#[derive(Clone, Copy)]
pub struct Library(usize);

static LIBRARIES: Mutex<BTreeMap<(bool, bool, usize), usize>> = Mutex::new(BTreeMap::new());

impl Library {
    /// The kernels for some types and a head, compiled once in a program.
    pub fn get(types: Types, head_dim: usize) -> Self {
        let (bf16, fp8) = (types.element == Dtype::Bf16, types.kv_fp8);
        let mut all = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
        Self(*all.entry((bf16, fp8, head_dim)).or_insert_with(|| {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let emulator = root.join("tests/emulator");
            let name = format!("emulated-{}-{bf16}-{fp8}-{head_dim}.so", std::process::id());
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
            #[cfg(target_arch = "x86_64")]
            let fused = std::arch::is_x86_feature_detected!("fma");
            #[cfg(not(target_arch = "x86_64"))]
            let fused = false;
            let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
            let done = Command::new(compiler)
                // Else fmaf is a call, to the same result.
                .args(fused.then_some("-mfma"))
                .args(["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"])
                .args(["-Wno-unknown-pragmas", "-Wno-unused-function", "-fPIC", "-shared"])
                .args([format!("-DELEMENT_BF16={}", u8::from(bf16)), format!("-DKV_FP8={}", u8::from(fp8))])
                // Elements lie in words, and words in bytes of shared memory.
                .args([format!("-DHEAD_DIM={head_dim}"), "-fno-strict-aliasing".to_owned()])
                .args([Path::new("-I"), &root.join("cuda"), Path::new("-I"), &emulator])
                .args([emulator.join("emulator.cpp"), emulator.join("kernels.cpp")])
                .arg("-o")
                .arg(&file)
                .output()
                .unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            let path = CString::new(file.display().to_string()).unwrap();
            // SAFETY: the library was just made and has no constructors of its own.
            let library = unsafe { dlopen(path.as_ptr(), 2) };
            assert!(!library.is_null());
            std::fs::remove_file(file).unwrap();
            library as usize
        }))
    }

    /// The address of a function.
    pub fn function(self, name: &str) -> *mut c_void {
        let name = CString::new(name).unwrap();
        // SAFETY: the library stays loaded.
        let found = unsafe { dlsym(self.0 as *mut c_void, name.as_ptr()) };
        assert!(!found.is_null(), "{name:?}");
        found
    }

    fn run(self, launch: &Launch) {
        // SAFETY: emulator.cpp gives it this type.
        let emulate = unsafe { std::mem::transmute::<*mut c_void, Emulate>(self.function("emulate")) };
        let name = CString::new(launch.kernel).unwrap();
        let arguments: Vec<*const c_void> =
            launch.arguments.iter().map(|a| std::ptr::from_ref(&a.0).cast()).collect();
        let _one = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the addresses among the arguments are those of this driver's memory.
        let found =
            unsafe { emulate(name.as_ptr(), launch.blocks.as_ptr(), launch.threads, arguments.as_ptr()) };
        assert_eq!(found, 1, "there is no kernel {}", launch.kernel);
    }
}

/// One for all tests, so that a kernel is compiled once; between programs in the folder `PARL_CUBINS`, where it is set.
struct Shared;

fn file_of(key: &str) -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("PARL_CUBINS")?).join(key))
}

static COMPILED: OnceLock<Mutex<InMemory>> = OnceLock::new();

impl Cubins for Shared {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        let kept = COMPILED.get_or_init(Mutex::default).lock().unwrap().get(key);
        kept.or_else(|| std::fs::read(file_of(key)?).ok())
    }

    fn keep(&mut self, key: &str, sealed: &[u8]) {
        COMPILED.get_or_init(Mutex::default).lock().unwrap().keep(key, sealed);
        if let Some(file) = file_of(key) {
            std::fs::write(file, sealed).unwrap();
        }
    }
}

/// The emulator, or the card whose number `PARL_CARD` gives.
pub fn driver() -> Box<dyn Driver> {
    match std::env::var("PARL_CARD") {
        Ok(number) => Box::new(Card::open(number.parse().unwrap(), Box::new(Shared)).unwrap()),
        Err(_) => Box::new(Emulated::running()),
    }
}

/// What the driver was told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Allocate(u64),
    Free,
    Upload(Address, usize),
    Download(Address, u64),
    Launch(Launch),
    Capture,
    Captured(GraphId),
    Replay(GraphId),
    Forget(GraphId),
    Synchronize,
    Join,
}

/// Bytes around an allocation that nobody may write.
const GUARD: usize = 256;
const POISON: u8 = 0xFF;

/// The driver.
pub struct Emulated {
    /// Whether kernels run.
    runs: bool,
    /// Bytes that are left.
    pub free: u64,
    /// Bytes that are said to be left besides, as on a card where others take memory meanwhile.
    pub promised: u64,
    /// What it says that it is made of: as an H100, unless a test says otherwise.
    pub chip: Chip,
    /// Whether it says that it has a library for products, which it only records.
    pub library: bool,
    /// Whether every call fails, as those of a card that fell off its bus do.
    pub lost: bool,
    memory: HashMap<Address, Layout>,
    libraries: Vec<(Types, usize)>,
    capturing: Option<Vec<(KernelsId, Launch)>>,
    graphs: HashMap<GraphId, Vec<(KernelsId, Launch)>>,
    done: HashMap<Pending, Vec<u8>>,
    next: u32,
    pub events: Vec<Event>,
}

impl Emulated {
    fn new(runs: bool) -> Self {
        Self {
            runs,
            free: 1 << 32,
            promised: 0,
            chip: Chip { multiprocessors: 132, shared_bytes: 227 << 10 },
            library: false,
            lost: false,
            memory: HashMap::new(),
            libraries: Vec::new(),
            capturing: None,
            graphs: HashMap::new(),
            done: HashMap::new(),
            next: 0,
            events: Vec::new(),
        }
    }

    /// Runs kernels as C++.
    pub fn running() -> Self {
        Self::new(true)
    }

    /// Only records.
    pub fn recording() -> Self {
        Self::new(false)
    }

    /// Kernels of the launches so far that were run, in order; graphs count when they are replayed.
    pub fn kernels(&self) -> Vec<&'static str> {
        let mut all = Vec::new();
        let mut capturing = false;
        for event in &self.events {
            match event {
                Event::Capture => capturing = true,
                Event::Captured(_) => capturing = false,
                Event::Launch(launch) if !capturing => all.push(launch.kernel),
                Event::Replay(graph) => all.extend(self.graphs[graph].iter().map(|(_, l)| l.kernel)),
                _ => {}
            }
        }
        all
    }

    /// Allocations that are held.
    pub fn held(&self) -> usize {
        self.memory.len()
    }

    /// Graphs that are held.
    pub fn graphs(&self) -> usize {
        self.graphs.len()
    }

    fn there(&self) -> Result<(), KernelError> {
        if self.lost { Err(KernelError::Cuda("the device is lost".to_owned())) } else { Ok(()) }
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn release(address: Address, layout: Layout) {
        let start = address as usize - GUARD;
        // SAFETY: the memory was allocated with this layout, `GUARD` bytes before the address.
        unsafe {
            let all = std::slice::from_raw_parts(start as *const u8, layout.size());
            let (before, rest) = all.split_at(GUARD);
            let after = &rest[rest.len() - GUARD..];
            assert!(before.iter().chain(after).all(|&b| b == POISON), "a kernel wrote outside of its memory");
            dealloc(start as *mut u8, layout);
        }
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.memory.is_empty() && self.graphs.is_empty(), "not everything was given back");
        }
    }
}

// SAFETY: it owns its memory.
unsafe impl Send for Emulated {}

impl Driver for Emulated {
    fn free_bytes(&mut self) -> Result<u64, KernelError> {
        self.there()?;
        Ok(self.free + self.promised)
    }

    fn has_library(&self) -> bool {
        self.library
    }

    fn chip(&self) -> Chip {
        self.chip
    }

    fn allocate(&mut self, bytes: u64) -> Result<Address, KernelError> {
        self.there()?;
        self.events.push(Event::Allocate(bytes));
        if bytes > self.free {
            return Err(KernelError::Memory(format!("{bytes} bytes, {} are free", self.free)));
        }
        self.free -= bytes;
        let layout = Layout::from_size_align(bytes as usize + 2 * GUARD, GUARD).unwrap();
        // SAFETY: the size is not 0; all of it is written, with NaN to whoever reads it as numbers.
        let start = unsafe {
            let start = alloc(layout);
            std::ptr::write_bytes(start, POISON, layout.size());
            start
        };
        let address = start as u64 + GUARD as u64;
        self.memory.insert(address, layout);
        Ok(address)
    }

    fn free(&mut self, address: Address) {
        self.events.push(Event::Free);
        let layout = self.memory.remove(&address).expect("freed what was not allocated");
        self.free += (layout.size() - 2 * GUARD) as u64;
        Self::release(address, layout);
    }

    fn synchronize(&mut self) -> Result<(), KernelError> {
        self.events.push(Event::Synchronize);
        self.there()
    }

    fn join(&mut self) -> Result<(), KernelError> {
        assert!(self.capturing.is_none());
        self.events.push(Event::Join);
        self.there()
    }

    fn kernels(&mut self, types: Types, head_dim: usize) -> Result<KernelsId, KernelError> {
        self.there()?;
        if self.runs {
            Library::get(types, head_dim);
        }
        let wanted = (types, head_dim);
        let index = self.libraries.iter().position(|l| *l == wanted).unwrap_or_else(|| {
            self.libraries.push(wanted);
            self.libraries.len() - 1
        });
        Ok(KernelsId(index as u32))
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), KernelError> {
        assert!(self.capturing.is_none());
        self.there()?;
        self.events.push(Event::Upload(to, bytes.len()));
        // SAFETY: `to` lies in an allocation with room, or its guard tells.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&mut self, from: Address, bytes: u64) -> Result<Pending, KernelError> {
        self.there()?;
        self.events.push(Event::Download(from, bytes));
        // SAFETY: as above; all memory was written when it was allocated.
        let found = unsafe { std::slice::from_raw_parts(from as *const u8, bytes as usize).to_vec() };
        let pending = Pending(u64::from(self.number()));
        self.done.insert(pending, found);
        Ok(pending)
    }

    fn wait(&mut self, pending: Pending) -> Result<Vec<u8>, KernelError> {
        let bytes = self.done.remove(&pending).expect("waited for twice");
        self.there().map(|()| bytes)
    }

    fn launch(&mut self, kernels: KernelsId, launch: &Launch) -> Result<(), KernelError> {
        assert!(
            launch.blocks.iter().all(|&b| b > 0) && launch.blocks[1] < 65_536 && launch.blocks[2] < 65_536
        );
        // The emulator's shared memory is that of an H100.
        assert!(launch.shared_bytes as usize <= self.chip.shared_bytes.min(227 << 10), "{launch:?}");
        assert!(launch.threads <= 512, "{launch:?}");
        self.there()?;
        self.events.push(Event::Launch(launch.clone()));
        if let Some(graph) = &mut self.capturing {
            graph.push((kernels, launch.clone()));
        } else if self.runs {
            let (types, head_dim) = self.libraries[kernels.0 as usize];
            Library::get(types, head_dim).run(launch);
        }
        Ok(())
    }

    fn begin_capture(&mut self) -> Result<(), KernelError> {
        self.there()?;
        self.events.push(Event::Capture);
        self.capturing = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&mut self) -> Result<GraphId, KernelError> {
        let graph = GraphId(self.number());
        self.events.push(Event::Captured(graph));
        let launches = self.capturing.take().expect("no capture is under way");
        self.graphs.insert(graph, launches);
        Ok(graph)
    }

    fn replay(&mut self, graph: GraphId) -> Result<(), KernelError> {
        self.there()?;
        self.events.push(Event::Replay(graph));
        for (kernels, launch) in self.graphs.get(&graph).expect("a graph that was forgotten") {
            if self.runs {
                let (types, head_dim) = self.libraries[kernels.0 as usize];
                Library::get(types, head_dim).run(launch);
            }
        }
        Ok(())
    }

    fn forget(&mut self, graph: GraphId) {
        self.events.push(Event::Forget(graph));
        self.graphs.remove(&graph).expect("forgotten twice");
    }
}
