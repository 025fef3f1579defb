//! The scripted sub-agent: search, open, report; a busy tool is tried again.

use super::{Say, View, progress};
use crate::dialect::{Call, Role};
use crate::tools::corpus;

/// The next turn of a sub-agent that was asked one part of the task.
pub(super) fn solve(view: View<'_>) -> Say {
    let prompt = view.messages.iter().find(|m| m.role == Role::User).map_or("", |m| m.text.as_str());
    let Some(part) = view.task.parts.iter().find(|p| p.question == prompt) else {
        return Say::text("none");
    };
    let calls = view.messages.iter().flat_map(|m| &m.calls);
    let results = view.messages.iter().filter(|m| m.call_id.is_some());
    let mut say = Say::call(Call::new(corpus::SEARCH, &[&part.query]));
    for (call, result) in calls.zip(results) {
        if result.text.starts_with("error : ") {
            say = Say::call(call.clone());
        } else if call.name == corpus::OPEN {
            return Say::text(progress::finding(view.task, part, &result.text));
        } else {
            say = match corpus::first_hit(&part.query, &result.text) {
                Some(id) => Say::call(Call::new(corpus::OPEN, &[id])),
                None => return Say::text("none"),
            };
        }
    }
    say
}
