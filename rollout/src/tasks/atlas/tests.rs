//! The world as a whole: answers agree with documents, splits are disjoint, every word is known.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::words::{ATTRIBUTES, LINKS};
use super::*;
use crate::tasks::{SubTask, TaskKind};
use crate::tools::corpus::CorpusTools;
use crate::tools::{ToolOutcome, Tools};

const SPLITS: [Split; 2] = [Split::Train, Split::Heldout];

fn world() -> AtlasWorld {
    AtlasWorld::new(&AtlasConfig::default()).unwrap()
}

fn tasks(world: &AtlasWorld, count: u64) -> impl Iterator<Item = Task> + '_ {
    SPLITS.into_iter().flat_map(move |split| (0..count).map(move |index| world.task(split, index)))
}

/// The texts of all that a task holds.
fn texts(task: &Task) -> Vec<String> {
    let mut texts = vec![task.prompt.clone()];
    for part in &task.parts {
        texts.extend([&part.id, &part.question, &part.query, &part.answer].map(Clone::clone));
    }
    match &task.answer {
        serde_json::Value::Object(rows) => {
            texts.extend(rows.iter().map(|(key, value)| format!("{key} {}", value.as_str().unwrap())));
        }
        value => texts.push(value.as_str().unwrap().to_string()),
    }
    texts
}

/// What a reader takes from a document: the words that follow `key`, after at most one word between.
fn read(document: &Document, key: &str) -> Vec<String> {
    let words: Vec<&str> = document.text.split(' ').collect();
    let at: Vec<usize> = (0..words.len()).filter(|at| words[*at] == key).collect();
    assert_eq!(at.len(), 1, "{key} stands once in: {}", document.text);
    words[at[0] + 1..].iter().map(ToString::to_string).collect()
}

/// Documents by title.
fn library(world: &AtlasWorld) -> BTreeMap<&str, &Document> {
    world.documents().iter().map(|document| (document.title.as_str(), document)).collect()
}

#[test]
fn the_vocabulary_covers_everything() {
    let known: BTreeSet<String> = vocabulary().into_iter().collect();
    let world = world();
    let tools = CorpusTools::new(world.documents(), 3).unwrap();
    let check = |text: &str| {
        for word in text.split(' ') {
            assert!(known.contains(word), "{word:?} in: {text}");
        }
    };
    for document in world.documents() {
        for text in [&document.id, &document.title, &document.text] {
            check(text);
        }
    }
    for task in tasks(&world, 3000) {
        for text in texts(&task) {
            check(&text);
        }
        for part in task.parts.iter().take(2) {
            for (tool, argument) in [("search", part.query.as_str()), ("search", "none"), ("open", "n1 n2")] {
                match tools.call(tool, &[argument.to_string()]) {
                    Some(ToolOutcome::Ok(text) | ToolOutcome::Error(text)) => check(&text),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn documents_are_short_varied_and_hold_each_fact_once() {
    let world = world();
    let mut openings = BTreeSet::new();
    let mut words = 0;
    for (entity, document) in world.world.entities.iter().zip(world.documents()) {
        let count = document.text.split(' ').count();
        assert!(count <= 40, "{count} words: {}", document.text);
        words += count;
        for ((key, _), value) in ATTRIBUTES.iter().zip(entity.values) {
            assert_eq!(read(document, key)[0], value, "{}", document.text);
        }
        for (key, target) in LINKS.iter().zip(entity.links) {
            match target {
                Some(target) => {
                    let name = &world.world.entities[target].name;
                    assert_eq!(read(document, key)[..2].join(" "), *name, "{}", document.text);
                }
                None => assert!(!document.text.contains(key), "{}", document.text),
            }
        }
        openings.insert(
            document.text.replace(&entity.name, "NAME").split(' ').take(3).collect::<Vec<_>>().join(" "),
        );
    }
    assert!(openings.len() >= 4, "{openings:?}");
    let mean = words as f64 / world.world.entities.len() as f64;
    println!("mean words in a document: {mean:.1}");
    assert!(mean < 36.0, "{mean}");
}

#[test]
fn splits_share_no_entity_and_no_guild() {
    let world = world();
    let named = |split| {
        let names: BTreeSet<String> = (0..3000)
            .flat_map(|index| world.task(split, index).parts)
            .map(|part| part.query.split(' ').filter(|word| !is_label(word)).collect::<Vec<_>>().join(" "))
            .collect();
        names
    };
    let (train, heldout) = (named(Split::Train), named(Split::Heldout));
    assert!(train.len() > 1500 && heldout.len() > 400, "{} {}", train.len(), heldout.len());
    assert!(train.is_disjoint(&heldout));
    for split in SPLITS {
        let side = world.world.entities_of(split);
        let linked = world.world.entities[side.clone()].iter().flat_map(|entity| entity.links).flatten();
        let listed =
            world.world.guilds[world.world.guilds_of(split)].iter().flat_map(|guild| guild.members.clone());
        assert!(linked.chain(listed).all(|index| side.contains(&index)));
    }
    for (index, entity) in world.world.entities.iter().enumerate() {
        let targets: BTreeSet<usize> = entity.links.iter().flatten().copied().collect();
        assert!(targets.len() == 2 && !targets.contains(&index), "{entity:?}");
    }
    let names: BTreeSet<_> = world.documents().iter().map(|document| &document.title).collect();
    let ids: BTreeSet<_> = world.documents().iter().map(|document| &document.id).collect();
    assert_eq!((names.len(), ids.len()), (2250, 2250));
}

fn is_label(word: &str) -> bool {
    word.strip_prefix('n').is_some_and(|number| number.parse::<u32>().is_ok())
}

/// The answer that a part's document gives to its question.
fn look_up(library: &BTreeMap<&str, &Document>, part: &SubTask) -> String {
    let title: Vec<&str> = part.query.split(' ').filter(|word| !is_label(word)).collect();
    let document = library[title.join(" ").as_str()];
    if let Some(list) = part.question.strip_prefix("members of ") {
        let members = document.text.strip_prefix(&format!("{list} : ")).unwrap();
        return members.strip_suffix(" .").unwrap().to_string();
    }
    let asked = part.question.strip_suffix(&part.query).unwrap();
    let mut answer: Vec<String> =
        part.query.split(' ').filter(|word| is_label(word)).map(str::to_string).collect();
    for key in asked.split_whitespace() {
        let width = if LINKS.contains(&key) { 2 } else { 1 };
        answer.push(key.to_string());
        answer.extend(read(document, key).into_iter().take(width));
    }
    answer.join(" ")
}

#[test]
fn answers_and_parts_agree_with_the_documents() {
    let world = world();
    let library = library(&world);
    let mut kinds = BTreeMap::new();
    for task in tasks(&world, 3000) {
        *kinds.entry(task.kind).or_insert(0) += 1;
        let mut found: BTreeMap<&str, String> = BTreeMap::new();
        for part in &task.parts {
            assert_eq!(look_up(&library, part), part.answer, "{part:?}");
            assert!(part.depends_on.iter().all(|id| found.contains_key(id.as_str())), "{task:?}");
            assert!(found.insert(&part.id, part.answer.clone()).is_none(), "{task:?}");
        }
        let last = task.parts.last().unwrap();
        if task.kind == TaskKind::Deep {
            assert_eq!(task.answer, last.answer.as_str());
            assert_eq!(task.parts.len(), task.n_items as usize + 1);
            assert!(task.prompt.starts_with(&format!("start {}", task.parts[0].query)), "{}", task.prompt);
        } else {
            let rows = task.answer.as_object().unwrap();
            assert_eq!(rows.len(), task.n_items as usize);
            for (id, value) in rows {
                assert_eq!(found[id.as_str()], format!("{id} {}", value.as_str().unwrap()));
            }
        }
        if task.kind == TaskKind::Wide {
            let questions: Vec<&str> = task.parts.iter().map(|part| part.query.as_str()).collect();
            assert!(task.prompt.ends_with(&questions.join(" ; ")), "{}", task.prompt);
        }
        let labels: BTreeSet<_> = task.prompt.split(' ').filter(|word| is_label(word)).collect();
        assert!(task.kind == TaskKind::Wide || labels.is_empty(), "{}", task.prompt);
    }
    let share = |kind| f64::from(kinds[&kind]) / 6000.0;
    let (wide, mixed, deep) = (share(TaskKind::Wide), share(TaskKind::Mixed), share(TaskKind::Deep));
    assert!(
        (wide - 0.5).abs() < 0.03 && (mixed - 0.2).abs() < 0.03 && (deep - 0.3).abs() < 0.03,
        "{kinds:?}"
    );
}

#[test]
fn wide_tasks_span_the_bounds_and_keep_a_small_band() {
    let world = world();
    let sizes: Vec<u32> =
        tasks(&world, 5000).filter(|task| task.kind == TaskKind::Wide).map(|task| task.n_items).collect();
    let small = sizes.iter().filter(|n| **n <= 6).count() as f64 / sizes.len() as f64;
    assert!((small - 0.3).abs() < 0.03, "{small}");
    assert_eq!((sizes.iter().min(), sizes.iter().max()), (Some(&2), Some(&24)));
    for (n_min, n_max) in [(1, 1), (3, 6), (7, 24), (24, 24), (25, 48), (6, 7)] {
        let world = AtlasWorld::new(&AtlasConfig { n_min, n_max, ..AtlasConfig::default() }).unwrap();
        let sizes: BTreeSet<u32> =
            tasks(&world, 500).filter(|task| task.kind == TaskKind::Wide).map(|task| task.n_items).collect();
        assert_eq!(sizes, (n_min..=n_max).collect());
    }
}

#[test]
fn pairs_of_attributes_are_either_seen_or_unseen() {
    let pairs = |attribute_pairs| {
        let config = AtlasConfig { two_attribute_share: 1.0, attribute_pairs, ..AtlasConfig::default() };
        let world = AtlasWorld::new(&config).unwrap();
        let pair = |task: Task| -> Option<BTreeSet<String>> {
            let words: Vec<_> = task.prompt.split(" of ").next()?.split(' ').map(str::to_string).collect();
            (task.kind != TaskKind::Deep).then(|| words.into_iter().collect())
        };
        tasks(&world, 2000).filter_map(pair).collect::<BTreeSet<_>>()
    };
    let [any, seen, unseen] = [AttributePairs::Any, AttributePairs::Seen, AttributePairs::Unseen].map(pairs);
    assert_eq!((any.len(), seen.len(), unseen.len()), (15, 12, 3));
    assert!(seen.is_disjoint(&unseen) && seen.union(&unseen).eq(&any));
    let single: BTreeSet<&String> = unseen.iter().flatten().collect();
    assert_eq!(single.len(), 6, "each attribute stands in one unseen pair");
}

#[test]
fn chains_meet_nobody_twice_if_they_can() {
    let config = AtlasConfig { hops_min: 1, hops_max: 8, ..AtlasConfig::default() };
    let world = AtlasWorld::new(&config).unwrap();
    let chains: Vec<Task> = tasks(&world, 3000).filter(|task| task.kind == TaskKind::Deep).collect();
    let repeated = |task: &&Task| {
        let met: BTreeSet<_> = task.parts.iter().map(|part| &part.query).collect();
        met.len() < task.parts.len()
    };
    assert!(chains.iter().filter(repeated).count() * 100 < chains.len());
    assert_eq!(chains.iter().map(|task| task.n_items).collect::<BTreeSet<_>>(), (1..=8).collect());
}

#[test]
fn tasks_are_pure_and_worlds_differ_by_seed() {
    let (one, two) = (world(), world());
    let other = AtlasWorld::new(&AtlasConfig { seed: 1, ..AtlasConfig::default() }).unwrap();
    assert_eq!(one.documents(), two.documents());
    for index in [0, 7, 3, u64::MAX] {
        assert_eq!(one.task(Split::Train, index), two.task(Split::Train, index));
        assert_ne!(one.task(Split::Train, index).prompt, other.task(Split::Train, index).prompt);
        assert_ne!(one.task(Split::Train, index).prompt, one.task(Split::Heldout, index).prompt);
    }
    let prompts: BTreeSet<String> = (0..2000).map(|index| one.task(Split::Train, index).prompt).collect();
    assert!(prompts.len() > 1950, "{}", prompts.len());
}

/// Pinned: a change here is another world, and asks for a new warm start.
#[test]
fn the_default_world_is_pinned() {
    let world = world();
    let mut hasher = blake3::Hasher::new();
    for page in world.documents() {
        hasher.update(format!("{} {} {}\n", page.id, page.title, page.text).as_bytes());
    }
    for task in tasks(&world, 200) {
        hasher.update(format!("{} {}\n", task.prompt, task.answer).as_bytes());
    }
    let hash = hasher.finalize().to_hex();
    assert_eq!(hash[..16], *"0f0a04b3a7c31413");
}

#[test]
fn search_finds_every_document_first() {
    for seed in 0..2 {
        let config = AtlasConfig { seed, entities: 2048, ..AtlasConfig::default() };
        let world = AtlasWorld::new(&config).unwrap();
        let tools = CorpusTools::new(world.documents(), 1).unwrap();
        let start = Instant::now();
        for (index, document) in world.documents().iter().enumerate() {
            for query in [document.title.clone(), format!("n{} {}", index % 48 + 1, document.title)] {
                let expected = format!("{query} : {} , {}", document.id, document.title);
                assert_eq!(tools.call("search", &[query]), Some(ToolOutcome::Ok(expected)));
            }
            let opened = tools.call("open", std::slice::from_ref(&document.id));
            assert_eq!(opened, Some(ToolOutcome::Ok(document.text.clone())));
        }
        let queries = 2 * world.documents().len();
        println!("{:.1} us a query", start.elapsed().as_secs_f64() * 1e6 / queries as f64);
    }
}

#[test]
fn bad_settings_are_refused_by_name() {
    let error = AtlasWorld::new(&AtlasConfig { n_max: 99, ..AtlasConfig::default() }).unwrap_err();
    assert_eq!(error.to_string(), "n_max: 99 is not within 2 to 48");
}
