//! The learner's tensors as a weight lease: the engine reads the very memory that the optimizer writes between leases.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use parl_kernels::shape::ModelShape;
use parl_kernels::weights::{Dtype, View, WeightSet};
use tch::Tensor;

use super::LearnerError;
use super::model::Params;

/// Keeps the tensors' memory while a lease lives. Tensors may move between threads but not be shared; the lock makes
/// the owner shareable, and nobody takes it.
struct Owner(#[expect(dead_code, reason = "held to keep the memory")] Mutex<Vec<Tensor>>);

/// Leases contiguous f32 CPU tensors. The second value is alive as long as the lease is.
#[allow(unsafe_code)]
pub(super) fn lease(
    shape: &ModelShape,
    params: &Params,
    version: u64,
) -> Result<(WeightSet, std::sync::Weak<dyn Any + Send + Sync>), LearnerError> {
    let mut views = HashMap::new();
    let mut kept = Vec::new();
    for (name, tensor) in params {
        let plain = tensor.kind() == tch::Kind::Float
            && tensor.is_contiguous()
            && tensor.device() == tch::Device::Cpu;
        if !plain {
            return Err(LearnerError::Weights(format!("`{name}` is not a contiguous f32 tensor on the CPU")));
        }
        // SAFETY: the tensor holds `numel` f32 at `data_ptr`, its clone in `kept` keeps the storage, and `Learner` writes
        // to it only while no lease is alive.
        let view =
            unsafe { View::from_raw(tensor.data_ptr().cast_const().cast(), tensor.numel(), Dtype::F32) };
        views.insert(name.clone(), view);
        kept.push(tensor.shallow_clone());
    }
    let owner: Arc<dyn Any + Send + Sync> = Arc::new(Owner(Mutex::new(kept)));
    let alive = Arc::downgrade(&owner);
    // SAFETY: as above; `owner` holds every tensor that a view points into.
    let set = unsafe { WeightSet::lease(shape.clone(), version, views, owner) }?;
    Ok((set, alive))
}
