//! Weights as leases: immutable views on somebody else's memory, with the owner kept alive.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use half::bf16;

use crate::KernelError;
use crate::shape::ModelShape;

/// Element type of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
}

/// One tensor: row-major elements that live as long as the [`WeightSet`]'s owner.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pointer: Pointer,
    elements: usize,
}

#[derive(Debug, Clone, Copy)]
enum Pointer {
    F32(*const f32),
    Bf16(*const bf16),
    /// An address in a card's memory.
    Card(u64, Dtype),
}

// SAFETY: a view is read-only, and the memory behind it is neither moved nor written while a lease on it
// lives (the contract of `WeightSet::lease`).
#[allow(unsafe_code)]
unsafe impl Send for View {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for View {}

impl View {
    /// A view on f32 elements.
    pub fn f32(data: &[f32]) -> Self {
        Self { pointer: Pointer::F32(data.as_ptr()), elements: data.len() }
    }

    /// A view on bf16 elements.
    pub fn bf16(data: &[bf16]) -> Self {
        Self { pointer: Pointer::Bf16(data.as_ptr()), elements: data.len() }
    }

    /// A view on raw memory, for owners outside Rust (libtorch).
    ///
    /// # Safety
    /// `pointer` must be aligned for `dtype` and valid for reads of `elements` elements until the owner given
    /// to [`WeightSet::lease`] is dropped; nobody may write there meanwhile.
    #[allow(unsafe_code)]
    pub unsafe fn from_raw(pointer: *const u8, elements: usize, dtype: Dtype) -> Self {
        let pointer = match dtype {
            Dtype::F32 => Pointer::F32(pointer.cast()),
            Dtype::Bf16 => Pointer::Bf16(pointer.cast()),
        };
        Self { pointer, elements }
    }

    /// A view on a card's memory: the host never reads there, so nothing but a card's kernels can.
    pub fn on_card(address: u64, elements: usize, dtype: Dtype) -> Self {
        Self { pointer: Pointer::Card(address, dtype), elements }
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        match self.pointer {
            Pointer::Card(_, dtype) => dtype,
            Pointer::F32(_) => Dtype::F32,
            Pointer::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.elements
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.elements == 0
    }
}

/// An immutable, versioned lease on the weights of one model.
#[derive(Clone)]
pub struct WeightSet {
    shape: Arc<ModelShape>,
    version: u64,
    views: Arc<HashMap<String, View>>,
    owner: Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for WeightSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WeightSet")
            .field("version", &self.version)
            .field("tensors", &self.views.len())
            .finish_non_exhaustive()
    }
}

impl WeightSet {
    /// Leases `views` (names and shapes as [`ModelShape::tensors`] lists them) for as long as the set or a
    /// clone of it lives; `owner` is what keeps the memory valid.
    ///
    /// # Safety
    /// Every view must point into memory that `owner` keeps valid and that nobody writes while the set lives.
    ///
    /// # Errors
    /// [`KernelError::Weights`] when a tensor is missing, surplus, or has another number of elements.
    #[allow(unsafe_code)]
    pub unsafe fn lease(
        shape: ModelShape,
        version: u64,
        views: HashMap<String, View>,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, KernelError> {
        shape.validate()?;
        let wanted = shape.tensors();
        for (name, dims) in &wanted {
            let view =
                views.get(name).ok_or_else(|| KernelError::Weights(format!("tensor `{name}` is missing")))?;
            let elements: usize = dims.iter().product();
            if view.len() != elements {
                return Err(KernelError::Weights(format!(
                    "tensor `{name}` has {} elements, its shape {dims:?} needs {elements}",
                    view.len()
                )));
            }
        }
        if views.len() != wanted.len() {
            let surplus = views.keys().find(|k| !wanted.iter().any(|(name, _)| name == *k));
            return Err(KernelError::Weights(format!(
                "tensor `{}` is not part of this model",
                surplus.map_or("?", |s| s)
            )));
        }
        Ok(Self { shape: Arc::new(shape), version, views: Arc::new(views), owner })
    }

    /// Owned f32 weights: the set keeps `tensors` itself.
    ///
    /// # Errors
    /// As [`WeightSet::lease`].
    #[allow(unsafe_code)]
    pub fn from_f32(
        shape: ModelShape,
        version: u64,
        tensors: HashMap<String, Vec<f32>>,
    ) -> Result<Self, KernelError> {
        let owner = Arc::new(tensors);
        let views = owner.iter().map(|(k, v)| (k.clone(), View::f32(v))).collect();
        // SAFETY: the views point into the heap buffers of `owner`, which is immutable behind its Arc.
        unsafe { Self::lease(shape, version, views, owner) }
    }

    /// Owned bf16 weights.
    ///
    /// # Errors
    /// As [`WeightSet::lease`].
    #[allow(unsafe_code)]
    pub fn from_bf16(
        shape: ModelShape,
        version: u64,
        tensors: HashMap<String, Vec<bf16>>,
    ) -> Result<Self, KernelError> {
        let owner = Arc::new(tensors);
        let views = owner.iter().map(|(k, v)| (k.clone(), View::bf16(v))).collect();
        // SAFETY: as in `from_f32`.
        unsafe { Self::lease(shape, version, views, owner) }
    }

    /// Sizes of the model.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// The version given by whoever published these weights.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Element type of a tensor; `None` for a name that the model has not.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.views.get(name).map(View::dtype)
    }

    /// The elements of an f32 tensor; `None` for another name or type.
    #[allow(unsafe_code)]
    pub fn f32(&self, name: &str) -> Option<&[f32]> {
        let view = self.views.get(name)?;
        let Pointer::F32(pointer) = view.pointer else { return None };
        // SAFETY: `lease`'s caller vouched for the memory while `self.owner` lives, and the slice borrows `self`.
        Some(unsafe { std::slice::from_raw_parts(pointer, view.elements) })
    }

    /// The elements of a bf16 tensor; `None` for another name or type.
    #[allow(unsafe_code)]
    pub fn bf16(&self, name: &str) -> Option<&[bf16]> {
        let view = self.views.get(name)?;
        let Pointer::Bf16(pointer) = view.pointer else { return None };
        // SAFETY: as in `f32`.
        Some(unsafe { std::slice::from_raw_parts(pointer, view.elements) })
    }

    /// Where a tensor lies in a card's memory; `None` for another name, or where it lies in the host's.
    pub fn on_card(&self, name: &str) -> Option<u64> {
        match self.views.get(name)?.pointer {
            Pointer::Card(address, _) => Some(address),
            _ => None,
        }
    }

    /// How many leases on the owner there are, this one included; the writer waits until it is alone.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.owner)
    }
}
