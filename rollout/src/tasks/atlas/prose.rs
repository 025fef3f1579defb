//! Facts as prose: short documents that say the same in different words and orders.

use super::draw::Draws;
use super::words::{ASIDES, ATTRIBUTES, KINDS, LINKS};
use super::world::{Entity, Guild, World};

/// How an entity's document is worded.
struct Template {
    /// What stands before the facts, with the name.
    opening: fn(name: &str, kind: &str) -> String,
    /// A fact in few words.
    plain: fn(key: &str, value: &str) -> String,
    /// A fact in more words, used for [`LONGER`] of the facts.
    longer: fn(key: &str, value: &str) -> String,
    /// Between facts.
    mark: &'static str,
}

/// Facts of a document that take the longer wording: few, because every token costs rollout time.
const LONGER: usize = 2;

// In each wording the value follows its key directly: looking it up is one step for a small model.
const TEMPLATES: [Template; 5] = [
    Template {
        opening: |name, _| format!("{name} :"),
        plain: |key, value| format!("{key} {value}"),
        longer: |key, value| format!("the {key} {value}"),
        mark: ";",
    },
    Template {
        opening: |name, _| format!("record of {name} ."),
        plain: |key, value| format!("{key} {value}"),
        longer: |key, value| format!("the {key} {value}"),
        mark: ";",
    },
    Template {
        opening: |name, kind| format!("{name} the {kind} has"),
        plain: |key, value| format!("{key} {value}"),
        longer: |key, value| format!("its {key} {value}"),
        mark: ",",
    },
    Template {
        opening: |name, kind| format!("{name} is a {kind} ,"),
        plain: |key, value| format!("{key} {value}"),
        longer: |key, value| format!("with its {key} {value}"),
        mark: ",",
    },
    Template {
        opening: |name, _| format!("we know {name} :"),
        plain: |key, value| format!("{key} {value}"),
        longer: |key, value| format!("with {key} {value}"),
        mark: ".",
    },
];

/// The document about `entity`: at most 40 words, each fact once.
pub(super) fn describe(world: &World, entity: &Entity, draws: &mut Draws) -> String {
    let template = &TEMPLATES[draws.below(TEMPLATES.len())];
    let attributes = ATTRIBUTES.iter().zip(entity.values).map(|((key, _), value)| (*key, value));
    let links = LINKS.iter().zip(entity.links);
    let links = links.filter_map(|(key, target)| Some((*key, world.entities[target?].name.as_str())));
    let mut facts: Vec<(&str, &str)> = attributes.chain(links).collect();
    draws.shuffle(&mut facts);
    let longer = draws.distinct(LONGER, facts.len());
    let aside = draws.below(facts.len());
    let aside_word = draws.pick(&ASIDES);

    let mut text = (template.opening)(&entity.name, draws.pick(&KINDS));
    for (position, (key, value)) in facts.iter().enumerate() {
        if position > 0 {
            text.push(' ');
            text.push_str(template.mark);
        }
        text.push(' ');
        if position == aside {
            text.push_str(aside_word);
            text.push(' ');
        }
        let wording = if longer.contains(&position) { template.longer } else { template.plain };
        text.push_str(&wording(key, value));
    }
    text.push_str(" .");
    text
}

/// The facts that a document states, as answers say them: `colour teal`, `mentor lofty anchor`.
pub fn facts_in(document: &str) -> Vec<String> {
    let words: Vec<&str> = document.split(' ').collect();
    let length = |word: &str| {
        let attribute = ATTRIBUTES.iter().any(|(key, _)| *key == word);
        if attribute { Some(1) } else { LINKS.contains(&word).then_some(2) }
    };
    let fact = |(at, word): (usize, &&str)| words.get(at..=at + length(word)?).map(|fact| fact.join(" "));
    words.iter().enumerate().filter_map(fact).collect()
}

/// The document about `guild`: its members with their labels.
pub(super) fn list_members(world: &World, guild: &Guild) -> String {
    format!("guild {} : {} .", guild.name, world.labelled(&guild.members))
}
