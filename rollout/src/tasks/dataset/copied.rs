//! Questions in words that are already there, so that a model which can only copy can ask them.

use crate::tasks::SubTask;

/// Shorter ones stand in questions by chance.
const SHORTEST_NAME: usize = 3;

/// Asks each part in words that the context before it holds: what depends on nothing by the task's own prompt, where it
/// is the only such part, and what waits for others by the longest name out of their answers that stands in its question.
/// A part for which there is none keeps its question. Titles are left out: nobody could know them.
pub(super) fn ask_in_copied_words(prompt: &str, parts: &mut [SubTask]) {
    let roots = parts.iter().filter(|part| part.depends_on.is_empty()).count();
    let asked: Vec<String> = parts
        .iter()
        .map(|part| {
            if part.depends_on.is_empty() {
                return if roots == 1 { prompt.to_string() } else { part.question.clone() };
            }
            let waits_for = parts.iter().filter(|other| part.depends_on.contains(&other.id));
            let names = waits_for.flat_map(|other| names_in(&other.answer));
            let named = names.filter(|name| holds(&part.question, name));
            named.max_by_key(|name| name.len()).unwrap_or(&part.question).to_string()
        })
        .collect();
    for (part, words) in parts.iter_mut().zip(asked) {
        part.query.clone_from(&words);
        part.question = words;
    }
}

/// The items of an answer in words: `Sweden, Norway` or `Sweden: Stockholm; Norway: Oslo`.
fn names_in(answer: &str) -> impl Iterator<Item = &str> {
    let names = answer.split([',', ';', ':']).map(str::trim);
    names.chain([answer]).filter(|name| name.len() >= SHORTEST_NAME)
}

/// Whether `name` stands in `text` as whole words, in any case.
fn holds(text: &str, name: &str) -> bool {
    let (text, name) = (text.to_lowercase(), name.to_lowercase());
    let inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(&name).any(|(at, found)| {
        !inside(text[..at].chars().next_back()) && !inside(text[at + found.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(id: &str, question: &str, answer: &str, depends_on: &[&str]) -> SubTask {
        SubTask {
            id: id.to_string(),
            question: question.to_string(),
            query: "a title".to_string(),
            answer: answer.to_string(),
            depends_on: depends_on.iter().map(|id| (*id).to_string()).collect(),
        }
    }

    fn asked(prompt: &str, mut parts: Vec<SubTask>) -> Vec<String> {
        ask_in_copied_words(prompt, &mut parts);
        assert!(parts.iter().all(|part| part.query == part.question));
        parts.into_iter().map(|part| part.question).collect()
    }

    #[test]
    fn the_first_part_is_the_prompt_and_later_ones_are_names() {
        let parts = vec![
            part("1", "Which lands?", "Chad, Republic of Chad: big; Mali", &[]),
            part("2", "How large is the republic of Chad?", "1", &["1"]),
            part("3", "How large is Chadwick, Mali?", "2", &["1"]),
            part("4", "Which is larger?", "Chad", &["1", "2", "3"]),
        ];
        let wanted = ["Sizes of lands?", "Republic of Chad", "Mali", "Which is larger?"];
        assert_eq!(asked("Sizes of lands?", parts), wanted);
    }

    #[test]
    fn several_first_parts_keep_their_questions() {
        let parts = vec![
            part("1", "Who?", "Ann", &[]),
            part("2", "Where?", "Rome", &[]),
            part("3", "İs Ann there?", "", &["1"]),
        ];
        assert_eq!(asked("Who and where?", parts), ["Who?", "Where?", "Ann"]);
    }
}
