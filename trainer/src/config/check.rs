//! A value against the schema of the config: every unknown key, wrong type and broken bound, with its path.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::source::join;

/// Something wrong at a key path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// The key path.
    pub key: String,
    /// What is wrong: the value, the bound, the nearest right name.
    pub message: String,
}

/// Checks `value` against `schema` (as schemars writes it) and returns all that is wrong.
pub(super) fn check(schema: &Value, value: &Value) -> Vec<Issue> {
    let mut checker = Checker { root: schema, issues: Vec::new() };
    checker.visit(schema, value, "");
    checker.issues
}

struct Checker<'a> {
    root: &'a Value,
    issues: Vec<Issue>,
}

/// How a value is called in messages.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "a map".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Null => "null".to_owned(),
        Value::String(s) => format!("`{s}`"),
        other => other.to_string(),
    }
}

impl<'a> Checker<'a> {
    fn issue(&mut self, key: &str, message: String) {
        self.issues.push(Issue { key: key.to_owned(), message });
    }

    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        // A reference to a reference does not occur more than once or twice; the bound is against loops.
        for _ in 0..8 {
            let Some(target) = schema.get("$ref").and_then(Value::as_str) else { break };
            if schema.get("properties").is_some() {
                break;
            }
            let pointer = target.trim_start_matches('#');
            match self.root.pointer(pointer) {
                Some(found) => schema = found,
                None => break,
            }
        }
        schema
    }

    /// Properties of an object schema, those of the schemas that it refers to included.
    fn properties(&self, schema: &'a Value) -> (BTreeMap<&'a str, &'a Value>, Vec<&'a str>) {
        let mut properties = BTreeMap::new();
        let mut required: Vec<&str> = Vec::new();
        let mut todo = vec![schema];
        while let Some(schema) = todo.pop() {
            if let Some(own) = schema.get("properties").and_then(Value::as_object) {
                properties.extend(own.iter().map(|(k, v)| (k.as_str(), v)));
            }
            if let Some(own) = schema.get("required").and_then(Value::as_array) {
                required.extend(own.iter().filter_map(Value::as_str));
            }
            if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
                todo.extend(self.root.pointer(target.trim_start_matches('#')));
            }
            if let Some(all) = schema.get("allOf").and_then(Value::as_array) {
                todo.extend(all);
            }
        }
        (properties, required)
    }

    fn visit(&mut self, schema: &'a Value, value: &Value, key: &str) {
        let schema = self.resolve(schema);
        if let Some(options) = schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array) {
            self.alternatives(options, value, key);
            return;
        }
        if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
            self.one_of(allowed, value, key);
            return;
        }
        if let Some(constant) = schema.get("const") {
            self.one_of(std::slice::from_ref(constant), value, key);
            return;
        }
        let types: Vec<&str> = match schema.get("type") {
            Some(Value::String(t)) => vec![t],
            Some(Value::Array(types)) => types.iter().filter_map(Value::as_str).collect(),
            _ if schema.get("properties").is_some() => vec!["object"],
            _ => return,
        };
        let fits = types.iter().any(|t| match *t {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            _ => false,
        });
        if !fits {
            let wanted: Vec<&str> = types.iter().map(|t| if *t == "object" { "map" } else { *t }).collect();
            self.issue(key, format!("{} is not of type {}", shown(value), wanted.join(" or ")));
            return;
        }
        match value {
            Value::Object(map) => self.object(schema, map, key),
            Value::Array(items) => {
                if let Some(item) = schema.get("items") {
                    for (i, value) in items.iter().enumerate() {
                        self.visit(item, value, &format!("{key}[{i}]"));
                    }
                }
            }
            Value::Number(number) => self.number(schema, number, key),
            _ => {}
        }
    }

    fn number(&mut self, schema: &Value, number: &serde_json::Number, key: &str) {
        let value = number.as_f64().unwrap_or(f64::NAN);
        let format = schema.get("format").and_then(Value::as_str).unwrap_or("");
        let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
        let low = bound("minimum").or_else(|| format.starts_with("uint").then_some(0.0));
        let high = bound("maximum").or(match format {
            "uint8" => Some(f64::from(u8::MAX)),
            "uint32" => Some(f64::from(u32::MAX)),
            _ => None,
        });
        if let Some(low) = low.filter(|low| value < *low) {
            self.issue(key, format!("{number} is below {low}"));
        }
        if let Some(high) = high.filter(|high| value > *high) {
            self.issue(key, format!("{number} is above {high}"));
        }
    }

    fn object(&mut self, schema: &'a Value, map: &Map<String, Value>, key: &str) {
        let (properties, required) = self.properties(schema);
        for (name, value) in map {
            let path = join(key, name);
            if let Some(schema) = properties.get(name.as_str()) {
                self.visit(schema, value, &path);
            } else {
                let hint = nearest(name, properties.keys().copied());
                self.issue(&path, format!("unknown key{hint}"));
            }
        }
        for name in required {
            if !map.contains_key(name) {
                self.issue(key, format!("the key `{name}` is missing"));
            }
        }
    }

    fn one_of(&mut self, allowed: &[Value], value: &Value, key: &str) {
        if allowed.contains(value) {
            return;
        }
        let names: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        let hint = value.as_str().map_or_else(String::new, |v| nearest(v, names.iter().copied()));
        self.issue(key, format!("{} is not one of {}{hint}", shown(value), names.join(", ")));
    }

    /// Tagged enums, enums of documented names, and optional values.
    fn alternatives(&mut self, options: &'a [Value], value: &Value, key: &str) {
        let options: Vec<&Value> = options.iter().map(|o| self.resolve(o)).collect();
        let is_null = |o: &Value| o.get("type").and_then(Value::as_str) == Some("null");
        if options.iter().any(|o| is_null(o)) {
            if value.is_null() {
                return;
            }
            if let Some(option) = options.iter().find(|o| !is_null(o)) {
                self.visit(option, value, key);
            }
            return;
        }
        let tag =
            |option: &'a Value| self.properties(option).0.get("type").and_then(|t| t.get("const")).cloned();
        let tags: Vec<Option<Value>> = options.iter().map(|o| tag(o)).collect();
        if tags.iter().all(Option::is_some) {
            let Some(map) = value.as_object() else {
                self.issue(key, format!("{} is not of type map", shown(value)));
                return;
            };
            let Some(chosen) = map.get("type") else {
                self.issue(key, "the key `type` is missing".to_owned());
                return;
            };
            if let Some(i) = tags.iter().position(|t| t.as_ref() == Some(chosen)) {
                self.object(options[i], map, key);
            } else {
                let allowed: Vec<Value> = tags.into_iter().flatten().collect();
                self.one_of(&allowed, chosen, &join(key, "type"));
            }
            return;
        }
        let names: Vec<Value> = options
            .iter()
            .flat_map(|o| {
                let several = o.get("enum").and_then(Value::as_array).cloned().unwrap_or_default();
                several.into_iter().chain(o.get("const").cloned())
            })
            .collect();
        self.one_of(&names, value, key);
    }
}

/// `; did you mean …` where a name is near.
pub(super) fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> String {
    names
        .map(|n| (strsim::normalized_damerau_levenshtein(name, n), n))
        .filter(|(score, _)| *score >= 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, n)| format!("; did you mean `{n}`?"))
}
