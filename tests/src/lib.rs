//! Helpers of the end-to-end tests: the real binary in a folder of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The project's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The binary: `PARL_TRAINER`, which scripts/test sets, or the one that lies beside the test's own folder.
pub fn trainer() -> PathBuf {
    if let Some(path) = std::env::var_os("PARL_TRAINER") {
        return path.into();
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("trainer")));
    beside.unwrap_or_else(|| root().join("target/release/trainer"))
}

/// What a call of the binary gave.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// An empty folder that is removed with its owner.
#[derive(Debug)]
pub struct Folder(PathBuf);

static FOLDERS: AtomicU32 = AtomicU32::new(0);

impl Folder {
    /// Makes one.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn new() -> std::io::Result<Self> {
        let n = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("parl-tests-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file in it and returns its path as text.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn file(&self, name: &str, text: &str) -> std::io::Result<String> {
        let path = self.join(name);
        std::fs::File::create(&path)?.write_all(text.as_bytes())?;
        Ok(path.display().to_string())
    }

    /// Calls the binary in it.
    ///
    /// # Errors
    /// When the binary cannot be started: scripts/test builds it.
    pub fn trainer(&self, arguments: &[&str]) -> std::io::Result<Outcome> {
        let output =
            Command::new(trainer()).args(arguments).current_dir(&self.0).stdin(Stdio::null()).output()?;
        Ok(Outcome {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the system's temporary folder does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
