//! What libtorch's libraries ask of the process that they are loaded into.

use std::ffi::c_int;

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::{c_char, c_void};

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
