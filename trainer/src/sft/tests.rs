//! The shipped warm start against today's sources.

use std::path::Path;

use super::*;
use crate::run::environment::vocabulary;
use crate::run::folder::read_json;

/// When this fails, something that the demonstrations are made of has changed: make the warm start again
/// (scripts/README.md says how).
#[test]
fn the_shipped_warm_start_is_made_of_todays_inputs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/warm_start");
    let model = model_dir::read(&folder).unwrap();
    let words = parl_rollout::dialect::tokenizer_json(&vocabulary()).unwrap();
    assert_eq!(String::from_utf8(model.tokenizer).unwrap(), words);
    let parameters: usize =
        model.shape.tensors().iter().map(|(_, dims)| dims.iter().product::<usize>()).sum();
    assert!(parameters <= 4_000_000, "{parameters} parameters");
    let bytes = std::fs::metadata(folder.join("model.safetensors")).unwrap().len();
    assert!(bytes <= 8_000_000, "{bytes} bytes");

    let origin = read_json(&folder.join("origin.json")).unwrap();
    let mut config = Config::default();
    config.run.seed = serde_json::from_value(origin["seed"].clone()).unwrap();
    config.tasks = serde_json::from_value(origin["tasks"].clone()).unwrap();
    config.rollout = serde_json::from_value(origin["rollout"].clone()).unwrap();
    config.sft = serde_json::from_value(origin["sft"].clone()).unwrap();
    let environment = Environment::with_tokenizer_of(&config, None).unwrap();
    assert_eq!(origin[INPUTS], inputs_hash(&config, &environment).unwrap());
}
