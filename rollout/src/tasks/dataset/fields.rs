//! Typed access to the keys of a row, with faults that name key, value and bound.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::file::{Fault, kind_of};

/// An object of a row and the path to it.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    at: String,
}

impl<'a> Fields<'a> {
    /// The object at path `at` (empty for the row itself), which has no other keys than `known`.
    pub(super) fn new(map: &'a Map<String, Value>, at: &str, known: &[&str]) -> Result<Self, Fault> {
        let fields = Self { map, at: if at.is_empty() { String::new() } else { format!("{at}.") } };
        match map.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(format!("{}: unknown key, known are {}", fields.path(key), known.join(", "))),
            None => Ok(fields),
        }
    }

    /// The path to `key`, as faults name it.
    pub(super) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.at)
    }

    /// The value of `key`; `None` where it is absent or null.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Text with at least one visible character.
    pub(super) fn text(&self, key: &str) -> Result<&'a str, Fault> {
        self.optional_text(key)?.ok_or_else(|| format!("{}: missing, must be text", self.path(key)))
    }

    /// As [`Self::text`]; `None` where it is absent or null.
    pub(super) fn optional_text(&self, key: &str) -> Result<Option<&'a str>, Fault> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => {
                Err(format!("{}: empty, must hold at least one visible character", self.path(key)))
            }
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{}: {}, must be text", self.path(key), kind_of(other))),
        }
    }

    /// One of an enum's names; `None` where it is absent or null.
    pub(super) fn optional_name<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Fault> {
        let Some(name) = self.optional_text(key)? else { return Ok(None) };
        let value = T::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(name));
        value.map(Some).map_err(|error| format!("{}: {error}", self.path(key)))
    }

    /// A list; empty where it is absent or null.
    pub(super) fn list(&self, key: &str) -> Result<&'a [Value], Fault> {
        match self.value(key) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(format!("{}: {}, must be a list", self.path(key), kind_of(other))),
        }
    }

    /// A list of text; empty where it is absent or null.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>, Fault> {
        let text = |(position, item): (usize, &Value)| match item {
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("{}[{position}]: {}, must be text", self.path(key), kind_of(other))),
        };
        self.list(key)?.iter().enumerate().map(text).collect()
    }
}
