//! The shipped warm start against today's sources: what it was made for must still be what it meets.

use std::path::{Path, PathBuf};

use parl_rollout::config::PolicyConfig;
use parl_rollout::policy::scripted::Script;
use parl_rollout::tasks::dataset::DatasetConfig;

use super::*;
use crate::config::{TasksConfig, load};
use crate::run::environment::vocabulary;
use crate::run::eval::{HeldOut, evaluate};
use crate::run::folder::read_json;
use crate::run::seats;

/// When this fails, the world, the template or the words have changed: the warm start must be made again.
#[test]
fn the_shipped_warm_start_knows_todays_world() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/warm_start");
    let model = model_dir::read(&folder).unwrap();
    let words = parl_rollout::dialect::tokenizer_json(&vocabulary()).unwrap();
    assert_eq!(String::from_utf8(model.tokenizer).unwrap(), words);
    let parameters: usize =
        model.shape.tensors().iter().map(|(_, dims)| dims.iter().product::<usize>()).sum();
    assert!(parameters <= 4_000_000, "{parameters} parameters");
    let bytes = std::fs::metadata(folder.join("model.safetensors")).unwrap().len();
    assert!(bytes <= 8_000_000, "{bytes} bytes");

    // The gates before training: the parallel expert with the shipped model as its sub-agents.
    let mut config = Config::default();
    config.rollout.subagent.policy =
        PolicyConfig::Local { model: folder.display().to_string(), temperature: 0.6 };
    let environment = Environment::new(&config).unwrap();
    let mut policy = seats::scripted(&environment, Script::Parallel, &config).unwrap();
    let held_out = HeldOut { tasks: 100, lift_budget: false, step: 0 };
    let summary = evaluate(&config, &environment, policy.as_mut(), held_out).unwrap();
    assert!(summary.all.success >= 0.95, "{summary:?}");
}

/// When this fails, the recipe, the scripts, the drills or the world have changed: made today, it would be another model.
#[test]
fn the_shipped_warm_start_is_what_its_recipe_makes_today() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let end = read_json(&configs.join("warm_start/origin.json")).unwrap();
    let first = &end["init"]["origin"];
    assert!(first["init"].is_null(), "the first stage began from nothing");
    for (name, origin) in [("warm_start.yaml", first), ("warm_start_end.yaml", &end)] {
        let recipe = std::fs::read_to_string(configs.join(name)).unwrap();
        let config: Config = load(vec![(name.to_owned(), recipe)], &[], &|_| None).unwrap().config;
        let made_with: SftConfig = serde_json::from_value(origin["sft"].clone()).unwrap();
        assert_eq!(made_with, config.sft, "{name}");
        assert_eq!(origin["seed"], config.run.seed, "{name}");
        let environment = Environment::new(&config).unwrap();
        assert_eq!(origin[INPUTS], inputs_hash(&config, &environment).unwrap(), "{name}");
    }
}

/// A data set of two questions and a page, and the folder that it lies in.
fn badgers(test: &str) -> (PathBuf, TasksConfig) {
    let folder = std::env::temp_dir().join(format!("parl-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (tasks, corpus) = (folder.join("tasks.jsonl"), folder.join("corpus.jsonl"));
    let row = |id: &str, split: &str| {
        format!(
            r#"{{"id": "{id}", "split": "{split}", "prompt": "Where do badgers and voles and newts sleep?",
            "answer": "setts", "metric": "f1", "decomposition": [{{"id": "1", "question": "Where?", "answer": "setts"}}]}}"#
        )
        .replace('\n', " ")
    };
    std::fs::write(&tasks, [row("a", "train"), row("b", "heldout")].join("\n")).unwrap();
    std::fs::write(
        &corpus,
        r#"{"doc_id": "1", "title": "Where badgers sleep", "text": "Badgers sleep in setts, voles elsewhere."}"#,
    )
    .unwrap();
    let config = DatasetConfig { tasks, corpus, ..DatasetConfig::default() };
    (folder, TasksConfig::Dataset(config))
}

#[test]
fn a_model_learns_a_data_sets_words_beside_its_own() {
    let (folder, tasks) = badgers("new-words");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/warm_start");
    let mut config = Config {
        tasks,
        sft: SftConfig {
            init: Some(shipped.display().to_string()),
            new_words: true,
            steps: 1,
            episodes_per_step: 2,
            lr: 0.0,
            ..SftConfig::default()
        },
        ..Config::default()
    };
    run(&config, &folder.join("model"), &mut std::io::sink()).unwrap();
    let (old, new) = (model_dir::read(&shipped).unwrap(), model_dir::read(&folder.join("model")).unwrap());
    let dialect = |model: &model_dir::ModelDir| Dialect::from_json(&model.tokenizer).unwrap();
    let (before, after) = (dialect(&old), dialect(&new));
    assert!(before.encode_text("badgers").unwrap().len() > 1);
    assert_eq!(after.encode_text("badgers").unwrap().len(), 1);
    let row = |model: &model_dir::ModelDir, id: u32| model.params["embed"].get(i64::from(id));
    for (id, place) in before.places_in(&after).unwrap().into_iter().enumerate() {
        assert_eq!(row(&old, id as u32), row(&new, place), "token {id}");
    }
    assert_eq!(old.params["layers.3.down"], new.params["layers.3.down"]);
    let ends = (before.special().end, after.special().end);
    assert!(ends.0 < ends.1, "special ids stand behind all words");

    // The other way round a word would be lost.
    config.tasks = Config::default().tasks;
    config.sft.init = Some(folder.join("model").display().to_string());
    let lost = run(&config, &folder.join("other"), &mut std::io::sink()).unwrap_err().to_string();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(lost.contains("sft.init") && lost.contains("is no token of the tasks"), "{lost}");
}

#[test]
fn swapped_words_are_one_permutation_and_the_worlds_own_words_stay() {
    let (folder, tasks) = badgers("swapped");
    let mut config = Config {
        tasks,
        sft: SftConfig { drill_share: 0.0, episodes_per_step: 8, ..SftConfig::default() },
        ..Config::default()
    };
    let environment = Environment::with_tokenizer_of(&config, None).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();

    let world: Vec<u32> =
        vocabulary().iter().flat_map(|word| environment.dialect.encode_text(word).unwrap()).collect();
    let plain = demonstrations::samples(0, &config.sft, &environment, 0).unwrap();
    let (mut swapped, mut changed) = (plain.clone(), 0);
    for (i, sample) in swapped.iter_mut().enumerate() {
        demonstrations::swap_words(&environment, sample, &mut demonstrations::Choices::new(i as u64, 0));
        let mut known: BTreeMap<u32, u32> = BTreeMap::new();
        for (from, to) in plain[i].tokens.iter().zip(&sample.tokens) {
            assert_eq!(*known.entry(*from).or_insert(*to), *to, "one word for each");
            assert!(from == to || !world.contains(from) && !world.contains(to));
            changed += usize::from(from != to);
        }
        let others: std::collections::BTreeSet<u32> = known.values().copied().collect();
        assert_eq!(others.len(), known.len(), "no word for two");
        assert_eq!(sample.mask, plain[i].mask);
    }
    assert!(changed > 50, "{changed} words of {} contexts", plain.len());

    config.sft.swapped_share = 1.0;
    let all = demonstrations::samples(0, &config.sft, &environment, 0).unwrap();
    assert!(all.iter().zip(&plain).any(|(a, b)| a.tokens != b.tokens), "the share has no effect");
}
