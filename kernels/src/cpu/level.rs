//! Which vector instructions the CPU offers, and running a kernel with them.

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Simd};

/// A feature level that this CPU has: bits may differ between levels, never within one.
///
/// A value is proof that the instructions exist, so it comes only from the functions here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// A computation written once over [`Simd`]. `run` must be `#[inline(always)]`: only inlined into the function
/// that enables the instructions does it become vector code.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;

    /// The computation.
    ///
    /// # Safety
    /// The CPU has `S`'s instructions, and the kernel's own pointers are valid.
    #[allow(unsafe_code)]
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

impl Level {
    /// No instruction beyond the target's baseline.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// The fastest level of this CPU.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::PORTABLE)
    }

    /// Every level of this CPU, slowest first.
    pub fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "only x86-64 has more levels"))]
        let mut all = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(Self(Kind::Avx2));
            if is_x86_feature_detected!("avx512f") {
                all.push(Self(Kind::Avx512));
            }
        }
        all
    }

    /// The name as manifests record it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }

    /// Runs a kernel with this level's instructions.
    ///
    /// # Safety
    /// The kernel's pointers are valid for what it does.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: every CPU has the portable level; the pointers are the caller's promise.
            Kind::Portable => unsafe { kernel.run::<Portable>() },
            // SAFETY: `available` saw these features.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: `available` saw these features.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { run_avx512(kernel) },
        }
    }

    /// Floats in one vector.
    pub(crate) fn lanes(self) -> usize {
        match self.0 {
            Kind::Portable => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => Avx512::LANES,
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here; the pointers are the caller's promise.
    unsafe { kernel.run::<Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[target_feature(enable = "avx2,fma,avx512f")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here; the pointers are the caller's promise.
    unsafe { kernel.run::<Avx512>() }
}
