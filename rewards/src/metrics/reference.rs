//! Reading references: JSON values as the strings that an answer should hold.

use serde_json::Value;

/// A scalar as a person would write it; lists and maps joined by spaces.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        Value::Bool(b) => if *b { "yes" } else { "no" }.to_owned(),
        Value::Number(n) => n.to_string(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Object(map) => {
            map.iter().map(|(k, v)| format!("{k} {}", text(v))).collect::<Vec<_>>().join(" ")
        }
    }
}

/// The rows of a reference: a list's items, a map's `key value` pairs, or the one value.
pub fn rows(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().map(text).collect(),
        Value::Object(map) => map.iter().map(|(k, v)| format!("{k} {}", text(v))).collect(),
        other => vec![text(other)],
    }
}

/// Every string in a reference: list items, a map's keys and values, nested ones too.
pub fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(items) => items.iter().flat_map(strings).collect(),
        Value::Object(map) => {
            map.iter().flat_map(|(k, v)| std::iter::once(k.clone()).chain(strings(v))).collect()
        }
        other => vec![text(other)],
    }
}
