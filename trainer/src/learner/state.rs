//! A learner's whole state as bytes: weights and optimizer in f32, by name. What is put back has the bits of what was
//! saved.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tch::Tensor;

use super::step::floats;
use super::{Learner, LearnerError, guarded};

const PARAM: &str = "param.";
const OPTIMIZER: &str = "optimizer.";
/// One key of metadata for both counters: two would be written in any order, and equal states must be equal files.
const COUNTERS: &str = "updates_and_version";

impl Learner {
    /// The state as a safetensors file.
    ///
    /// # Errors
    /// [`LearnerError::NotFinite`] when a weight or a moment is no number: a state like that is of no use.
    pub fn save(&self) -> Result<Vec<u8>, LearnerError> {
        self.place().enter()?;
        let params = self.params().iter().map(|(name, tensor)| (format!("{PARAM}{name}"), tensor));
        let state = self.optimizer.state.iter().map(|(name, tensor)| (format!("{OPTIMIZER}{name}"), tensor));
        let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
        for (name, tensor) in params.chain(state) {
            let values = guarded(|| floats(tensor))?;
            if let Some(value) = values.iter().copied().find(|v| !v.is_finite()) {
                return Err(LearnerError::NotFinite { what: "a weight or moment", value: value.into() });
            }
            let dims = tensor.size().into_iter().map(|d| d as usize).collect();
            tensors.insert(name, (dims, values.iter().flat_map(|v| v.to_le_bytes()).collect()));
        }
        let fail = |e: safetensors::SafeTensorError| LearnerError::Weights(e.to_string());
        let mut views = Vec::new();
        for (name, (dims, bytes)) in &tensors {
            views.push((name.clone(), TensorView::new(Dtype::F32, dims.clone(), bytes).map_err(fail)?));
        }
        let counters = format!("{} {}", self.optimizer.steps, self.version());
        let about = HashMap::from([(COUNTERS.to_owned(), counters)]);
        safetensors::serialize(views, Some(about)).map_err(fail)
    }

    /// Puts a saved state back.
    ///
    /// # Errors
    /// [`LearnerError::Weights`] naming the tensor that is missing, too many, of another shape or no number;
    /// [`LearnerError::Samples`] while the weights are leased. Nothing has changed then.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), LearnerError> {
        self.exclusive()?;
        let refuse = |text: String| LearnerError::Weights(text);
        let broken = |e: safetensors::SafeTensorError| refuse(format!("not a safetensors file: {e}"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let counters = header.metadata().as_ref().and_then(|m| m.get(COUNTERS)?.split_once(' '));
        let counters = counters.and_then(|(u, v)| Some((u.parse::<u64>().ok()?, v.parse::<u64>().ok()?)));
        let (updates, version) = counters.ok_or_else(|| refuse(format!("its `{COUNTERS}` is missing")))?;
        let mut params = HashMap::new();
        let mut state = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(bytes).map_err(broken)?.tensors() {
            if view.dtype() != Dtype::F32 {
                return Err(refuse(format!("tensor `{name}` is of type {:?}, not F32", view.dtype())));
            }
            let values: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Err(refuse(format!("tensor `{name}` is {} at element {at}", values[at])));
            }
            let dims: Vec<i64> = view.shape().iter().map(|d| *d as i64).collect();
            let tensor = Tensor::from_slice(&values).view(dims.as_slice());
            let (param, slot) = (name.strip_prefix(PARAM), name.strip_prefix(OPTIMIZER));
            // `m.NAME`, `v.NAME`, `momentum.NAME` and `master.NAME` have the shape of the parameter.
            let of = param.or_else(|| slot.and_then(|s| s.split_once('.')).map(|(_, of)| of));
            let Some(known) = of.and_then(|of| self.params().get(of)) else {
                return Err(refuse(format!("tensor `{name}` is none of this model")));
            };
            if known.size() != dims {
                let wanted = known.size();
                return Err(refuse(format!(
                    "tensor `{name}` is of shape {dims:?}, the model's is {wanted:?}"
                )));
            }
            match (param, slot) {
                (Some(param), _) => drop(params.insert(param.to_owned(), tensor)),
                (_, Some(slot)) => drop(state.insert(slot.to_owned(), tensor)),
                _ => {}
            }
        }
        if let Some(missing) = self.params().keys().find(|name| !params.contains_key(*name)) {
            return Err(refuse(format!("tensor `{PARAM}{missing}` is missing")));
        }
        let place = self.place();
        let (params, state) = guarded(|| {
            let params = params.into_iter().map(|(name, tensor)| (name, place.weight(&tensor))).collect();
            (params, state.into_iter().map(|(name, tensor)| (name, place.put(&tensor))).collect())
        })?;
        (self.optimizer.steps, self.optimizer.state) = (updates, state);
        self.replace(params, version);
        Ok(())
    }
}
