//! Helpers of the end-to-end tests: the real binary in a folder of its own.

#![expect(clippy::disallowed_methods, reason = "clippy.toml: tests write files as they like")]

pub mod synthetic;
pub mod tiny;

use std::fs::{self, File};
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Calls that take longer have hung: the longest takes seconds, on a machine with other work a minute.
const PATIENCE: Duration = Duration::from_mins(10);

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

fn unique() -> u32 {
    FOLDERS.fetch_add(1, Ordering::Relaxed)
}

impl Folder {
    /// Makes one.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("parl-tests-{}-{}", std::process::id(), unique()));
        fs::create_dir_all(&path)?;
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
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// Calls the binary in it.
    ///
    /// # Errors
    /// When the binary is not built or cannot be started, and when it hangs.
    pub fn trainer(&self, arguments: &[&str]) -> std::io::Result<Outcome> {
        self.trainer_under(&[], arguments)
    }

    /// Calls the binary in it under more environment variables.
    ///
    /// # Errors
    /// As [`Self::trainer`].
    pub fn trainer_under(&self, variables: &[(&str, &str)], arguments: &[&str]) -> std::io::Result<Outcome> {
        self.call_under(variables, &trainer(), arguments, PATIENCE)
    }

    /// Calls any program in it; one that runs for longer than `patience` is killed.
    ///
    /// # Errors
    /// When the program is not there or cannot be started, and [`ErrorKind::TimedOut`] with what it had said.
    pub fn call(&self, program: &Path, arguments: &[&str], patience: Duration) -> std::io::Result<Outcome> {
        self.call_under(&[], program, arguments, patience)
    }

    fn call_under(
        &self,
        variables: &[(&str, &str)],
        program: &Path,
        arguments: &[&str],
        patience: Duration,
    ) -> std::io::Result<Outcome> {
        if !program.is_file() {
            let message = format!(
                "{} is not there: build it with scripts/test, or with cargo build --release --workspace",
                program.display()
            );
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        // Files, not pipes: a full pipe would stop the program while it is waited for.
        let [out, err] = ["out", "err"].map(|name| self.0.with_extension(format!("{}.{name}", unique())));
        let mut child = Command::new(program)
            .args(arguments)
            .envs(variables.iter().copied())
            .current_dir(&self.0)
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?)
            .spawn()?;
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if begin.elapsed() > patience {
                child.kill()?;
                child.wait()?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let said = |path: &Path| fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned());
        let (text, errors) = (said(&out)?, said(&err)?);
        fs::remove_file(&out)?;
        fs::remove_file(&err)?;
        match status {
            Some(status) => Ok(Outcome { code: status.code().unwrap_or(-1), out: text, err: errors }),
            None => Err(Error::new(
                ErrorKind::TimedOut,
                format!("{arguments:?} ran for {patience:?} and was killed; it said:\n{text}\n{errors}"),
            )),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the system's temporary folder does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_hangs_is_killed_and_one_that_ends_is_read_whole() {
        let folder = Folder::new().unwrap();
        let shell = |script: &str, patience| {
            folder.call(Path::new("/bin/sh"), &["-c", script], Duration::from_millis(patience))
        };
        let error = shell("echo before; exec sleep 600", 300).unwrap_err();
        assert!(error.kind() == ErrorKind::TimedOut && error.to_string().contains("before"), "{error}");
        // More than a pipe holds.
        let whole = shell("head -c 300000 /dev/zero | tr '\\0' x; echo no >&2; exit 7", 60_000).unwrap();
        assert_eq!((whole.code, whole.out.len(), whole.err.as_str()), (7, 300_000, "no\n"));
        let gone = folder.call(&folder.join("none"), &[], Duration::ZERO).unwrap_err();
        assert!(gone.to_string().contains("is not there: build it"), "{gone}");
    }
}
