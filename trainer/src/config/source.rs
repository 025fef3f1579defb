//! YAML with a memory: plain values, and for every key path where it came from.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_yaml::{Location, Spanned};

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A place in a file.
    File {
        /// As given on the command line.
        file: String,
        /// From 1.
        line: u64,
        /// From 1.
        column: u64,
    },
    /// The n-th override of the command line, from 1.
    Override(usize),
    /// Nobody wrote it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Override(n) => write!(f, "override #{n}"),
            Self::Default => write!(f, "default"),
        }
    }
}

/// Key path to origin; a list's items are `key[0]`, `key[1]`, …
pub type Origins = BTreeMap<String, Origin>;

/// The path of `key` under `parent`.
pub(super) fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

enum Node {
    Leaf(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Node, E> {
        Ok(Node::Leaf(v.into()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Node, E> {
        Ok(Node::Leaf(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Node, E> {
        Ok(Node::Leaf(v.into()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Node, E> {
        let number = Number::from_f64(v).ok_or_else(|| E::custom(format!("{v} is not a finite number")))?;
        Ok(Node::Leaf(Value::Number(number)))
    }

    fn visit_str<E>(self, v: &str) -> Result<Node, E> {
        Ok(Node::Leaf(v.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
        Node::deserialize(d)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key()? {
            entries.push((key, map.next_value()?));
        }
        Ok(Node::Map(entries))
    }
}

fn plain(node: Node, path: &str, origins: &mut Origins, at: &dyn Fn(Location) -> Origin) -> Value {
    match node {
        Node::Leaf(value) => value,
        Node::List(items) => {
            let mut list = Vec::new();
            for (i, item) in items.into_iter().enumerate() {
                let path = format!("{path}[{i}]");
                origins.insert(path.clone(), at(item.referenced));
                list.push(plain(item.value, &path, origins, at));
            }
            Value::Array(list)
        }
        Node::Map(entries) => {
            let mut map = Map::new();
            for (key, item) in entries {
                let path = join(path, &key.value);
                origins.insert(path.clone(), at(key.referenced));
                map.insert(key.value, plain(item.value, &path, origins, at));
            }
            Value::Object(map)
        }
    }
}

/// Reads a YAML file's text.
///
/// # Errors
/// One line naming file, line and column.
pub(super) fn parse_file(file: &str, text: &str) -> Result<(Value, Origins), String> {
    let mut origins = Origins::new();
    let root: Spanned<Node> = serde_yaml::from_str(text).map_err(|e| {
        let place = e.location().map_or_else(String::new, |l| format!(":{}:{}", l.line(), l.column()));
        format!("{file}{place}: {}", first_line(&e.to_string()))
    })?;
    let at = |l: Location| Origin::File { file: file.to_owned(), line: l.line(), column: l.column() };
    match plain(root.value, "", &mut origins, &at) {
        Value::Null => Ok((Value::Object(Map::new()), origins)),
        value @ Value::Object(_) => Ok((value, origins)),
        _ => Err(format!("{file}:1:1: a config is a map of sections, this is not one")),
    }
}

/// Reads one `key.path=value` of the command line; the value is YAML.
///
/// # Errors
/// One line naming the override.
pub(super) fn parse_override(n: usize, text: &str) -> Result<(Value, Origins), String> {
    let origin = Origin::Override(n);
    let (path, value) = text
        .trim_start_matches("--")
        .split_once('=')
        .ok_or_else(|| format!("{origin}: `{text}` is not of the form key.path=value"))?;
    if path.is_empty() || path.split('.').any(str::is_empty) {
        return Err(format!("{origin}: `{path}` is not a key path"));
    }
    let mut origins = Origins::new();
    let value = if value.is_empty() {
        Value::String(String::new())
    } else {
        let node: Spanned<Node> = serde_yaml::from_str(value)
            .map_err(|e| format!("{origin}: {path}: not a YAML value: {}", first_line(&e.to_string())))?;
        plain(node.value, path, &mut origins, &|_| origin.clone())
    };
    let mut whole = value;
    let mut prefix = path;
    loop {
        origins.insert(prefix.to_owned(), origin.clone());
        let (parent, key) = prefix.rsplit_once('.').unwrap_or(("", prefix));
        whole = Value::Object(Map::from_iter([(key.to_owned(), whole)]));
        if parent.is_empty() {
            return Ok((whole, origins));
        }
        prefix = parent;
    }
}

/// The parser's message without the picture of the source that it draws below.
fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or(message)
}
