//! Tasks about the world: what is asked, the right answer, and the parts that a perfect planner would ask for.
//!
//! Prompts name what is wanted and nothing else: never how to work, never agents. Items carry labels (`n1`, …)
//! that calls, results and answers repeat, so that each value is found under one key.

use parl_rewards::metrics::Metric;
use serde_json::{Map, Value};

use super::config::{AtlasConfig, SMALL_N};
use super::draw::{Draws, Purpose};
use super::words::{ATTRIBUTES, LINKS, label};
use super::world::{Entity, World};
use crate::tasks::{Split, SubTask, Task, TaskKind};

/// Draws the task at position `index` of `split`'s stream.
pub(super) fn draw(config: &AtlasConfig, world: &World, split: Split, index: u64) -> Task {
    let purpose = match split {
        Split::Train => Purpose::TrainTasks,
        Split::Heldout => Purpose::HeldoutTasks,
    };
    let mut draws = Draws::new(config.seed, purpose, index);
    let mix = &config.mix;
    let point = draws.unit() * (mix.wide + mix.mixed + mix.deep);
    let question = if point < mix.wide {
        wide(config, world, split, &mut draws)
    } else if point < mix.wide + mix.mixed {
        mixed(config, world, split, &mut draws)
    } else {
        deep(config, world, split, &mut draws)
    };
    Task {
        id: format!("atlas-{}-{}-{index}", config.seed, split.name()),
        kind: question.kind,
        split,
        n_items: question.n_items as u32,
        prompt: question.prompt,
        answer: question.answer,
        metric: Metric::ItemF1,
        parts: question.parts,
    }
}

/// A task without its place in a stream.
struct Question {
    kind: TaskKind,
    n_items: usize,
    prompt: String,
    answer: Value,
    parts: Vec<SubTask>,
}

/// `colour of n1 amber falcon ; n2 stone heron`.
fn wide(config: &AtlasConfig, world: &World, split: Split, draws: &mut Draws) -> Question {
    let attributes = attributes(config, draws);
    let n_items = items(config, draws);
    let side = world.entities_of(split);
    let members: Vec<usize> =
        draws.distinct(n_items, side.len()).iter().map(|member| side.start + member).collect();
    Question {
        kind: TaskKind::Wide,
        n_items,
        prompt: format!("{} of {}", names(&attributes), world.labelled(&members)),
        answer: answer(world, &attributes, &members),
        parts: parts(world, &attributes, &members, None),
    }
}

/// `colour of members of guild silver lantern`.
fn mixed(config: &AtlasConfig, world: &World, split: Split, draws: &mut Draws) -> Question {
    let attributes = attributes(config, draws);
    let guilds = world.guilds_of(split);
    let guild = &world.guilds[guilds.start + draws.below(guilds.len())];
    let query = format!("guild {}", guild.name);
    let list = SubTask {
        id: "guild".to_string(),
        question: format!("members of {query}"),
        query: query.clone(),
        answer: world.labelled(&guild.members),
        depends_on: Vec::new(),
    };
    let mut all = parts(world, &attributes, &guild.members, Some(&list.id));
    all.insert(0, list);
    Question {
        kind: TaskKind::Mixed,
        n_items: guild.members.len(),
        prompt: format!("{} of members of {query}", names(&attributes)),
        answer: answer(world, &attributes, &guild.members),
        parts: all,
    }
}

/// `start amber falcon ; mentor ; ally ; colour`: relations in the order in which they are followed.
fn deep(config: &AtlasConfig, world: &World, split: Split, draws: &mut Draws) -> Question {
    let hops = draws.between(config.hops_min as usize, config.hops_max as usize);
    let attribute = draws.below(ATTRIBUTES.len());
    let side = world.entities_of(split);
    let mut chain = vec![side.start + draws.below(side.len())];
    let mut prompt = format!("start {}", world.entities[chain[0]].name);
    let mut parts = Vec::new();
    let mut here = &world.entities[chain[0]];
    for _ in 0..hops {
        let (relation, next) = step(here, &chain, draws);
        chain.push(next);
        prompt = format!("{prompt} ; {relation}");
        parts.push(hop(parts.len(), relation, here, &world.entities[next].name));
        here = &world.entities[next];
    }
    let value = here.values[attribute];
    let relation = ATTRIBUTES[attribute].0;
    parts.push(hop(parts.len(), relation, here, value));
    Question {
        kind: TaskKind::Deep,
        n_items: hops,
        prompt: format!("{prompt} ; {relation}"),
        answer: Value::from(format!("{relation} {value}")),
        parts,
    }
}

/// A link of `here` to follow, to someone not met in `chain` where there is one.
fn step(here: &Entity, chain: &[usize], draws: &mut Draws) -> (&'static str, usize) {
    let all = || LINKS.iter().zip(here.links).filter_map(|(relation, target)| Some((*relation, target?)));
    let fresh: Vec<_> = all().filter(|(_, target)| !chain.contains(target)).collect();
    if fresh.is_empty() { draws.pick(&all().collect::<Vec<_>>()) } else { draws.pick(&fresh) }
}

/// One part of a deep task.
fn hop(position: usize, relation: &str, here: &Entity, answer: &str) -> SubTask {
    SubTask {
        id: label(position),
        question: format!("{relation} {}", here.name),
        query: here.name.clone(),
        answer: format!("{relation} {answer}"),
        depends_on: position.checked_sub(1).map(label).into_iter().collect(),
    }
}

/// How many items a wide task names.
fn items(config: &AtlasConfig, draws: &mut Draws) -> usize {
    let (low, high) = (config.n_min, config.n_max);
    let small = draws.unit() < config.small_share;
    let (low, high) = if high <= SMALL_N || low > SMALL_N {
        (low, high)
    } else if small {
        (low, SMALL_N)
    } else {
        (SMALL_N + 1, high)
    };
    draws.between(low as usize, high as usize)
}

/// One attribute or two different ones, as indices into [`ATTRIBUTES`].
fn attributes(config: &AtlasConfig, draws: &mut Draws) -> Vec<usize> {
    let count = if draws.unit() < config.two_attribute_share { 2 } else { 1 };
    loop {
        let drawn = draws.distinct(count, ATTRIBUTES.len());
        // Ends: one attribute always will do, and each kind of pairs has some.
        if drawn.len() < 2 || config.attribute_pairs.hold(drawn[0], drawn[1]) {
            return drawn;
        }
    }
}

fn names(attributes: &[usize]) -> String {
    attributes.iter().map(|attribute| ATTRIBUTES[*attribute].0).collect::<Vec<_>>().join(" ")
}

/// `colour teal metal iron`: each value behind its key, as a small model looks it up.
fn values(entity: &Entity, attributes: &[usize]) -> String {
    let fact = |attribute: &usize| format!("{} {}", ATTRIBUTES[*attribute].0, entity.values[*attribute]);
    attributes.iter().map(fact).collect::<Vec<_>>().join(" ")
}

/// The map from labels to values.
fn answer(world: &World, attributes: &[usize], members: &[usize]) -> Value {
    let rows = members.iter().enumerate();
    let row = |(position, member): (usize, &usize)| {
        (label(position), Value::from(values(&world.entities[*member], attributes)))
    };
    Value::Object(rows.map(row).collect::<Map<_, _>>())
}

/// One part an item, each after `depends_on`.
fn parts(
    world: &World,
    attributes: &[usize],
    members: &[usize],
    depends_on: Option<&String>,
) -> Vec<SubTask> {
    let part = |(position, member): (usize, &usize)| {
        let (label, entity) = (label(position), &world.entities[*member]);
        let query = format!("{label} {}", entity.name);
        SubTask {
            question: format!("{} {query}", names(attributes)),
            answer: format!("{label} {}", values(entity, attributes)),
            query,
            id: label,
            depends_on: depends_on.into_iter().cloned().collect(),
        }
    };
    members.iter().enumerate().map(part).collect()
}
