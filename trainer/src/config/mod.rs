//! The config: defaults, then files in order, then overrides; all that is wrong is said at once, each fault in one
//! line with its place.

mod check;
mod reference;
mod root;
mod source;

pub use check::Issue;
pub use reference::reference;
pub use root::{Config, Device, Dtype, RunConfig, TasksConfig};
pub use source::{Origin, Origins};

use std::fmt;
use std::path::Path;

use parl_rollout::config::PolicyConfig;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A config whose bounds go beyond single keys.
pub trait Validate {
    /// All that is out of bounds; keys are paths from the root.
    fn issues(&self) -> Vec<Issue>;

    /// Fills in what one key takes from another, once all is known to be within bounds.
    fn resolve(&mut self) {}
}

/// A config that may be used.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    /// The typed config.
    pub config: T,
    /// Where each key came from.
    pub origins: Origins,
    /// Name and text of each file, as given.
    pub files: Vec<(String, String)>,
    /// Overrides, as given.
    pub overrides: Vec<String>,
}

/// Why a config may not be used: one line a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// The JSON schema of a config.
pub fn schema<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// Reads a config file.
///
/// # Errors
/// One line naming the file.
pub fn read_file(path: &Path) -> Result<(String, String), ConfigErrors> {
    let name = path.display().to_string();
    let fault = |message: String| ConfigErrors(vec![format!("{name}: {message}")]);
    let bytes = std::fs::read(path).map_err(|e| fault(format!("cannot read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|e| fault(format!("not UTF-8: {e}")))?;
    Ok((name, text))
}

/// Puts the layers together and checks the whole. `env` looks environment variables up.
///
/// # Errors
/// Every fault that was found; a file that is not YAML ends the search.
pub fn load<T>(
    files: Vec<(String, String)>,
    overrides: &[String],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded<T>, ConfigErrors>
where
    T: DeserializeOwned + Serialize + Default + JsonSchema + Validate,
{
    let internal = |e: serde_json::Error| ConfigErrors(vec![format!("internal: defaults: {e}")]);
    let defaults = serde_json::to_value(T::default()).map_err(internal)?;
    let mut merged = defaults.clone();
    let mut origins = Origins::new();
    let mut faults = Vec::new();
    let from_files = files.iter().map(|(name, text)| source::parse_file(name, text));
    let from_overrides = overrides.iter().enumerate().map(|(i, text)| source::parse_override(i + 1, text));
    for layer in from_files.chain(from_overrides) {
        match layer {
            Ok((mut value, places)) => {
                interpolate(&mut value, "", env, &places, &mut faults);
                merge(&mut merged, value, Some(&defaults));
                origins.extend(places);
            }
            Err(fault) => faults.push(fault),
        }
    }
    if !faults.is_empty() {
        return Err(ConfigErrors(faults));
    }
    let schema = schema::<T>();
    let mut issues = check::check(&schema, &merged);
    if issues.is_empty() {
        match serde_json::from_value::<T>(merged) {
            Ok(mut config) => {
                issues = config.issues();
                if issues.is_empty() {
                    config.resolve();
                    return Ok(Loaded { config, origins, files, overrides: overrides.to_vec() });
                }
            }
            Err(e) => issues.push(Issue { key: String::new(), message: e.to_string() }),
        }
    }
    let mut lines: Vec<(Origin, String)> = issues
        .into_iter()
        .map(|issue| {
            let origin = origin_of(&origins, &issue.key);
            let place = if issue.key.is_empty() { String::new() } else { format!(" {}:", issue.key) };
            (origin.clone(), format!("{origin}:{place} {}", issue.message))
        })
        .collect();
    lines.sort();
    Err(ConfigErrors(lines.into_iter().map(|l| l.1).collect()))
}

/// A model that a config file names by a relative path lies beside that file; one that the command line names, in the
/// working folder.
pub fn anchor_models(loaded: &mut Loaded<Config>) {
    let rollout = &mut loaded.config.rollout;
    let mut seats = vec![
        ("rollout.orchestrator.policy.model".to_owned(), &mut rollout.orchestrator.policy),
        ("rollout.subagent.policy.model".to_owned(), &mut rollout.subagent.policy),
    ];
    for (i, later) in rollout.subagent.later.iter_mut().enumerate() {
        seats.push((format!("rollout.subagent.later[{i}].policy.model"), &mut later.policy));
    }
    for (key, policy) in seats {
        if let PolicyConfig::Local { model, .. } = policy
            && let Origin::File { file, .. } = origin_of(&loaded.origins, &key)
            && let Some(folder) = Path::new(&file).parent()
        {
            *model = folder.join(&*model).display().to_string();
        }
    }
    if let Some(model) = &mut loaded.config.sft.init
        && let Origin::File { file, .. } = origin_of(&loaded.origins, "sft.init")
        && let Some(folder) = Path::new(&file).parent()
    {
        *model = folder.join(&*model).display().to_string();
    }
}

/// The place of a key, or of the nearest key above it that somebody wrote.
fn origin_of(origins: &Origins, key: &str) -> Origin {
    let mut path = key;
    loop {
        if let Some(origin) = origins.get(path) {
            return origin.clone();
        }
        match path.rfind(['.', '[']) {
            Some(at) => path = &path[..at],
            None => return Origin::Default,
        }
    }
}

/// Lays `over` on `base`: maps are merged, everything else is replaced, a map of another `type` as a whole; `null`
/// goes back to the default.
fn merge(base: &mut Value, over: Value, default: Option<&Value>) {
    match (base, over) {
        (base, Value::Null) => *base = default.cloned().unwrap_or(Value::Null),
        (Value::Object(base), Value::Object(over)) => {
            if over.get("type").is_some_and(|t| base.get("type").is_some_and(|b| b != t)) {
                // The other type has defaults of its own: a null goes back to those.
                *base = over.into_iter().filter(|(_, value)| !value.is_null()).collect();
                return;
            }
            for (key, value) in over {
                let slot = base.entry(key.clone()).or_insert(Value::Null);
                merge(slot, value, default.and_then(|d| d.get(&key)));
            }
        }
        (base, over) => *base = over,
    }
}

/// Replaces `${oc.env:NAME}` and `${oc.env:NAME,DEFAULT}` in strings.
fn interpolate(
    value: &mut Value,
    path: &str,
    env: &dyn Fn(&str) -> Option<String>,
    origins: &Origins,
    faults: &mut Vec<String>,
) {
    match value {
        Value::String(text) => match expand(text, env) {
            Ok(expanded) => *text = expanded,
            Err(message) => faults.push(format!("{}: {path}: {message}", origin_of(origins, path))),
        },
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                interpolate(item, &format!("{path}[{i}]"), env, origins, faults);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                interpolate(item, &source::join(path, key), env, origins, faults);
            }
        }
        _ => {}
    }
}

fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, tail)) = rest.split_once("${") {
        out.push_str(before);
        let (inside, after) =
            tail.split_once('}').ok_or_else(|| format!("`${{` is not closed in `{text}`"))?;
        let name = inside
            .strip_prefix("oc.env:")
            .ok_or_else(|| format!("`${{{inside}}}` is not known; only ${{oc.env:NAME,DEFAULT}} is"))?;
        let (name, default) = name.split_once(',').map_or((name, None), |(n, d)| (n, Some(d)));
        match env(name.trim()).or_else(|| default.map(str::to_owned)) {
            Some(value) => out.push_str(&value),
            None => {
                return Err(format!("the environment variable {name} is not set and has no default here"));
            }
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// A key whose value differs between two resolved configs.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The key path.
    pub key: String,
    /// In the first.
    pub old: Value,
    /// In the second.
    pub new: Value,
}

/// Keys of `old` and `new` that differ and may not change within a run; `free` lists key paths (with all below
/// them) that may.
pub fn differences(old: &Value, new: &Value, free: &[&str]) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(old, new, "", free, &mut found);
    found
}

fn compare(old: &Value, new: &Value, path: &str, free: &[&str], found: &mut Vec<Difference>) {
    if old == new || free.contains(&path) {
        return;
    }
    if let (Value::Object(a), Value::Object(b)) = (old, new) {
        let missing = Value::Null;
        let both: Map<String, Value> = a.clone().into_iter().chain(b.clone()).collect();
        for key in both.keys() {
            let side = |m: &Map<String, Value>| m.get(key).cloned().unwrap_or(missing.clone());
            compare(&side(a), &side(b), &source::join(path, key), free, found);
        }
        return;
    }
    found.push(Difference { key: path.to_owned(), old: old.clone(), new: new.clone() });
}

#[cfg(test)]
mod tests;
