//! Matrix products by cuBLASLt: faster for large batches than kernels whose sums keep one order, but which sums it makes
//! in which order is a matter of the batch.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;

use cudarc::cublaslt::sys;
use cudarc::driver::sys as driver;

use super::driver::Matmul;
use crate::KernelError;

/// Bytes that a product may work in: what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;

/// `CUBLAS_OP_T` of cuBLAS's header.
const TRANSPOSED: i32 = 1;

/// A product of one size, ready to be made.
struct Ready {
    operation: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// cuBLASLt, found. What it holds of a context is given back with the context.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: driver::CUdeviceptr,
    ready: HashMap<[u32; 3], Ready>,
}

fn check(status: sys::cublasStatus_t, call: &str) -> Result<(), KernelError> {
    if status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        Ok(())
    } else {
        Err(KernelError::Cuda(format!("{call} failed: {status:?}")))
    }
}

impl Library {
    /// Looks for it where the system's loader looks; the card's context is current.
    ///
    /// # Errors
    /// [`KernelError::Cuda`] when it is not there, [`KernelError::Memory`] when its workspace is not.
    pub(super) fn find() -> Result<Self, KernelError> {
        // SAFETY: loads a library of this name, whose constructors NVIDIA vouches for.
        if !unsafe { sys::is_culib_present() } {
            return Err(KernelError::Cuda(
                "cuBLASLt (libcublasLt.so) is not found: name its folder in LD_LIBRARY_PATH, or set \
                 run.deterministic: true"
                    .to_owned(),
            ));
        }
        let (mut handle, mut workspace) = (ptr::null_mut(), 0);
        // SAFETY: each call writes what its pointer is to.
        unsafe {
            check(sys::cublasLtCreate(&raw mut handle), "cublasLtCreate")?;
            if driver::cuMemAlloc_v2(&raw mut workspace, WORKSPACE) != driver::CUresult::CUDA_SUCCESS {
                sys::cublasLtDestroy(handle);
                return Err(KernelError::Memory(format!("the card has no {WORKSPACE} bytes for cuBLASLt")));
            }
        }
        Ok(Self { handle, workspace, ready: HashMap::new() })
    }

    /// Asks how a product of this size is best made.
    fn plan(&self, product: &Matmul) -> Result<Ready, KernelError> {
        let Matmul { rows, outputs, inputs, .. } = *product;
        let mut operation: sys::cublasLtMatmulDesc_t = ptr::null_mut();
        let mut preference: sys::cublasLtMatmulPreference_t = ptr::null_mut();
        let mut layouts: [sys::cublasLtMatrixLayout_t; 3] = [ptr::null_mut(); 3];
        let (transposed, room) = (TRANSPOSED, WORKSPACE);
        let (low, float) = (sys::cudaDataType_t::CUDA_R_16BF, sys::cudaDataType_t::CUDA_R_32F);
        // A matrix whose rows lie one after the other is its transpose in the library's order.
        let sizes = [(low, inputs, outputs), (low, inputs, rows), (float, outputs, rows)];
        let (mut found, mut count) = (std::mem::MaybeUninit::uninit(), 0);
        // SAFETY: each call writes a handle or reads a value of the size that it is told.
        unsafe {
            let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
            let made = sys::cublasLtMatmulDescCreate(&raw mut operation, compute, float);
            check(made, "cublasLtMatmulDescCreate")?;
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
            let (value, bytes) = ((&raw const transposed).cast(), size_of_val(&transposed));
            let set = sys::cublasLtMatmulDescSetAttribute(operation, attribute, value, bytes);
            check(set, "cublasLtMatmulDescSetAttribute")?;
            for (layout, (kind, high, wide)) in layouts.iter_mut().zip(sizes) {
                let (high, wide) = (u64::from(high), u64::from(wide));
                let made = sys::cublasLtMatrixLayoutCreate(layout, kind, high, wide, high as i64);
                check(made, "cublasLtMatrixLayoutCreate")?;
            }
            check(
                sys::cublasLtMatmulPreferenceCreate(&raw mut preference),
                "cublasLtMatmulPreferenceCreate",
            )?;
            let attribute =
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let (value, bytes) = ((&raw const room).cast(), size_of_val(&room));
            let set = sys::cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, bytes);
            check(set, "cublasLtMatmulPreferenceSetAttribute")?;
            let [w, x, y] = layouts;
            let asked = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                operation,
                w,
                x,
                y,
                y,
                preference,
                1,
                found.as_mut_ptr(),
                &raw mut count,
            );
            sys::cublasLtMatmulPreferenceDestroy(preference);
            check(asked, "cublasLtMatmulAlgoGetHeuristic")?;
            if count == 0 {
                return Err(KernelError::Cuda(format!(
                    "cuBLASLt has no way to multiply {rows} × {inputs} by {inputs} × {outputs}"
                )));
            }
            Ok(Ready { operation, w, x, y, algorithm: found.assume_init().algo })
        }
    }

    /// Hands the product into `stream`.
    ///
    /// # Errors
    /// [`KernelError::Cuda`] when the library refuses.
    pub(super) fn multiply(&mut self, product: &Matmul, stream: driver::CUstream) -> Result<(), KernelError> {
        let size = [product.rows, product.outputs, product.inputs];
        if !self.ready.contains_key(&size) {
            let ready = self.plan(product)?;
            self.ready.insert(size, ready);
        }
        let ready = &self.ready[&size];
        let (one, none) = (1.0f32, 0.0f32);
        let pointer = |address: u64| address as *const c_void;
        // SAFETY: the addresses are of matrices of these sizes, and the factors are read before this returns.
        let result = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                ready.operation,
                (&raw const one).cast(),
                pointer(product.w),
                ready.w,
                pointer(product.x),
                ready.x,
                (&raw const none).cast(),
                pointer(product.y),
                ready.y,
                pointer(product.y).cast_mut(),
                ready.y,
                &raw const ready.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        };
        check(result, "cublasLtMatmul")
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: nothing is under way (`Card` waits first), and each is destroyed once.
        unsafe {
            for (_, ready) in self.ready.drain() {
                sys::cublasLtMatmulDescDestroy(ready.operation);
                for layout in [ready.w, ready.x, ready.y] {
                    sys::cublasLtMatrixLayoutDestroy(layout);
                }
            }
            sys::cublasLtDestroy(self.handle);
            driver::cuMemFree_v2(self.workspace);
        }
    }
}
