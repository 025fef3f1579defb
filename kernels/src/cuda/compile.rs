//! From CUDA C++ to machine code by NVRTC, a library that needs neither a card nor a driver.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::ptr;

use cudarc::nvrtc::sys;

use super::cache::{Cubins, key, seal, unseal};
use super::driver::Types;
use super::resources::{Resources, read};
use super::sources::{HEADERS, Source};
use crate::KernelError;
use crate::weights::Dtype;

/// The oldest NVRTC that knows sm_90a.
const OLDEST: (i32, i32) = (12, 0);

/// What a source is compiled for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The cards, as `sm_80` or `sm_90a`.
    pub architecture: String,
    /// Types of numbers.
    pub types: Types,
    /// Elements of an attention head.
    pub head_dim: usize,
}

impl Target {
    /// The architecture of a card by its compute capability.
    ///
    /// # Errors
    /// [`KernelError::Cuda`] for a card without bf16 tensor cores.
    pub fn architecture(major: i32, minor: i32) -> Result<String, KernelError> {
        match (major, minor) {
            (..=7, _) => Err(KernelError::Cuda(format!(
                "the card's compute capability is {major}.{minor}, must be at least 8.0"
            ))),
            (9, 0) => Ok("sm_90a".to_owned()),
            _ => Ok(format!("sm_{major}{minor}")),
        }
    }
}

/// The compiler's options for a target.
///
/// Without contraction a product and a sum are fused only where a kernel says so, and bits are what its text says.
pub fn options(target: &Target) -> Vec<String> {
    vec![
        format!("--gpu-architecture={}", target.architecture),
        "--std=c++17".to_owned(),
        "--fmad=false".to_owned(),
        "--ptxas-options=-v".to_owned(),
        format!("-DELEMENT_BF16={}", u8::from(target.types.element == Dtype::Bf16)),
        format!("-DKV_FP8={}", u8::from(target.types.kv_fp8)),
        format!("-DHEAD_DIM={}", target.head_dim),
    ]
}

/// A source compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// Machine code, an ELF file.
    pub cubin: Vec<u8>,
    /// What each of its kernels takes.
    pub resources: BTreeMap<String, Resources>,
    /// Everything the compiler said; warnings stand here.
    pub log: String,
}

/// NVRTC, found.
#[derive(Debug, Clone, Copy)]
pub struct Compiler {
    version: (i32, i32),
}

fn check(result: sys::nvrtcResult, call: &str) -> Result<(), KernelError> {
    if result == sys::nvrtcResult::NVRTC_SUCCESS {
        Ok(())
    } else {
        Err(KernelError::Cuda(format!("{call} failed: {result:?}")))
    }
}

fn c_string(text: &str) -> Result<CString, KernelError> {
    CString::new(text)
        .map_err(|_| KernelError::Cuda("a source or an option has a zero byte in it".to_owned()))
}

/// A program, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was created and is destroyed once. That this fails says nothing about the code.
        unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

impl Program {
    /// Reads one of the program's texts or its code: a call for the size, a call for the bytes.
    fn bytes(
        &self,
        size: unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult,
        get: unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult,
        call: &str,
    ) -> Result<Vec<u8>, KernelError> {
        let mut length = 0;
        // SAFETY: the program lives, and the second call writes as many bytes as the first one told.
        unsafe {
            check(size(self.0, &raw mut length), call)?;
            let mut bytes = vec![0u8; length];
            check(get(self.0, bytes.as_mut_ptr().cast()), call)?;
            Ok(bytes)
        }
    }
}

impl Compiler {
    /// Looks for NVRTC where the system's loader looks.
    ///
    /// # Errors
    /// [`KernelError::Cuda`] when it is not there or too old.
    pub fn find() -> Result<Self, KernelError> {
        // SAFETY: loads a library of this name, whose constructors NVIDIA vouches for.
        if !unsafe { sys::is_culib_present() } {
            return Err(KernelError::Cuda(
                "NVRTC (libnvrtc.so) is not found: install CUDA 13's, or name its folder in LD_LIBRARY_PATH"
                    .to_owned(),
            ));
        }
        let mut version = (0, 0);
        // SAFETY: the library is there, so the call does not panic; it writes two numbers.
        check(unsafe { sys::nvrtcVersion(&raw mut version.0, &raw mut version.1) }, "nvrtcVersion")?;
        if version < OLDEST {
            return Err(KernelError::Cuda(format!(
                "NVRTC is of version {}.{}, must be at least {}.{}",
                version.0, version.1, OLDEST.0, OLDEST.1
            )));
        }
        Ok(Self { version })
    }

    /// NVRTC's version, major and minor.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Compiles a source.
    ///
    /// # Errors
    /// [`KernelError::Compile`] with the compiler's log, [`KernelError::Cuda`] when NVRTC itself fails.
    pub fn compile(&self, source: &Source, target: &Target) -> Result<Compiled, KernelError> {
        let text = c_string(source.text)?;
        let file = c_string(source.file)?;
        let strings = |all: Vec<&str>| all.into_iter().map(c_string).collect::<Result<Vec<_>, _>>();
        let pointers = |all: &[CString]| all.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let header_texts = strings(HEADERS.iter().map(|h| h.text).collect())?;
        let header_names = strings(HEADERS.iter().map(|h| h.file).collect())?;
        let options = options(target);
        let options = strings(options.iter().map(String::as_str).collect())?;
        let (texts, names, wishes) = (pointers(&header_texts), pointers(&header_names), pointers(&options));

        let mut raw = ptr::null_mut();
        // SAFETY: every string and list outlives the program, which is dropped at the end of this function.
        let created = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut raw,
                text.as_ptr(),
                file.as_ptr(),
                texts.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        check(created, "nvrtcCreateProgram")?;
        let program = Program(raw);
        // SAFETY: as above.
        let result = unsafe { sys::nvrtcCompileProgram(program.0, wishes.len() as c_int, wishes.as_ptr()) };
        let log =
            program.bytes(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog, "nvrtcGetProgramLog")?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
        if result != sys::nvrtcResult::NVRTC_SUCCESS {
            let log = if log.is_empty() { format!("{result:?}") } else { log };
            return Err(KernelError::Compile {
                file: source.file.to_owned(),
                architecture: target.architecture.clone(),
                log,
            });
        }
        let cubin = program.bytes(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN, "nvrtcGetCUBIN")?;
        Ok(Compiled { cubin, resources: read(&log), log })
    }

    /// The machine code of a source, from `kept` where it was compiled before.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn cubin(
        &self,
        source: &Source,
        target: &Target,
        kept: &mut dyn Cubins,
    ) -> Result<Vec<u8>, KernelError> {
        let key = key(source, target, self.version);
        if let Some(cubin) = kept.get(&key).as_deref().and_then(unseal) {
            return Ok(cubin.to_vec());
        }
        let cubin = self.compile(source, target)?.cubin;
        kept.keep(&key, &seal(&cubin));
        Ok(cubin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_of_cards() {
        assert_eq!(Target::architecture(8, 0).unwrap(), "sm_80");
        assert_eq!(Target::architecture(9, 0).unwrap(), "sm_90a");
        assert_eq!(Target::architecture(12, 0).unwrap(), "sm_120");
        assert!(Target::architecture(7, 5).unwrap_err().to_string().contains("7.5, must be at least 8.0"));
    }

    /// Where there is NVRTC (`scripts/test` has it in a step of its own), and where there is none.
    #[test]
    fn a_missing_library_and_a_broken_source_are_errors_to_read() {
        let compiler = match Compiler::find() {
            Ok(compiler) => compiler,
            Err(error) => {
                assert!(error.to_string().contains("NVRTC (libnvrtc.so) is not found"), "{error}");
                return;
            }
        };
        let types = Types::plain(Dtype::F32);
        let target = Target { architecture: "sm_80".to_owned(), types, head_dim: 64 };
        let broken =
            Source { file: "broken.cu", text: "#include \"device.cuh\"\n\nKERNEL(32) k() { x = 1; }\n" };
        let error = compiler.compile(&broken, &target).unwrap_err().to_string();
        assert!(error.contains("broken.cu(3): error: identifier \"x\" is undefined"), "{error}");
        let whole =
            Source { file: "whole.cu", text: "#include \"device.cuh\"\nKERNEL(32) k(u32* x) { *x = 1; }\n" };
        let mut kept = super::super::cache::InMemory::default();
        let cubin = compiler.cubin(&whole, &target, &mut kept).unwrap();
        assert_eq!(&cubin[..4], b"\x7fELF");
        // What is kept is taken, unless it is damaged.
        let key = key(&whole, &target, compiler.version());
        kept.keep(&key, &seal(b"kept"));
        assert_eq!(compiler.cubin(&whole, &target, &mut kept).unwrap(), b"kept");
        kept.keep(&key, b"damaged");
        assert_eq!(compiler.cubin(&whole, &target, &mut kept).unwrap(), cubin);
    }
}
