//! Scripts for the orchestrator's seat.

use super::progress::{Next, Progress};
use super::{AGENT_NAME, AGENT_PROMPT, Say, View};
use crate::dialect::{Call, Role};
use crate::swarm::{ASSIGN, CREATE, Seat};
use crate::tasks::{SubTask, TaskKind};
use crate::tools::corpus;

/// Works alone. After a document is read, what was found is noted in the turn that goes on.
pub(super) fn serial(view: View<'_>) -> Say {
    let progress = Progress::read(view.task, view.messages);
    if view.forced_answer {
        return Say::text(progress.answer(view.task));
    }
    direct(view, &progress)
}

fn direct(view: View<'_>, progress: &Progress<'_>) -> Say {
    if let Next::Open(id) = &progress.next {
        return Say::call(Call::new(corpus::OPEN, &[id]));
    }
    let Some(part) = progress.open_parts(view.task).first().copied() else {
        return Say::text(progress.answer(view.task));
    };
    Say { text: note(view, progress), calls: vec![Call::new(corpus::SEARCH, &[&part.query])] }
}

/// What the document that was just opened said, where the part's answer is a fact and not a page.
fn note(view: View<'_>, progress: &Progress<'_>) -> String {
    let opened = view.messages.iter().rev().find(|m| m.role == Role::Assistant).is_some_and(|m| {
        m.calls.first().is_some_and(|c| c.name == corpus::OPEN)
            && view.messages.last().is_some_and(|last| !last.text.starts_with("error : "))
    });
    let last = view.task.parts.iter().rfind(|p| progress.known.contains_key(p.id.as_str()));
    match last {
        Some(part) if opened && view.task.kind != TaskKind::Other => part.answer.clone(),
        _ => String::new(),
    }
}

/// Which parts are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delegate {
    /// Those that can be done at the same time; single steps are done directly.
    Independent,
    /// All of them.
    Everything,
}

/// Hands out every part that can be asked now; those that failed are among them again.
pub(super) fn delegate(view: View<'_>, which: Delegate) -> Say {
    let progress = Progress::read(view.task, view.messages);
    if view.forced_answer {
        return Say::text(progress.answer(view.task));
    }
    if progress.next != Next::Search {
        return direct(view, &progress);
    }
    let open = progress.open_parts(view.task);
    if open.is_empty() {
        return Say::text(progress.answer(view.task));
    }
    // A lone part that was handed out before and failed is handed out again.
    let again = open.len() == 1 && was_assigned(view, open[0]);
    if which == Delegate::Independent && open.len() == 1 && !again {
        return direct(view, &progress);
    }
    let mut calls = Vec::new();
    if !progress.created {
        calls.push(Call::new(CREATE, &[AGENT_NAME, AGENT_PROMPT]));
    }
    calls.extend(open.iter().map(|part| Call::new(ASSIGN, &[AGENT_NAME, &part.question])));
    Say { text: note(view, &progress), calls }
}

fn was_assigned(view: View<'_>, part: &SubTask) -> bool {
    view.messages
        .iter()
        .flat_map(|m| &m.calls)
        .any(|c| c.name == ASSIGN && c.arguments.get(1).is_some_and(|prompt| *prompt == part.question))
}

/// Makes eight assignments of the same empty kind, then gives up.
pub(super) fn spammer(view: View<'_>) -> Say {
    let spammed = view.messages.iter().any(|m| !m.calls.is_empty());
    if spammed || view.forced_answer {
        return Say::text("none");
    }
    let mut calls = vec![Call::new(CREATE, &[AGENT_NAME, AGENT_PROMPT])];
    calls.extend((0..8).map(|_| Call::new(ASSIGN, &[AGENT_NAME, "none"])));
    Say { text: String::new(), calls }
}

/// Assigns bare labels, which no sub-agent can do anything with, then works as [`serial`] does.
pub(super) fn spurious(view: View<'_>) -> Say {
    if view.forced_answer || view.messages.iter().any(|m| !m.calls.is_empty()) {
        return serial(view);
    }
    let mut calls = vec![Call::new(CREATE, &[AGENT_NAME, AGENT_PROMPT])];
    calls.extend((1..=4).map(|label| Call::new(ASSIGN, &[AGENT_NAME, &format!("n{label}")])));
    Say { text: String::new(), calls }
}

/// Does one of a handful of things, drawn from the agent's random stream.
pub(super) fn random(view: View<'_>, seat: Seat) -> Say {
    let turn = view.messages.iter().filter(|m| m.role == Role::Assistant).count() as u32;
    let drawn =
        |counter: u32, n: usize| ((view.key.uniform_f64(turn * 4 + counter) * n as f64) as usize).min(n - 1);
    let parts = &view.task.parts;
    if view.forced_answer || parts.is_empty() {
        return Say::text("none");
    }
    let part = &parts[drawn(0, parts.len())];
    let choices = if seat == Seat::Orchestrator { 5 } else { 3 };
    match drawn(1, choices) {
        0 => Say::call(Call::new(corpus::SEARCH, &[&part.query])),
        1 => Say::call(Call::new(corpus::OPEN, &[&part.query])),
        2 => Say::text(part.answer.as_str()),
        3 => Say::call(Call::new(CREATE, &[AGENT_NAME, AGENT_PROMPT])),
        _ => Say::call(Call::new(ASSIGN, &[AGENT_NAME, &part.question])),
    }
}
