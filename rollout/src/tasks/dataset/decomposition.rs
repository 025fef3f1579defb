//! A human decomposition as parts in an order in which they can be done.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::fields::Fields;
use super::file::{Fault, kind_of};
use crate::tasks::SubTask;

/// Most parts of a task, nested ones counted.
const MAX_PARTS: usize = 1000;

const KEYS: [&str; 6] = ["id", "question", "answer", "depends_on", "title", "decomposition"];

/// The parts of `nodes`. One that is divided further and has no page of its own dissolves into what it is divided
/// into: its parts wait for what it waited for, and who waited for it waits for them.
pub(super) fn flatten(nodes: &[Value]) -> Result<Vec<SubTask>, Fault> {
    let mut flat = Flat::default();
    flat.add(nodes, "decomposition", &[])?;
    let parts = flat.resolve()?;
    in_order(parts)
}

#[derive(Default)]
struct Flat {
    /// Parts with unresolved dependencies, and the path to each.
    parts: Vec<(SubTask, String)>,
    /// For every id, the ids of the parts that stand for it.
    stands_for: HashMap<String, Vec<String>>,
}

impl Flat {
    /// Adds `nodes`, which all wait for `inherited`; gives the ids of their parts.
    fn add(&mut self, nodes: &[Value], at: &str, inherited: &[String]) -> Result<Vec<String>, Fault> {
        let mut added = Vec::new();
        for (position, node) in nodes.iter().enumerate() {
            added.extend(self.add_node(node, &format!("{at}[{position}]"), inherited)?);
        }
        Ok(added)
    }

    fn add_node(&mut self, node: &Value, at: &str, inherited: &[String]) -> Result<Vec<String>, Fault> {
        let Value::Object(map) = node else {
            return Err(format!("{at}: {}, must be an object", kind_of(node)));
        };
        let fields = Fields::new(map, at, &KEYS)?;
        let id = fields.text("id")?;
        let question = fields.text("question")?;
        let title = fields.optional_text("title")?;
        // Claimed before the children are read, so that a child of the same id is found out.
        if self.stands_for.insert(id.to_string(), Vec::new()).is_some() {
            return Err(format!("{at}.id: {id:?} is used twice in this task"));
        }
        if self.stands_for.len() > MAX_PARTS {
            return Err(format!("{at}: more than {MAX_PARTS} parts"));
        }
        let mut depends_on = inherited.to_vec();
        depends_on.extend(fields.texts("depends_on")?);
        let children = self.add(fields.list("decomposition")?, &fields.path("decomposition"), &depends_on)?;
        let stands_for = if title.is_none() && !children.is_empty() {
            children
        } else {
            depends_on.extend(children);
            let part = SubTask {
                id: id.to_string(),
                question: question.to_string(),
                query: title.unwrap_or(question).to_string(),
                answer: fields.value("answer").map(in_words).unwrap_or_default(),
                depends_on,
            };
            self.parts.push((part, at.to_string()));
            vec![id.to_string()]
        };
        self.stands_for.insert(id.to_string(), stands_for.clone());
        Ok(stands_for)
    }

    /// Replaces dependencies by the parts that stand for them.
    fn resolve(self) -> Result<Vec<SubTask>, Fault> {
        let mut resolved = Vec::new();
        for (mut part, at) in self.parts {
            let mut ids: Vec<String> = Vec::new();
            for id in &part.depends_on {
                let stand_for = self.stands_for.get(id);
                let stand_for =
                    stand_for.ok_or_else(|| format!("{at}.depends_on: {id:?} is no part of this task"))?;
                ids.extend(stand_for.iter().cloned());
            }
            let mut seen = HashSet::new();
            ids.retain(|id| seen.insert(id.clone()));
            part.depends_on = ids;
            resolved.push(part);
        }
        Ok(resolved)
    }
}

/// `parts` with each after those that it depends on, else in their order.
fn in_order(mut parts: Vec<SubTask>) -> Result<Vec<SubTask>, Fault> {
    let mut done: HashSet<String> = HashSet::new();
    let mut ordered = Vec::with_capacity(parts.len());
    while !parts.is_empty() {
        let before = parts.len();
        let mut waiting = Vec::new();
        for part in parts {
            if part.depends_on.iter().all(|id| done.contains(id)) {
                done.insert(part.id.clone());
                ordered.push(part);
            } else {
                waiting.push(part);
            }
        }
        if waiting.len() == before {
            let ids: Vec<&str> = waiting.iter().map(|part| part.id.as_str()).collect();
            return Err(format!(
                "decomposition: {} can never be asked, each waits for another",
                ids.join(", ")
            ));
        }
        parts = waiting;
    }
    Ok(ordered)
}

/// An answer in the words of a final message.
fn in_words(answer: &Value) -> String {
    match answer {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => answer.to_string(),
        Value::Array(items) => items.iter().map(in_words).collect::<Vec<_>>().join(", "),
        Value::Object(rows) => {
            let rows = rows.iter().map(|(key, value)| format!("{key}: {}", in_words(value)));
            rows.collect::<Vec<_>>().join("; ")
        }
    }
}
