//! What checks of single kernels share: memory of a card with poison around it, fresh random numbers, formulas in f64.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may panic, helpers of tests too")]
#![allow(clippy::print_stdout, reason = "the seed, where a test fails in another's words")]

pub mod attention;
pub mod products;

use std::fmt::Debug;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use half::bf16;
use parl_kernels::cuda::driver::{Address, Argument, Driver, KernelsId, Launch, Types};
use parl_kernels::weights::Dtype;

use crate::emulated::driver;
use crate::fixture::uniform;

/// `PARL_SEED`, or else the system's clock at the program's start: a failure names it.
fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| match std::env::var("PARL_SEED") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
    })
}

/// The parameters of a launch, of any types that there are.
macro_rules! arguments {
    ($($value:expr),* $(,)?) => { vec![$(Argument::from($value)),*] };
}
pub(crate) use arguments;

pub const BOTH: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// Every choice of one of each.
pub fn grid<A: Copy, B: Copy, C: Copy>(a: &[A], b: &[B], c: &[C]) -> Vec<(A, B, C)> {
    a.iter().flat_map(|&a| b.iter().flat_map(move |&b| c.iter().map(move |&c| (a, b, c)))).collect()
}

/// What an element must be, and how far from it it may be; NaN is for an element that may not be written.
#[derive(Debug, Clone, Copy)]
pub struct Near {
    pub value: f64,
    pub within: f64,
}

pub const UNTOUCHED: Near = Near { value: f64::NAN, within: 0.0 };

/// Of norms: large enough to be seen.
pub const EPSILON: f32 = 0.01;

/// How far sums of f32 may be from those of f64, as a share of the sum of their terms' sizes.
pub const CLOSE: f64 = 1e-5;

/// Half a unit in the last place of bf16, as a share of a number.
pub const HALF_UNIT: f64 = 1.0 / 256.0;

impl Near {
    /// A sum of terms of this size in all, rounded as f32 sums are. What is below every number that matters is 0.
    pub fn sum(value: f64, sizes: f64) -> Self {
        Self { value, within: CLOSE * sizes + 1e-30 }
    }

    /// The very number; poison is poison still.
    pub fn exactly(value: f32) -> Self {
        Self { value: f64::from(value), within: 0.0 }
    }
}

/// A sum of products, and the sum of their sizes.
pub fn dot(a: impl IntoIterator<Item = f32>, b: impl IntoIterator<Item = f32>) -> [f64; 2] {
    a.into_iter().zip(b).fold([0.0; 2], |[sum, sizes], (a, b)| {
        let term = f64::from(a) * f64::from(b);
        [sum + term, sizes + term.abs()]
    })
}

/// Numbers on the card, `MARGIN` bytes of poison before and after them.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub address: Address,
    dtype: Dtype,
    count: usize,
}

const MARGIN: usize = 256;
const POISON: u8 = 0xFF;

impl From<&Place> for Argument {
    fn from(place: &Place) -> Self {
        Self::from(place.address)
    }
}

fn bytes_of(dtype: Dtype) -> usize {
    if dtype == Dtype::F32 { 4 } else { 2 }
}

/// As it is in an element of the type.
pub fn rounded(dtype: Dtype, x: f64) -> f32 {
    if dtype == Dtype::F32 { x as f32 } else { bf16::from_f64(x).to_f32() }
}

fn encoded(dtype: Dtype, value: f32) -> Vec<u8> {
    match dtype {
        _ if value.is_nan() => vec![POISON; bytes_of(dtype)],
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

fn decoded(dtype: Dtype, bytes: &[u8]) -> f32 {
    match dtype {
        Dtype::F32 => bytemuck::pod_read_unaligned(bytes),
        Dtype::Bf16 => bytemuck::pod_read_unaligned::<bf16>(bytes).to_f32(),
    }
}

/// Kernels of a type and a head, and what they work on.
pub struct Bench {
    driver: Box<dyn Driver>,
    kernels: KernelsId,
    pub dtype: Dtype,
    pub head_dim: usize,
    seed: u64,
    /// Random numbers so far.
    drawn: usize,
    held: Vec<Address>,
}

impl Bench {
    pub fn new(dtype: Dtype, head_dim: usize) -> Self {
        let (mut driver, seed) = (driver(), seed());
        println!("PARL_SEED={seed}");
        let kernels = driver.kernels(Types::plain(dtype), head_dim).unwrap();
        let mut bench = Self { driver, kernels, dtype, head_dim, seed, drawn: 0, held: Vec::new() };
        // In some launches the emulator makes copies late: not in the same ones in every run.
        let none = bench.count(0);
        for _ in 0..seed % 64 {
            let arguments = arguments![none, none, none, 0u64, 0u64];
            bench.launch("copy_blocks", [1, 1, 1], 32, 0, arguments);
        }
        bench
    }

    /// Bytes of shared memory that a block may take.
    pub fn shared_bytes(&self) -> usize {
        self.driver.chip().shared_bytes
    }

    /// A number in `[0, 1)`.
    pub fn random(&mut self) -> f32 {
        self.drawn += 1;
        uniform(self.seed, self.drawn)
    }

    /// Elements between plus and minus `most`.
    pub fn elements(&mut self, count: usize, most: f32) -> Vec<f32> {
        let dtype = self.dtype;
        (0..count).map(|_| rounded(dtype, f64::from(most * (2.0 * self.random() - 1.0)))).collect()
    }

    /// Floats between plus and minus `most`.
    pub fn floats(&mut self, count: usize, most: f32) -> Vec<f32> {
        (0..count).map(|_| most * (2.0 * self.random() - 1.0)).collect()
    }

    /// The numbers below `count` in any order.
    pub fn shuffled(&mut self, count: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..count as u32).collect();
        let keys: Vec<f32> = (0..count).map(|_| self.random()).collect();
        all.sort_by(|&a, &b| keys[a as usize].total_cmp(&keys[b as usize]));
        all
    }

    fn place_bytes(&mut self, dtype: Dtype, bytes: &[u8]) -> Place {
        let margin = [POISON; MARGIN];
        let all = [&margin, bytes, &margin].concat();
        let address = self.driver.allocate(all.len() as u64).unwrap();
        self.held.push(address);
        self.driver.upload(address, &all).unwrap();
        Place { address: address + MARGIN as u64, dtype, count: bytes.len() / bytes_of(dtype) }
    }

    /// Numbers on the card, in `dtype`; NaN are poison.
    pub fn place(&mut self, dtype: Dtype, values: &[f32]) -> Place {
        let bytes: Vec<u8> = values.iter().flat_map(|&x| encoded(dtype, x)).collect();
        self.place_bytes(dtype, &bytes)
    }

    /// Elements on the card.
    pub fn weights(&mut self, values: &[f32]) -> Address {
        self.place(self.dtype, values).address
    }

    /// Room on the card where nothing was written.
    pub fn poison(&mut self, dtype: Dtype, count: usize) -> Place {
        self.place_bytes(dtype, &vec![POISON; count * bytes_of(dtype)])
    }

    /// Words on the card.
    pub fn words(&mut self, words: &[u32]) -> Place {
        self.place_bytes(Dtype::F32, bytemuck::cast_slice(words))
    }

    /// A count on the card.
    pub fn count(&mut self, count: usize) -> Address {
        self.words(&[count as u32]).address
    }

    pub fn launch(
        &mut self,
        kernel: &'static str,
        blocks: [usize; 3],
        threads: usize,
        shared_bytes: usize,
        arguments: Vec<Argument>,
    ) {
        let blocks = blocks.map(|b| b as u32);
        let (threads, shared_bytes) = (threads as u32, shared_bytes as u32);
        let launch = Launch { kernel, blocks, threads, shared_bytes, arguments, instead: None };
        let launched = self.driver.launch(self.kernels, &launch);
        launched.unwrap_or_else(|error| panic!("{launch:?}: {error}, PARL_SEED={}", self.seed));
    }

    #[track_caller]
    fn read(&mut self, place: &Place, what: &dyn Debug) -> Vec<u8> {
        let bytes = place.count * bytes_of(place.dtype);
        let pending = self
            .driver
            .download(place.address - MARGIN as u64, (bytes + 2 * MARGIN) as u64)
            .unwrap_or_else(|error| panic!("{what:?}: {error}, PARL_SEED={}", self.seed));
        let all = self.driver.wait(pending);
        let mut all = all.unwrap_or_else(|error| panic!("{what:?}: {error}, PARL_SEED={}", self.seed));
        let after = all.split_off(MARGIN + bytes);
        let found = all.split_off(MARGIN);
        let clean = all.iter().chain(&after).all(|&b| b == POISON);
        self.check(clean, || format!("{what:?}: written outside of {place:?}"));
        found
    }

    /// The numbers of a place.
    #[track_caller]
    pub fn read_numbers(&mut self, place: &Place, what: &dyn Debug) -> Vec<f32> {
        let bytes = self.read(place, what);
        bytes.chunks(bytes_of(place.dtype)).map(|bytes| decoded(place.dtype, bytes)).collect()
    }

    /// The words of a place.
    #[track_caller]
    pub fn read_words(&mut self, place: &Place, what: &dyn Debug) -> Vec<u32> {
        self.read(place, what).chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
    }

    /// Every element must be near what is wanted, and poison where nothing is; elements of bf16 may be rounded besides.
    #[track_caller]
    pub fn compare(&mut self, place: &Place, wanted: &[Near], what: &dyn Debug) {
        let found = self.read(place, what);
        self.check(wanted.len() == place.count, || format!("{what:?}: {} of {place:?}", wanted.len()));
        for (i, (bytes, near)) in found.chunks(bytes_of(place.dtype)).zip(wanted).enumerate() {
            let got = f64::from(decoded(place.dtype, bytes));
            let Near { value, within } = *near;
            let rounding = place.dtype == Dtype::Bf16 && within > 0.0;
            let within = if rounding { within + HALF_UNIT * (value.abs() + within) } else { within };
            let untouched = bytes.iter().all(|&b| b == POISON);
            let good = if value.is_nan() { untouched } else { (got - value).abs() <= within };
            self.check(good, || {
                let poison = if untouched { " (not written)" } else { "" };
                format!("{what:?}: element {i} is {got:e}{poison}, must be {value:e} within {within:.1e}")
            });
        }
    }

    /// Fails with words that tell how to see it again.
    #[track_caller]
    pub fn check(&self, good: bool, words: impl FnOnce() -> String) {
        assert!(good, "{}; {:?}, heads of {}, PARL_SEED={}", words(), self.dtype, self.head_dim, self.seed);
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        for address in self.held.drain(..) {
            self.driver.free(address);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // After a failure the emulator's look at its guards could fail too, which would end the program.
        if !std::thread::panicking() {
            self.clear();
        }
    }
}
