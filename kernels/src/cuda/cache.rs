//! Machine code that was compiled before, by everything that it depends on.

use std::collections::HashMap;

use super::compile::{Target, options};
use super::sources::{HEADERS, Source};

/// Where machine code is kept. This crate has no files; whoever has one keeps it in a file.
pub trait Cubins: Send {
    /// What was kept under `key`.
    fn get(&self, key: &str) -> Option<Vec<u8>>;

    /// Keeps `sealed` under `key`. What cannot be kept is compiled again the next time.
    fn keep(&mut self, key: &str, sealed: &[u8]);
}

/// Kept as long as the value lives.
#[derive(Debug, Default)]
pub struct InMemory(HashMap<String, Vec<u8>>);

impl Cubins for InMemory {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.get(key).cloned()
    }

    fn keep(&mut self, key: &str, sealed: &[u8]) {
        self.0.insert(key.to_owned(), sealed.to_vec());
    }
}

/// A name, fit for a file, of `source` compiled for `target` by this version of NVRTC.
pub fn key(source: &Source, target: &Target, nvrtc: (i32, i32)) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |part: &[u8]| {
        // With its length, so that no two lists of parts read the same.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    };
    for file in HEADERS.iter().chain([source]) {
        add(file.file.as_bytes());
        add(file.text.as_bytes());
    }
    for option in options(target) {
        add(option.as_bytes());
    }
    let name = source.file.trim_end_matches(".cu");
    let hash = hasher.finalize().to_hex();
    format!("{name}-{}-nvrtc{}.{}-{}", target.architecture, nvrtc.0, nvrtc.1, &hash[..32])
}

/// `cubin` with its hash before it.
pub(super) fn seal(cubin: &[u8]) -> Vec<u8> {
    [blake3::hash(cubin).as_bytes(), cubin].concat()
}

/// What was sealed, if it is whole.
pub(super) fn unseal(sealed: &[u8]) -> Option<&[u8]> {
    let (hash, cubin) = sealed.split_at_checked(blake3::OUT_LEN)?;
    (blake3::hash(cubin).as_bytes() == hash).then_some(cubin)
}

#[cfg(test)]
mod tests {
    use super::super::driver::Types;
    use super::*;
    use crate::weights::Dtype;

    #[test]
    fn a_key_tells_everything_apart_that_changes_the_code() {
        let source = Source { file: "a.cu", text: "x" };
        let types = Types::plain(Dtype::Bf16);
        let target = Target { architecture: "sm_80".to_owned(), types, head_dim: 64 };
        let keys = [
            key(&source, &target, (13, 0)),
            key(&source, &target, (13, 1)),
            key(&Source { text: "y", ..source }, &target, (13, 0)),
            key(&source, &Target { architecture: "sm_90a".to_owned(), ..target.clone() }, (13, 0)),
            key(&source, &Target { types: Types::plain(Dtype::F32), ..target.clone() }, (13, 0)),
            key(&source, &Target { types: Types { kv_fp8: true, ..types }, ..target.clone() }, (13, 0)),
            key(&source, &Target { head_dim: 128, ..target.clone() }, (13, 0)),
        ];
        for (i, one) in keys.iter().enumerate() {
            assert!(one.starts_with("a-sm_"), "{one}");
            assert!(keys[i + 1..].iter().all(|other| other != one), "{one}");
        }
        assert_eq!(keys[0], key(&source, &target, (13, 0)));
    }

    #[test]
    fn damage_is_seen() {
        let sealed = seal(b"code");
        assert_eq!(unseal(&sealed), Some(&b"code"[..]));
        for i in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[i] ^= 1;
            assert_eq!(unseal(&damaged), None);
            assert_eq!(unseal(&sealed[..i]), None);
        }
    }
}
