//! What a transcript says about the parts of a task: which are known, which failed.

use std::collections::BTreeMap;

use crate::dialect::Role;
use crate::swarm::{ASSIGN, CREATE, Message};
use crate::tasks::{SubTask, Task, TaskKind};
use crate::tools::corpus;

/// Which step of a part comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Search,
    Open(String),
    Done,
}

/// What a script makes of the page that it opened for `part`. In the generated world it reads the fact that it was
/// asked for; a real page it hands on as it is, since reading it is not what a script can do.
pub(super) fn finding<'a>(task: &'a Task, part: &'a SubTask, page: &'a str) -> &'a str {
    if task.kind == TaskKind::Other { page } else { &part.answer }
}

/// The parts of a task as an orchestrator's transcript shows them.
#[derive(Debug)]
pub(super) struct Progress<'a> {
    /// What is known, by part: own findings, or a sub-agent's final message.
    pub known: BTreeMap<&'a str, String>,
    /// The step after the last one of the part that is worked on directly.
    pub next: Next,
    /// Whether the sub-agent configuration exists.
    pub created: bool,
}

impl<'a> Progress<'a> {
    /// Reads an orchestrator's transcript.
    pub fn read(task: &'a Task, messages: &[Message]) -> Self {
        let mut progress = Self { known: BTreeMap::new(), next: Next::Search, created: false };
        let mut results: BTreeMap<u32, &str> = BTreeMap::new();
        for message in messages {
            if let Some(call) = message.call_id {
                results.insert(call, &message.text);
            }
        }
        // Calls are numbered from 0 over the agent's turns, so the two orders are the same.
        let calls = messages.iter().filter(|m| m.role == Role::Assistant).flat_map(|m| &m.calls);
        let mut direct: Option<&SubTask> = None;
        for (number, call) in calls.enumerate() {
            let Some(result) = results.get(&(number as u32)).copied() else { continue };
            let failed = result.starts_with("error : ") || result.starts_with("failed ");
            let first = call.arguments.first().map_or("", String::as_str);
            match call.name.as_str() {
                CREATE => progress.created |= !failed,
                ASSIGN if !failed => {
                    let prompt = call.arguments.get(1).map_or("", String::as_str);
                    if let Some(part) = task.parts.iter().find(|p| p.question == prompt) {
                        progress.known.insert(&part.id, result.to_owned());
                    }
                }
                corpus::SEARCH if !failed => {
                    direct = task.parts.iter().find(|p| p.query == first);
                    progress.next = match corpus::first_hit(first, result) {
                        Some(id) => Next::Open(id.to_owned()),
                        None => Next::Done,
                    };
                    if progress.next == Next::Done {
                        progress.settle(direct, "none");
                    }
                }
                corpus::OPEN if !failed => {
                    let text = direct.map_or(result, |part| finding(task, part, result));
                    progress.settle(direct, text);
                }
                _ => {}
            }
        }
        progress
    }

    fn settle(&mut self, part: Option<&'a SubTask>, text: &str) {
        if let Some(part) = part {
            self.known.insert(&part.id, text.to_owned());
        }
        self.next = Next::Search;
    }

    /// Parts that are not known and whose dependencies are.
    pub fn open_parts(&self, task: &'a Task) -> Vec<&'a SubTask> {
        let known = |id: &str| self.known.contains_key(id);
        task.parts.iter().filter(|p| !known(&p.id) && p.depends_on.iter().all(|d| known(d))).collect()
    }

    /// The answer that what is known amounts to.
    pub fn answer(&self, task: &Task) -> String {
        let values: Vec<&str> =
            leaves(task).filter_map(|p| self.known.get(p.id.as_str()).map(String::as_str)).collect();
        if values.is_empty() { "none".to_owned() } else { values.join(" ; ") }
    }
}

/// Parts whose answers belong into the task's answer: a chain's last one, a set's members, everything that a
/// human decomposition lists.
fn leaves(task: &Task) -> impl Iterator<Item = &SubTask> {
    let all = task.kind == TaskKind::Other;
    task.parts.iter().filter(move |p| all || !task.parts.iter().any(|q| q.depends_on.contains(&p.id)))
}
