//! The reference of all keys, written out of the schema.

use std::fmt::Write;

use serde_json::Value;

/// Markdown: a table a section.
pub fn reference(schema: &Value, defaults: &Value) -> String {
    let mut out = String::from("# Configuration\n\nWritten by `trainer config reference`; do not edit.\n");
    let empty = serde_json::Map::new();
    let sections = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    for (name, section) in sections {
        let described = resolve(schema, section);
        let _ = write!(out, "\n## {name}\n\n{}\n", text(section).or(text(described)).unwrap_or_default());
        out.push_str("\n| key | type | default | what it is |\n|---|---|---|---|\n");
        rows(schema, described, name, defaults.get(name), &mut out);
    }
    out
}

fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let target = schema.get("$ref").and_then(Value::as_str);
    target.and_then(|t| root.pointer(t.trim_start_matches('#'))).unwrap_or(schema)
}

fn text(schema: &Value) -> Option<String> {
    schema
        .get("description")
        .and_then(Value::as_str)
        .map(|d| d.replace("\n\n", " ").replace('\n', " ").replace('|', "\\|"))
}

fn rows(root: &Value, schema: &Value, path: &str, default: Option<&Value>, out: &mut String) {
    if let Some(options) = schema.get("oneOf").and_then(Value::as_array) {
        for option in options {
            let target = resolve(root, option);
            let tag = [option, target].iter().find_map(|s| s.pointer("/properties/type/const")?.as_str());
            let Some(tag) = tag else { continue };
            let about = text(option).or(text(target)).unwrap_or_default();
            let _ = writeln!(out, "| `{path}.type: {tag}` | | | {about} |");
            let chosen = default.filter(|d| d.get("type").and_then(Value::as_str) == Some(tag));
            for source in if std::ptr::eq(option, target) { vec![option] } else { vec![option, target] } {
                properties(root, source, path, chosen, out);
            }
        }
        return;
    }
    properties(root, schema, path, default, out);
}

fn properties(root: &Value, schema: &Value, path: &str, default: Option<&Value>, out: &mut String) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    for (name, property) in properties {
        if name == "type" {
            continue;
        }
        let path = format!("{path}.{name}");
        let target = resolve(root, property);
        let default = default.and_then(|d| d.get(name));
        let options = target.get("anyOf").and_then(Value::as_array);
        let chosen = options.and_then(|o| o.iter().find(|o| o.get("$ref").is_some()));
        let inner = chosen.map_or(target, |o| resolve(root, o));
        let nested = inner.get("properties").is_some() || is_tagged(root, inner);
        let about = text(property).or(text(target)).unwrap_or_default();
        // A type that is not the default's has defaults of its own, if it has any.
        let shown = default.or(property.get("default")).filter(|d| !nested || d.is_null());
        let shown = shown.map_or_else(String::new, |d| format!("`{d}`"));
        let _ = writeln!(out, "| `{path}` | {} | {shown} | {about} |", kind(root, target));
        if nested {
            rows(root, inner, &path, default, out);
        }
    }
}

fn is_tagged(root: &Value, schema: &Value) -> bool {
    schema.get("oneOf").and_then(Value::as_array).is_some_and(|options| {
        options
            .iter()
            .any(|o| [o, resolve(root, o)].iter().any(|s| s.pointer("/properties/type/const").is_some()))
    })
}

fn kind(root: &Value, schema: &Value) -> String {
    // A choice that may be left open.
    if let Some(options) = schema.get("anyOf").and_then(Value::as_array) {
        return options.iter().map(|o| kind(root, resolve(root, o))).collect::<Vec<_>>().join(" or ");
    }
    let names = |options: &Vec<Value>| -> Vec<String> {
        options
            .iter()
            .flat_map(|o| {
                let several = o.get("enum").and_then(Value::as_array).cloned().unwrap_or_default();
                several.into_iter().chain(o.get("const").cloned())
            })
            .filter_map(|v| v.as_str().map(|s| format!("`{s}`")))
            .collect()
    };
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return values
            .iter()
            .filter_map(Value::as_str)
            .map(|s| format!("`{s}`"))
            .collect::<Vec<_>>()
            .join(", ");
    }
    if let Some(options) = schema.get("oneOf").and_then(Value::as_array) {
        let names = names(options);
        return if names.is_empty() { "by `type`".to_owned() } else { names.join(", ") };
    }
    let name = match schema.get("type") {
        Some(Value::String(t)) if t == "object" => "map".to_owned(),
        Some(Value::String(t)) => t.clone(),
        Some(Value::Array(types)) => types.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        _ => String::new(),
    };
    let bound = |key: &str| schema.get(key).map(ToString::to_string);
    match (bound("minimum"), bound("maximum")) {
        (Some(low), Some(high)) => format!("{name}, {low} to {high}"),
        (Some(low), None) => format!("{name}, from {low}"),
        _ => name,
    }
}
