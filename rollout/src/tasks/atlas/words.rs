//! Every word of the world, and the vocabulary that a word-level tokenizer needs for it.

use std::collections::BTreeSet;

use super::config::MAX_ITEMS;

/// First words of names.
pub(super) const FIRST: [&str; 48] = [
    "amber", "ashen", "bold", "brisk", "calm", "clear", "cold", "crisp", "dawn", "dusky", "dusty", "eager",
    "fair", "fallow", "fleet", "frost", "gentle", "glad", "grand", "grave", "hollow", "humble", "idle",
    "jolly", "keen", "lofty", "lone", "loud", "lucky", "mellow", "misty", "noble", "pale", "proud", "quick",
    "quiet", "rapid", "rough", "sable", "sharp", "silent", "sly", "stark", "stone", "stout", "swift",
    "vivid", "wild",
];

/// Second words of names.
pub(super) const SECOND: [&str; 48] = [
    "anchor", "anvil", "arrow", "basin", "beacon", "bridge", "candle", "castle", "cedar", "compass", "crown",
    "ember", "falcon", "feather", "forge", "garden", "gate", "grove", "hammer", "harbor", "helmet", "heron",
    "island", "kettle", "ladder", "lantern", "meadow", "mirror", "needle", "orchard", "paddle", "pillar",
    "quarry", "raven", "ribbon", "river", "saddle", "shield", "spindle", "spire", "tower", "valley",
    "vessel", "wagon", "willow", "window", "wren", "yard",
];

/// What every entity has: the attribute's name and its possible values.
pub(super) const ATTRIBUTES: [(&str, [&str; 12]); 6] = [
    (
        "colour",
        [
            "teal", "crimson", "violet", "scarlet", "indigo", "ivory", "olive", "maroon", "beige", "cyan",
            "magenta", "white",
        ],
    ),
    (
        "metal",
        [
            "iron", "copper", "zinc", "tin", "nickel", "cobalt", "silver", "gold", "bronze", "brass",
            "steel", "chrome",
        ],
    ),
    (
        "month",
        [
            "january",
            "february",
            "march",
            "april",
            "may",
            "june",
            "july",
            "august",
            "september",
            "october",
            "november",
            "december",
        ],
    ),
    (
        "animal",
        ["otter", "badger", "lynx", "hare", "wolf", "bear", "deer", "fox", "goat", "mole", "seal", "toad"],
    ),
    (
        "fruit",
        [
            "plum", "pear", "apple", "cherry", "fig", "grape", "lemon", "lime", "mango", "peach", "quince",
            "melon",
        ],
    ),
    (
        "instrument",
        [
            "lute", "harp", "flute", "drum", "cello", "oboe", "horn", "fiddle", "banjo", "bugle", "zither",
            "piano",
        ],
    ),
];

/// Links from an entity to others of its split.
pub(super) const LINKS: [&str; 3] = ["mentor", "ally", "rival"];

/// Fillers that say nothing: before a name, and between facts.
pub(super) const KINDS: [&str; 6] = ["traveller", "painter", "sailor", "farmer", "baker", "singer"];
/// See [`KINDS`].
pub(super) const ASIDES: [&str; 6] = ["also", "often", "here", "today", "still", "surely"];

/// Small words of prompts, documents and observations.
const GRAMMAR: [&str; 24] = [
    "the", "is", "in", "of", "has", "and", "a", "record", "as", "we", "know", "with", "its", "for", "no",
    "none", "guild", "members", "start", "document", "note", "answer", "error", "failed",
];

/// Words of calls, roles and outcomes that the swarm and its dialect speak around the world.
const SWARM: [&str; 29] = [
    "search",
    "open",
    "create_subagent",
    "assign_task",
    "scout",
    "lead",
    "finder",
    "agent",
    "task",
    "query",
    "done",
    "final",
    "budget",
    "deadline",
    "step_limit",
    "context",
    "malformed",
    "outage",
    "down",
    "no_answer",
    "cancelled",
    "unknown",
    "tool",
    "name",
    "duplicate",
    "mixed",
    "turn",
    "too",
    "many",
];

/// Punctuation; each mark is a word.
const MARKS: [&str; 4] = [".", ";", ":", ","];

/// Numbers of document ids run from 0 to this less one.
pub(super) const NUMBERS: usize = 100;

/// The label of the item at `position` (from 0): `n1`, `n2`, …
pub(super) fn label(position: usize) -> String {
    format!("n{}", position + 1)
}

/// Every word that a prompt, document, tool result, call or answer of the world can hold, each once, in a fixed
/// order: one `[A-Za-z0-9_]+` or one punctuation mark each.
pub fn vocabulary() -> Vec<String> {
    let values = ATTRIBUTES.iter().flat_map(|(name, values)| std::iter::once(name).chain(values));
    let fixed = MARKS.iter().chain(&GRAMMAR).chain(&SWARM).chain(&LINKS).chain(&KINDS).chain(&ASIDES);
    let words = fixed.chain(&FIRST).chain(&SECOND).chain(values).map(|word| (*word).to_string());
    let labels = (0..MAX_ITEMS as usize).map(label);
    let numbers = (0..NUMBERS).map(|number| number.to_string());
    let mut seen = BTreeSet::new();
    words.chain(labels).chain(numbers).filter(|word| seen.insert(word.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_listed_once_and_has_one_meaning() {
        let all = vocabulary();
        let listed = MARKS.len() + GRAMMAR.len() + SWARM.len() + LINKS.len() + KINDS.len() + ASIDES.len();
        let named = FIRST.len() + SECOND.len() + ATTRIBUTES.len() * 13 + MAX_ITEMS as usize + NUMBERS;
        assert_eq!(all.len(), listed + named, "a word stands in two lists");
        assert!(all.len() <= 480, "{} words", all.len());
    }

    #[test]
    fn words_are_single_tokens() {
        for word in vocabulary() {
            let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            assert!(plain || MARKS.contains(&word.as_str()), "{word}");
            assert!(!word.is_empty());
        }
    }
}
