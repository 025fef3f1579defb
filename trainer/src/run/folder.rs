//! A run's folder: one writer at a time, known by its marker, never removed by mistake.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use parl_rollout::durable;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::TrainerError;

const MARKER: &str = "parl-run.json";
const LOCK: &str = "lock";

/// What the marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marker {
    /// Name of the run.
    pub run_id: String,
    /// Version of the program that made it.
    pub made_by: String,
    /// When, UTC.
    pub made_at: String,
    /// Overrides of the command line that made it.
    pub overrides: Vec<String>,
}

impl Marker {
    /// Whether the folder at `run` has one, so that it is a run of ours.
    pub fn is_in(run: &Path) -> bool {
        run.join(MARKER).is_file()
    }

    /// The marker of the run in a folder, for readers: no lock is taken and nothing is made.
    ///
    /// # Errors
    /// [`TrainerError::Folder`] where there is none, [`TrainerError::Rollout`] for one that is damaged.
    pub fn read(run: &Path) -> Result<Self, TrainerError> {
        if !Self::is_in(run) {
            let what = if run.is_dir() { "holds no run" } else { "is not a folder" };
            let message = format!("{}: {what}: there is no {MARKER} in it", run.display());
            return Err(TrainerError::Folder(message));
        }
        let path = run.join(MARKER);
        serde_json::from_value(read_json(&path)?).map_err(|e| {
            let message = format!("no marker of ours: {e}");
            parl_rollout::RolloutError::Corrupt { path, message }.into()
        })
    }
}

/// Whether a process writes to the run in the folder at `run`. To ask, the lock is taken for a moment, so that a run
/// that begins in that moment is refused.
///
/// # Errors
/// [`TrainerError::Rollout`] when the disk fails.
pub fn is_written_to(run: &Path) -> Result<bool, TrainerError> {
    let path = run.join(LOCK);
    let lock = match File::open(&path) {
        Ok(lock) => lock,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(io(&path, "cannot open")(e)),
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(e)) => Err(io(&path, "cannot lock")(e)),
    }
}

/// A run's folder, locked.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Number of this launch, from 0.
    pub attempt: u32,
    _lock: File,
}

/// What to do with a folder that has been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used {
    /// Say so and stop.
    Refuse,
    /// Go on with the run in it.
    Resume,
    /// Remove what is in it.
    Clean,
}

fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> TrainerError {
    let path = path.to_owned();
    move |source| TrainerError::Rollout(parl_rollout::RolloutError::Io { path, action, source })
}

impl RunFolder {
    /// Opens or makes the folder and takes its lock.
    ///
    /// # Errors
    /// [`TrainerError::Folder`] when it is used and may not be, belongs to something else, or another process
    /// writes there; [`TrainerError::Rollout`] when the disk fails.
    pub fn open(path: &Path, used: Used, marker: &Marker) -> Result<Self, TrainerError> {
        let refuse = |message: &str| Err(TrainerError::Folder(format!("{}: {message}", path.display())));
        let marker_path = path.join(MARKER);
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_symlink() => return refuse("is a link; name the folder itself"),
            Ok(meta) if !meta.is_dir() => return refuse("is not a folder"),
            Ok(_) => {
                // A run that could not even begin leaves its lock, and perhaps half a marker.
                let half = durable::temporary(&marker_path);
                let begun = |name: &String| name != LOCK && Some(name.as_ref()) != half.file_name();
                let empty = !durable::names(path)?.iter().any(begun);
                let ours = marker_path.is_file();
                if !empty && !ours {
                    return refuse("holds other files and no run of ours; nothing was changed");
                }
                if ours && used == Used::Refuse {
                    return refuse("holds a run already: go on with --resume, or start over with --clean");
                }
            }
            Err(_) if used == Used::Resume => return refuse("there is no run to resume"),
            Err(_) => durable::create_dir(path)?,
        }
        let lock = lock(path)?;
        // Asked again under the lock: another process may have come and gone since.
        if used == Used::Refuse && marker_path.is_file() {
            return refuse("holds a run already: go on with --resume, or start over with --clean");
        }
        if used == Used::Clean {
            remove_run(path)?;
        }
        if used == Used::Resume && !marker_path.is_file() {
            return refuse("there is no run to resume");
        }
        let mut attempt = 0;
        while path.join(format!("logs/attempt_{attempt}")).exists() {
            attempt += 1;
        }
        // The marker first: without it, what else is there would not be known as ours.
        if !marker_path.is_file() {
            write_json(&marker_path, marker)?;
        }
        durable::create_dir(&path.join(format!("logs/attempt_{attempt}")))?;
        Ok(Self { path: path.to_owned(), attempt, _lock: lock })
    }

    /// Takes the lock of a run that is there, to work on what it left; that is no launch of it.
    ///
    /// # Errors
    /// [`TrainerError::Folder`] when there is no run or another process writes there; [`TrainerError::Rollout`] when
    /// the disk fails.
    pub fn hold(path: &Path) -> Result<Self, TrainerError> {
        if !path.join(MARKER).is_file() {
            return Err(TrainerError::Folder(format!("{}: holds no run of ours", path.display())));
        }
        let lock = lock(path)?;
        let mut attempt = 0;
        while path.join(format!("logs/attempt_{}", attempt + 1)).exists() {
            attempt += 1;
        }
        Ok(Self { path: path.to_owned(), attempt, _lock: lock })
    }

    /// What the run's marker says.
    ///
    /// # Errors
    /// When the marker cannot be read.
    pub fn marker(&self) -> Result<Marker, TrainerError> {
        Marker::read(&self.path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where things that no longer belong to the run are set aside.
    pub fn quarantine(&self) -> PathBuf {
        self.path.join(format!("quarantine/attempt_{}", self.attempt))
    }
}

/// Takes the lock of a run's folder, for as long as the file lives.
fn lock(folder: &Path) -> Result<File, TrainerError> {
    let path = folder.join(LOCK);
    #[expect(clippy::disallowed_methods, reason = "the lock is empty, and nobody reads it")]
    let lock = File::create(&path).map_err(io(&path, "cannot create"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(TrainerError::Folder(format!("{}: another process writes to this run", folder.display())))
        }
        Err(TryLockError::Error(e)) => Err(io(&path, "cannot lock")(e)),
    }
}

/// Removes everything in a run's folder but its lock; the marker goes last, so that a removal that was cut short
/// can be done again.
#[expect(clippy::disallowed_methods, reason = "--clean: the folder has our marker, and we hold its lock")]
fn remove_run(path: &Path) -> Result<(), TrainerError> {
    let mut names = durable::names(path)?;
    names.retain(|name| name != LOCK && name != MARKER);
    names.push(MARKER.to_owned());
    for name in names {
        let inside = path.join(name);
        let Ok(meta) = fs::symlink_metadata(&inside) else { continue };
        let removed = if meta.is_dir() { fs::remove_dir_all(&inside) } else { fs::remove_file(&inside) };
        removed.map_err(io(&inside, "cannot remove"))?;
    }
    Ok(())
}

/// Writes a JSON file, readable and durable.
///
/// # Errors
/// [`TrainerError::Rollout`] when the disk fails.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainerError> {
    Ok(durable::write_atomic(path, json_text(value)?.as_bytes())?)
}

/// JSON for people, as all our files have it.
///
/// # Errors
/// [`TrainerError::Internal`] for what JSON cannot say.
pub fn json_text(value: &impl Serialize) -> Result<String, TrainerError> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| TrainerError::Internal(e.to_string()))?;
    text.push('\n');
    Ok(text)
}

/// Reads a JSON file of ours.
///
/// # Errors
/// [`TrainerError::Rollout`] naming the file when it cannot be read or is not JSON.
pub fn read_json(path: &Path) -> Result<Value, TrainerError> {
    let bytes = durable::read(path)?;
    serde_json::from_slice(&bytes).map_err(|e| {
        let message = format!("not JSON: {e}");
        parl_rollout::RolloutError::Corrupt { path: path.to_owned(), message }.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_writer_and_only_ours_is_cleaned() {
        let root = std::env::temp_dir().join(format!("parl-folder-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let path = root.join("run");
        let marker =
            Marker { run_id: "r".into(), made_by: "t".into(), made_at: "now".into(), overrides: Vec::new() };
        let open = |used| RunFolder::open(&path, used, &marker);
        let text = |used| open(used).unwrap_err().to_string();
        assert!(text(Used::Resume).contains("no run to resume"));
        assert!(Marker::read(&path).unwrap_err().to_string().contains("run: is not a folder"));
        let folder = open(Used::Refuse).unwrap();
        assert_eq!(folder.attempt, 0);
        assert_eq!(Marker::read(&path).unwrap(), marker);
        assert!(text(Used::Refuse).contains("holds a run already"));
        assert!(text(Used::Clean).contains("another process"));
        let held =
            |path: &Path| RunFolder::hold(path).map(|folder| folder.attempt).map_err(|e| e.to_string());
        assert!(held(&path).unwrap_err().contains("another process"));
        assert!(is_written_to(&path).unwrap() && !is_written_to(&root).unwrap());
        fs::write(path.join("metrics.jsonl"), "x").unwrap();
        drop(folder);
        assert!(!is_written_to(&path).unwrap());
        assert_eq!(held(&path), Ok(0));
        assert!(held(&root).unwrap_err().contains("no run of ours"));
        let folder = open(Used::Resume).unwrap();
        assert_eq!((folder.attempt, folder.marker().unwrap()), (1, marker.clone()));
        drop(folder);
        assert_eq!(held(&path), Ok(1));
        drop(open(Used::Clean).unwrap());
        assert!(!path.join("metrics.jsonl").exists() && path.join(MARKER).is_file());
        let foreign = root.join("foreign");
        fs::create_dir_all(&foreign).unwrap();
        fs::write(foreign.join("thesis.tex"), "years of work").unwrap();
        for used in [Used::Refuse, Used::Resume, Used::Clean] {
            assert!(
                RunFolder::open(&foreign, used, &marker).unwrap_err().to_string().contains("no run of ours")
            );
        }
        std::os::unix::fs::symlink(&path, root.join("link")).unwrap();
        assert!(
            RunFolder::open(&root.join("link"), Used::Clean, &marker)
                .unwrap_err()
                .to_string()
                .contains("link")
        );
        assert!(path.join(MARKER).is_file() && foreign.join("thesis.tex").is_file());
        fs::remove_dir_all(root).unwrap();
    }
}
