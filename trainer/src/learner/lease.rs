//! The learner's tensors as a weight lease: the engine reads the very memory that the optimizer writes between leases.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use parl_kernels::shape::ModelShape;
use parl_kernels::weights::{Dtype, View, WeightSet};
use tch::{Kind, Tensor};

use super::LearnerError;
use super::model::Params;

/// Keeps the tensors' memory while a lease lives. Tensors may move between threads but not be shared; the lock makes
/// the owner shareable, and nobody takes it.
struct Owner(#[expect(dead_code, reason = "held to keep the memory")] Mutex<Vec<Tensor>>);

/// Leases contiguous tensors where they lie, in the host's memory or a card's. The second value is alive as long as the
/// lease is.
#[allow(unsafe_code)]
pub(super) fn lease(
    shape: &ModelShape,
    params: &Params,
    version: u64,
) -> Result<(WeightSet, std::sync::Weak<dyn Any + Send + Sync>), LearnerError> {
    let mut views = HashMap::new();
    let mut kept = Vec::new();
    for (name, tensor) in params {
        let dtype = match tensor.kind() {
            Kind::Float => Some(Dtype::F32),
            Kind::BFloat16 => Some(Dtype::Bf16),
            _ => None,
        };
        let Some(dtype) = dtype.filter(|_| tensor.is_contiguous()) else {
            return Err(LearnerError::Weights(format!("`{name}` is not a contiguous tensor of f32 or bf16")));
        };
        let (start, elements) = (tensor.data_ptr().cast_const(), tensor.numel());
        let view = if tensor.device().is_cuda() {
            View::on_card(start as u64, elements, dtype)
        } else {
            // SAFETY: the tensor holds `numel` elements at `data_ptr`, its clone in `kept` keeps the storage, and
            // `Learner` writes to it only while no lease is alive.
            unsafe { View::from_raw(start.cast(), elements, dtype) }
        };
        views.insert(name.clone(), view);
        kept.push(tensor.shallow_clone());
    }
    let owner: Arc<dyn Any + Send + Sync> = Arc::new(Owner(Mutex::new(kept)));
    let alive = Arc::downgrade(&owner);
    // SAFETY: as above; `owner` holds every tensor that a view points into.
    let set = unsafe { WeightSet::lease(shape.clone(), version, views, owner) }?;
    Ok((set, alive))
}
