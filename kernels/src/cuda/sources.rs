//! The CUDA sources, as they stand in `kernels/cuda`.

use crate::weights::Dtype;

/// A file of CUDA C++.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Its name, as compilers' messages give it.
    pub file: &'static str,
    /// Its text.
    pub text: &'static str,
}

impl Source {
    /// Names of the kernels in it.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> {
        let after = self.text.split("KERNEL(").skip(1);
        after.filter_map(|rest| rest.split_once(") ")?.1.split('(').next())
    }
}

macro_rules! sources {
    ($($file:literal),* $(,)?) => {
        [$(Source { file: $file, text: include_str!(concat!("../../cuda/", $file)) }),*]
    };
}

/// What the sources include.
pub const HEADERS: [Source; 12] = sources![
    "attention.cuh",
    "chunks.cuh",
    "device.cuh",
    "element.cuh",
    "exponential.cuh",
    "paging.cuh",
    "philox.cuh",
    "product.cuh",
    "reduce.cuh",
    "tensor_core.cuh",
    "turn.cuh",
    "types.cuh",
];

/// Sources that work with elements of either type.
const EITHER: [Source; 8] = sources![
    "attention_merge.cu",
    "blocks.cu",
    "embedding.cu",
    "finite.cu",
    "norm.cu",
    "rotary.cu",
    "sampling.cu",
    "swiglu.cu",
];

/// Sources of products and attention in each type.
const F32: [Source; 2] = sources!["attention_f32.cu", "multiply_f32.cu"];
const BF16: [Source; 3] = sources!["attention_bf16.cu", "multiply_bf16.cu", "multiply_few.cu"];

/// The sources of an engine whose elements are of this type.
pub fn sources(element: Dtype) -> impl Iterator<Item = Source> {
    let own: &[Source] = match element {
        Dtype::F32 => &F32,
        Dtype::Bf16 => &BF16,
    };
    EITHER.into_iter().chain(own.iter().copied())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn kernels_are_found_in_their_sources() {
        let either = [
            "attend_decode",
            "attend_prefill",
            "copy_blocks",
            "draw_tokens",
            "embed",
            "find_strays",
            "merge_splits",
            "rms_norm",
            "survey_logits",
            "swiglu",
            "turn_heads",
            "weigh_logits",
        ];
        let tilings = ["few", "some", "more", "many"];
        let tiled =
            tilings.iter().flat_map(|tiling| [format!("multiply_{tiling}"), format!("gate_{tiling}")]);
        let tiled = tiled.chain(["multiply_whole".to_owned()]);
        for (element, own) in [(Dtype::F32, vec!["multiply".to_owned()]), (Dtype::Bf16, tiled.collect())] {
            let names: BTreeSet<String> =
                sources(element).flat_map(|s| s.kernels().map(str::to_owned).collect::<Vec<_>>()).collect();
            let wanted: BTreeSet<String> = either.map(str::to_owned).into_iter().chain(own).collect();
            assert_eq!(names, wanted);
        }
    }
}
