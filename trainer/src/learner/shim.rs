//! What libtorch's libraries ask of the process that they are loaded into, and what tch lacks of a card's libtorch
//! (`shim.cpp`).

use std::ffi::{CStr, c_char, c_int};

use parl_kernels::KernelError;
use parl_kernels::cuda::card::Card;
use tch::{Device, Kind, Tensor};

use super::LearnerError;

/// MKL inside libtorch calls this to choose its kernels. Its own answer keeps CPUs of other makers on narrower ones,
/// whatever they can do; with this answer it goes by the instructions that the CPU has. The symbol of a program comes
/// before that of its libraries.
// SAFETY: the signature is MKL's, and no other symbol of the program has this name.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn mkl_serv_intel_cpu_true() -> c_int {
    1
}

/// Keeps the symbol in every program that has a learner: a linker drops what nothing refers to.
pub(super) fn choose_kernels_by_instructions() {
    std::hint::black_box(mkl_serv_intel_cpu_true as extern "C" fn() -> c_int);
}

#[allow(unsafe_code)]
// SAFETY: the signatures are those of shim.cpp. `fault` is to `room` bytes, of which it fills some on failure, up to a
// zero, and gives 0 then.
unsafe extern "C" {
    fn parl_load(library: *const c_char, fault: *mut c_char, room: usize) -> c_int;
    fn parl_pool_stream(device: i8, id: *mut i64, handle: *mut u64, fault: *mut c_char, room: usize)
    -> c_int;
    fn parl_use_stream(device: i8, id: i64, fault: *mut c_char, room: usize) -> c_int;
    fn parl_cap(share: f64, fault: *mut c_char, room: usize) -> c_int;
    fn parl_tensor_cores(fault: *mut c_char, room: usize) -> c_int;
    fn parl_empty_cache(fault: *mut c_char, room: usize) -> c_int;
}

/// Makes a call, given where it may write what failed, and how much.
fn told(call: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<(), LearnerError> {
    let mut fault = [0u8; 1024];
    if call(fault.as_mut_ptr().cast(), fault.len()) == 1 {
        return Ok(());
    }
    let text = CStr::from_bytes_until_nul(&fault).map(CStr::to_string_lossy).unwrap_or_default();
    Err(LearnerError::Torch(text.lines().next().unwrap_or_default().to_owned()))
}

/// The card that libtorch is used on.
const CARD: i8 = 0;

/// Loads a library of libtorch's for good.
#[allow(unsafe_code)]
pub(super) fn load(library: &CStr) -> Result<(), LearnerError> {
    // SAFETY: the constructors are those of the libtorch that the program is linked against already.
    told(|fault, room| unsafe { parl_load(library.as_ptr(), fault, room) })
}

/// A stream of libtorch's pool. Those are never destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    id: i64,
    handle: u64,
}

impl Stream {
    /// One that nobody was given before, until the pool begins anew.
    #[allow(unsafe_code)]
    pub(super) fn of_pool() -> Result<Self, LearnerError> {
        let (mut id, mut handle) = (0, 0);
        // SAFETY: it writes two numbers.
        told(|fault, room| unsafe { parl_pool_stream(CARD, &raw mut id, &raw mut handle, fault, room) })?;
        Ok(Self { id, handle })
    }

    /// Lets what this thread asks of libtorch on the card go by this stream.
    #[allow(unsafe_code)]
    pub(super) fn enter(self) -> Result<(), LearnerError> {
        // SAFETY: the id is of a stream that there is.
        told(|fault, room| unsafe { parl_use_stream(CARD, self.id, fault, room) })
    }

    /// Lets a card's engine go by this stream as well.
    #[allow(unsafe_code)]
    pub(super) fn lend(self, card: &mut Card) -> Result<(), KernelError> {
        // SAFETY: libtorch works in the primary context, gave no null stream out of its pool, and keeps it for good.
        unsafe { card.follow(self.handle) }
    }

    /// Lets a card's engine go by a stream of its own beside this one.
    #[allow(unsafe_code)]
    pub(super) fn accompany(self, card: &mut Card) -> Result<(), KernelError> {
        // SAFETY: as above.
        unsafe { card.work_beside(self.handle) }
    }
}

/// The elements of a tensor of f32 that lies in the host's memory without gaps.
///
/// # Panics
/// When it does not.
#[allow(unsafe_code)]
pub(super) fn floats(tensor: &Tensor) -> &[f32] {
    // SAFETY: `elements` found as many there, and they live as long as the handle. Who writes them, through this file or
    // libtorch, does so on the thread that works on the tensor, and reads no slice taken before.
    unsafe { std::slice::from_raw_parts(elements(tensor), tensor.numel()) }
}

/// As [`floats`], to be written.
///
/// # Panics
/// As [`floats`].
#[allow(unsafe_code)]
pub(super) fn floats_mut(tensor: &mut Tensor) -> &mut [f32] {
    // SAFETY: as above; other handles on the same elements are not used meanwhile.
    unsafe { std::slice::from_raw_parts_mut(elements(tensor), tensor.numel()) }
}

fn elements(tensor: &Tensor) -> *mut f32 {
    let fits = tensor.kind() == Kind::Float && tensor.device() == Device::Cpu && tensor.is_contiguous();
    assert!(fits, "{tensor:?} is not f32 in the host's memory without gaps");
    if tensor.numel() == 0 { std::ptr::dangling_mut() } else { tensor.data_ptr().cast() }
}

/// Caps what libtorch takes of a card's memory to a share of all of it, from 0 to 1. Without effect once libtorch has
/// begun to work there.
#[allow(unsafe_code)]
pub(super) fn cap(share: f64) -> Result<(), LearnerError> {
    // SAFETY: a number in.
    told(|fault, room| unsafe { parl_cap(share, fault, room) })
}

/// Lets tensor cores multiply what is f32, rounded to 11 bits.
#[allow(unsafe_code)]
pub(super) fn tensor_cores() -> Result<(), LearnerError> {
    // SAFETY: nothing goes in.
    told(|fault, room| unsafe { parl_tensor_cores(fault, room) })
}

/// Gives memory of the card back that libtorch keeps but does not use.
#[allow(unsafe_code)]
pub(super) fn empty_cache() -> Result<(), LearnerError> {
    // SAFETY: nothing goes in.
    told(|fault, room| unsafe { parl_empty_cache(fault, room) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learner::Place;
    use std::ffi::c_void;

    /// With libtorch's CPU part alone, as the tests are run, or with the whole of it and no card.
    #[test]
    fn what_only_a_card_has_is_an_error_to_read() {
        let text = |result: Result<(), LearnerError>| result.unwrap_err().to_string();
        let missing = text(load(c"libtorch_of_nobody.so"));
        assert!(missing.starts_with("libtorch: libtorch_of_nobody.so: cannot open"), "{missing}");
        match Place::find_card().map_err(|e| e.to_string()) {
            Ok(()) => return,
            Err(why) if load(c"libtorch_cuda.so").is_ok() => {
                assert_eq!(why, "libtorch: it finds no card that it can use");
                return assert!(cap(2.0).is_err() && cap(0.5).is_ok() && Stream::of_pool().is_err());
            }
            Err(why) => {
                assert!(why.contains("its part for cards is not found: name the `lib` folder"), "{why}");
            }
        }
        let lacking = "libtorch: PyTorch is not linked with support for cuda devices";
        assert_eq!(text(Stream::of_pool().map(drop)), lacking);
        assert_eq!(text(Stream { id: 0, handle: 0 }.enter()), lacking);
        assert!(text(empty_cache()).contains("Allocator for cuda"));
    }

    #[allow(unsafe_code)]
    #[test]
    fn mkl_finds_this_answer() {
        unsafe extern "C" {
            fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
        }
        choose_kernels_by_instructions();
        // SAFETY: a null handle searches the program first, then its libraries, as the dynamic linker does.
        let found = unsafe { dlsym(std::ptr::null_mut(), c"mkl_serv_intel_cpu_true".as_ptr()) };
        assert_eq!(found.cast_const(), mkl_serv_intel_cpu_true as *const c_void);
    }
}
