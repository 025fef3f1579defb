//! Machine code of the CUDA kernels, kept in files from one run to the next.

use std::path::{Path, PathBuf};

use parl_kernels::cuda::cache::Cubins;
use parl_rollout::durable;

/// A file a source, by the key that tells apart whatever changes the code. What is damaged is compiled again: the
/// kernels verify the bytes.
pub struct InFolder(PathBuf);

impl InFolder {
    /// In `folder`, which is made when there is something to keep.
    pub fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }
}

impl Cubins for InFolder {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        durable::read(&self.0.join(key)).ok()
    }

    fn keep(&mut self, key: &str, sealed: &[u8]) {
        // Without a file the next run compiles for a second longer; that is no reason to end this one.
        let _ = durable::create_dir(&self.0).and_then(|()| durable::write_atomic(&self.0.join(key), sealed));
    }
}

/// The folder, by the variables that scripts/setup goes by as well; `None` where none of them is set.
pub fn folder(variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let ours = set("PARL_CACHE").or_else(|| Some(caches()?.join("parl")))?;
    Some(ours.join("cubins"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_outlives_the_value_that_kept_it() {
        let root = std::env::temp_dir().join(format!("parl-cubins-{}", std::process::id()));
        let folder = root.join("deeper/cubins");
        InFolder::new(&folder).keep("norm-sm_90a-1", b"sealed");
        InFolder::new(&folder).keep("norm-sm_90a-1", b"sealed anew");
        let kept = InFolder::new(&folder);
        assert_eq!(kept.get("norm-sm_90a-1").as_deref(), Some(&b"sealed anew"[..]));
        assert_eq!(kept.get("norm-sm_80-1"), None);
        assert_eq!(durable::names(&folder).unwrap(), ["norm-sm_90a-1"]);
        // A file in the folder's place: nothing is kept, and nothing fails.
        let mut nowhere = InFolder::new(&folder.join("norm-sm_90a-1"));
        nowhere.keep("a", b"b");
        assert_eq!(nowhere.get("a"), None);
        durable::remove(&root).unwrap();
    }

    #[test]
    fn the_folder_is_that_of_the_cache() {
        let among = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> =
                set.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            folder(move |name| set.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()))
                .map(|path| path.display().to_string())
        };
        assert_eq!(among(&[("PARL_CACHE", "p"), ("HOME", "h")]).as_deref(), Some("p/cubins"));
        assert_eq!(among(&[("XDG_CACHE_HOME", "x"), ("HOME", "h")]).as_deref(), Some("x/parl/cubins"));
        assert_eq!(among(&[("XDG_CACHE_HOME", ""), ("HOME", "h")]).as_deref(), Some("h/.cache/parl/cubins"));
        assert_eq!(among(&[]), None);
    }
}
