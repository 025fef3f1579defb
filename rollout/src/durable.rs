//! The one way in which files of a run are written: whole or not at all, and on the disk when we say so.
//!
//! A failed fsync is final: the kernel may have dropped the data, so nothing here tries it again.

#![expect(clippy::disallowed_methods, reason = "this is the one place that writes")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::RolloutError;

/// Ending of files that are not complete; what is left of them after a crash may be removed.
pub const TEMPORARY: &str = "tmp";

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> RolloutError {
    let path = path.to_owned();
    move |source| RolloutError::Io { path, action, source }
}

/// The name under which `path` is written until it is complete.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(TEMPORARY);
    path.with_file_name(name)
}

/// Makes a folder and those above it, and their names durable.
///
/// # Errors
/// [`RolloutError::Io`].
pub fn create_dir(path: &Path) -> Result<(), RolloutError> {
    if path.is_dir() || path.as_os_str().is_empty() {
        return Ok(());
    }
    let parent = folder_of(path);
    create_dir(parent)?;
    match fs::create_dir(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            return Err(failed(path, "cannot create the folder")(e));
        }
        _ => {}
    }
    sync_dir(parent)
}

/// The folder that a path's last name stands in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the names in a folder durable.
///
/// # Errors
/// [`RolloutError::Io`].
pub fn sync_dir(path: &Path) -> Result<(), RolloutError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed(path, "cannot sync the folder"))
}

/// Replaces or makes `path` with `bytes`: a reader sees the old file or the new one, also after a power loss.
///
/// # Errors
/// [`RolloutError::Io`]; the old file is untouched and nothing of the new one is left then.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), RolloutError> {
    let partial = temporary(path);
    let result = write_synced(&partial, bytes).and_then(|()| publish(&partial, path));
    if result.is_err() {
        // Best effort: the error that is reported is the first one.
        let _ = fs::remove_file(&partial);
    }
    result
}

/// Writes a file under its temporary name and syncs it; [`publish`] gives it its own.
///
/// # Errors
/// [`RolloutError::Io`].
fn write_synced(partial: &Path, bytes: &[u8]) -> Result<(), RolloutError> {
    let mut file = File::create(partial).map_err(failed(partial, "cannot create"))?;
    file.write_all(bytes).map_err(|e| failed(partial, "cannot write")(wanting(e, bytes.len())))?;
    file.sync_all().map_err(|e| failed(partial, "cannot sync")(wanting(e, bytes.len())))
}

/// The error with the room that was wanted, where room is what is missing.
fn wanting(error: io::Error, bytes: usize) -> io::Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            io::Error::new(error.kind(), format!("{error}; this file needs {bytes} bytes"))
        }
        _ => error,
    }
}

/// Renames a synced temporary file to its own name and syncs the folder.
///
/// # Errors
/// [`RolloutError::Io`].
pub fn publish(partial: &Path, path: &Path) -> Result<(), RolloutError> {
    fs::rename(partial, path).map_err(failed(path, "cannot rename into place"))?;
    sync_dir(folder_of(path))
}

/// Removes a file or folder of a run that nothing refers to any more; one that is not there is no fault.
///
/// # Errors
/// [`RolloutError::Io`].
pub fn remove(path: &Path) -> Result<(), RolloutError> {
    let removed = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    removed.map_err(failed(path, "cannot remove"))?;
    sync_dir(folder_of(path))
}

/// Lets the link at `path` point to `target`, a name in the same folder: a reader sees the old link or the new one.
///
/// # Errors
/// [`RolloutError::Io`].
pub fn point(path: &Path, target: &str) -> Result<(), RolloutError> {
    let partial = temporary(path);
    remove(&partial)?;
    std::os::unix::fs::symlink(target, &partial).map_err(failed(&partial, "cannot link"))?;
    publish(&partial, path)
}

/// Moves a file or folder of a run to another place on the same disk.
///
/// # Errors
/// [`RolloutError::Io`].
pub fn relocate(from: &Path, to: &Path) -> Result<(), RolloutError> {
    if let Some(parent) = to.parent() {
        create_dir(parent)?;
    }
    fs::rename(from, to).map_err(failed(from, "cannot move"))?;
    sync_dir(folder_of(from))?;
    sync_dir(folder_of(to))
}

/// Reads a whole file.
///
/// # Errors
/// [`RolloutError::Io`].
pub fn read(path: &Path) -> Result<Vec<u8>, RolloutError> {
    fs::read(path).map_err(failed(path, "cannot read"))
}

/// Names in a folder, sorted; none when there is no such folder.
///
/// # Errors
/// [`RolloutError::Io`].
pub fn names(path: &Path) -> Result<Vec<String>, RolloutError> {
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed(path, "cannot list"))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed(path, "cannot list"))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// BLAKE3 of a file, in hex, and its length in bytes.
///
/// # Errors
/// [`RolloutError::Io`].
pub fn hash_file(path: &Path) -> Result<(String, u64), RolloutError> {
    let mut file = File::open(path).map_err(failed(path, "cannot open"))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    let mut length = 0;
    loop {
        match file.read(&mut buffer).map_err(failed(path, "cannot read"))? {
            0 => return Ok((hasher.finalize().to_hex().to_string(), length)),
            n => {
                hasher.update(&buffer[..n]);
                length += n as u64;
            }
        }
    }
}

/// A file of lines that only grows. What a crash left of a last line is cut off when it is opened again.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    /// Opens or makes `path`; the second value is the number of bytes of a torn last line that were cut off.
    ///
    /// # Errors
    /// [`RolloutError::Io`].
    pub fn open(path: &Path) -> Result<(Self, u64), RolloutError> {
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(failed(path, "cannot open for appending"))?;
        sync_dir(folder_of(path))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed(path, "cannot read"))?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let torn = (bytes.len() - whole) as u64;
        if torn > 0 {
            file.set_len(whole as u64).map_err(failed(path, "cannot cut the torn last line off"))?;
            file.sync_all().map_err(failed(path, "cannot sync"))?;
        }
        Ok((Self { path: path.to_owned(), file }, torn))
    }

    /// Appends one line, which must hold no line break.
    ///
    /// # Errors
    /// [`RolloutError::Io`].
    pub fn append(&mut self, line: &str) -> Result<(), RolloutError> {
        let line = format!("{line}\n");
        let append = self.file.write_all(line.as_bytes());
        append.map_err(|e| failed(&self.path, "cannot append")(wanting(e, line.len())))
    }

    /// Makes what was appended durable.
    ///
    /// # Errors
    /// [`RolloutError::Io`].
    pub fn sync(&mut self) -> Result<(), RolloutError> {
        self.file.sync_data().map_err(failed(&self.path, "cannot sync"))
    }
}

/// A file of bytes that only grows, in a format that tells a torn end by itself.
#[derive(Debug)]
pub struct Growing {
    path: PathBuf,
    file: File,
}

impl Growing {
    /// Puts a file that begins with `head` in the place of what is at `path`; a reader sees the old file or the head.
    ///
    /// # Errors
    /// [`RolloutError::Io`]; the old file is untouched then.
    pub fn begin(path: &Path, head: &[u8]) -> Result<Self, RolloutError> {
        write_atomic(path, head)?;
        let file = OpenOptions::new().append(true).open(path);
        Ok(Self { path: path.to_owned(), file: file.map_err(failed(path, "cannot open for appending"))? })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`RolloutError::Io`].
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), RolloutError> {
        self.file.write_all(bytes).map_err(failed(&self.path, "cannot append"))
    }

    /// Makes what was appended durable.
    ///
    /// # Errors
    /// [`RolloutError::Io`].
    pub fn sync(&mut self) -> Result<(), RolloutError> {
        self.file.sync_data().map_err(failed(&self.path, "cannot sync"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("parl-durable-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = folder("atomic");
        let path = dir.join("state.json");
        write_atomic(&path, b"old").unwrap();
        // A folder in the way of the last step, the rename.
        fs::create_dir_all(dir.join("taken/by")).unwrap();
        assert!(write_atomic(&dir.join("taken"), b"new").is_err());
        assert_eq!(names(&dir).unwrap(), ["state.json", "taken"]);
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_full_disk_is_told_with_the_room_that_is_wanted() {
        // A device that is always full.
        let full = Path::new("/dev/full");
        let error = write_synced(full, &[7; 4321]).unwrap_err().to_string();
        assert!(error.starts_with("/dev/full: cannot write: No space left"), "{error}");
        assert!(error.ends_with("this file needs 4321 bytes"), "{error}");
    }

    #[test]
    fn a_torn_last_line_is_cut_off() {
        let dir = folder("lines");
        let path = dir.join("metrics.jsonl");
        let (mut lines, torn) = Lines::open(&path).unwrap();
        assert_eq!(torn, 0);
        lines.append("{\"step\":0}").unwrap();
        lines.append("{\"step\":1}").unwrap();
        lines.sync().unwrap();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], b"{\"st"].concat()).unwrap();
        let (mut lines, torn) = Lines::open(&path).unwrap();
        assert_eq!(torn, 4);
        lines.append("{\"step\":2}").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":0}\n{\"step\":1}\n{\"step\":2}\n");
        fs::remove_dir_all(dir).unwrap();
    }
}
