//! The shipped warm start against today's sources: what it was made for must still be what it meets.

use std::path::Path;

use parl_rollout::config::PolicyConfig;
use parl_rollout::policy::scripted::Script;

use super::*;
use crate::run::environment::vocabulary;
use crate::run::eval::evaluate;
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
    let summary = evaluate(&config, &environment, policy.as_mut(), 100, false).unwrap();
    assert!(summary.all.success >= 0.95, "{summary:?}");
}
