//! What users get wrong, and what they read then.

use super::*;

fn loaded(yaml: &str, overrides: &[&str]) -> Result<Loaded<Config>, String> {
    let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_owned()).collect();
    let env = |name: &str| (name == "SET").then(|| "value".to_owned());
    load(vec![("c.yaml".to_owned(), yaml.to_owned())], &overrides, &env).map_err(|e| e.to_string())
}

#[test]
fn faults_are_told_with_place_key_bound_and_nearest_name() {
    let cases: [(&str, &[&str], &str); 24] = [
        (
            "rollout:\n  group_sise: 4\n",
            &[],
            "c.yaml:2:3: rollout.group_sise: unknown key; did you mean `group_size`?",
        ),
        ("rolout:\n  group_size: 4\n", &[], "c.yaml:1:1: rolout: unknown key; did you mean `rollout`?"),
        ("run:\n  max_steps: 0\n", &[], "c.yaml:2:3: run.max_steps: 0 is below 1"),
        ("run:\n  max_steps: many\n", &[], "c.yaml:2:3: run.max_steps: `many` is not of type integer"),
        ("run:\n  max_steps: -1\n", &[], "c.yaml:2:3: run.max_steps: -1 is below 1"),
        ("run: 3\n", &[], "c.yaml:1:1: run: 3 is not of type map"),
        ("- run\n", &[], "c.yaml:1:1: a config is a map of sections, this is not one"),
        ("rewards:\n  n_cap: 2.5\n", &[], "c.yaml:2:3: rewards.n_cap: 2.5 is not of type integer"),
        (
            "rewards:\n  lambda_parallel: {type: linaer, from: 0.1, to: 0, steps: 3}\n",
            &[],
            "c.yaml:2:21: rewards.lambda_parallel.type: `linaer` is not one of constant, linear, cosine, exponential, \
             stages; did you mean `linear`?",
        ),
        (
            "rewards:\n  lambda_parallel:\n    type: constant\n    value: 1.5\n",
            &[],
            "c.yaml:4:5: rewards.lambda_parallel.value: 1.5 is not between 0 and 1",
        ),
        (
            "rewards:\n  lambda_parallel:\n    type: constant\n",
            &[],
            "c.yaml:2:3: rewards.lambda_parallel: the key `value` is missing",
        ),
        (
            "rewards:\n  form: k2.5\n",
            &[],
            "c.yaml:2:3: rewards.form: `k2.5` is not one of k25, blog; did you mean `k25`?",
        ),
        (
            "rollout:\n  subagent:\n    outage_rate: 1.01\n",
            &[],
            "c.yaml:3:5: rollout.subagent.outage_rate: 1.01 is above 1",
        ),
        ("tasks:\n  type: atlas\n  n_max: 99\n", &[], "c.yaml:3:3: tasks.n_max: 99 is not within 2 to 48"),
        (
            "tasks:\n  type: atlas\n  hop_max: 1\n",
            &[],
            "c.yaml:3:3: tasks.hop_max: unknown key; did you mean `hops_max`?",
        ),
        (
            "run:\n  name: a/b\n",
            &[],
            "c.yaml:2:3: run.name: `a/b` is not a plain folder name of letters, digits, `-`, `_` and `.`",
        ),
        ("", &["run.seed=x"], "override #1: run.seed: `x` is not of type integer"),
        ("", &["seed"], "override #1: `seed` is not of the form key.path=value"),
        (
            "learner:\n  objective: {type: gsop}\n",
            &[],
            "c.yaml:2:15: learner.objective.type: `gsop` is not one of sft, k25, grpo, dapo, gspo, cispo, rloo, dr_grpo, \
             custom; did you mean `gspo`?",
        ),
        ("", &["learner.objective={type: rloo, tau: 1}"], "override #1: learner.objective.tau: unknown key"),
        (
            "learner:\n  objective: {type: custom, ratio: word, clip: {type: none}, aggregation: {type: batch_tokens}}\n",
            &[],
            "c.yaml:2:29: learner.objective.ratio: `word` is not one of token, sequence",
        ),
        (
            "learner:\n  objective: {type: custom, ratio: token, clip: {type: ppo, low: 0.8}, aggregation: {type: batch_tokens}}\n",
            &[],
            "c.yaml:2:43: learner.objective.clip: the key `high` is missing",
        ),
        (
            "rollout:\n  tasks_per_step: 4\n",
            &["learner.updates_per_step=5"],
            "override #1: learner.updates_per_step: 5 is above rollout.tasks_per_step (4): an update takes whole groups",
        ),
        (
            "run:\n  name: ${oc.env:UNSET}\n",
            &[],
            "c.yaml:2:3: run.name: the environment variable UNSET is not set and has no default here",
        ),
    ];
    for (yaml, overrides, wanted) in cases {
        assert_eq!(loaded(yaml, overrides).map(|_| ()).unwrap_err(), wanted, "{yaml}");
    }
}

#[test]
fn broken_yaml_is_one_line_with_its_place() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e]\n";
    for yaml in [
        "run: [",
        "run:\n\tseed: 1\n",
        "run:\n  seed: 1\n  seed: 2\n",
        "a: b: c\n",
        "---\na: 1\n---\nb: 2\n",
        bomb,
    ] {
        let error = loaded(yaml, &[]).map(|_| ()).unwrap_err();
        assert!(error.starts_with("c.yaml:"), "{error}");
    }
}

#[test]
fn several_faults_are_told_at_once() {
    let error =
        loaded("run:\n  sed: 1\nrewards:\n  n_cap: 0\n", &["rollout.group_size=0"]).map(|_| ()).unwrap_err();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 3, "{error}");
    assert!(
        lines[0].starts_with("c.yaml:2:3: run.sed")
            && lines[2].starts_with("override #1: rollout.group_size")
    );
}

#[test]
fn layers_are_laid_over_each_other() {
    let yaml = "run:\n  seed: 3\n  name: ${oc.env:SET}-${oc.env:OTHER,x}\nrewards:\n  lambda_finish: {type: constant, value: 0.1}\n";
    let loaded = loaded(yaml, &["--run.seed=5", "rewards.lambda_parallel.steps=7", "run.name=null"]).unwrap();
    assert_eq!((loaded.config.run.seed, loaded.config.run.name.as_str()), (5, "parl"));
    assert_eq!(
        loaded.config.rewards.lambda_finish,
        parl_rewards::schedule::Schedule::Constant { value: 0.1 }
    );
    assert_eq!(loaded.config.rewards.lambda_parallel.length(), 7);
    assert_eq!(loaded.origins["run.seed"], Origin::Override(1));
    assert!(matches!(loaded.origins["rewards.lambda_finish"], Origin::File { line: 5, column: 3, .. }));
}

#[test]
fn an_advantage_that_nobody_chose_is_the_objective_s() {
    use parl_rewards::advantage::{Baseline, Rule, Scale};
    let rule = |yaml: &str| {
        let config = loaded(yaml, &[]).unwrap().config;
        assert!(config.rewards.baseline.is_some() && config.rewards.scale.is_some());
        config.rewards.rule()
    };
    let (mean, scaled) = (Rule::default(), Rule { baseline: Baseline::Mean, scale: Scale::Std });
    let others = Rule { baseline: Baseline::LeaveOneOut, scale: Scale::None };
    let named = [("k25", mean), ("grpo", scaled), ("dapo", scaled), ("gspo", scaled), ("cispo", scaled)];
    for (name, wanted) in named.into_iter().chain([("rloo", others), ("dr_grpo", mean)]) {
        assert_eq!(rule(&format!("learner:\n  objective: {{type: {name}}}\n")), wanted, "{name}");
    }
    assert_eq!(rule("learner:\n  objective: {type: grpo}\nrewards:\n  scale: none\n"), mean);
    assert_eq!(rule("rewards:\n  baseline: leave_one_out\n  scale: null\n"), others);

    let length = |more: &[&str]| loaded("", more).unwrap().config.learner.objective;
    let of = ["rollout.orchestrator.max_context_tokens=999", "learner.objective={type: dr_grpo}"];
    let found = length(&of);
    assert!(matches!(found, crate::learner::Objective::DrGrpo { length: Some(999), .. }), "{found:?}");
    let found = length(&[of[0], of[1], "learner.objective.length=7"]);
    assert!(matches!(found, crate::learner::Objective::DrGrpo { length: Some(7), .. }), "{found:?}");
}

#[test]
fn a_config_reads_back_what_it_resolved_to() {
    let resolved = serde_json::to_value(Config::default()).unwrap();
    let back: Config = serde_json::from_value(resolved.clone()).unwrap();
    assert_eq!(back, Config::default());
    assert!(check::check(&schema::<Config>(), &resolved).is_empty());
    let mut other = resolved.clone();
    other["run"]["max_steps"] = 99.into();
    other["run"]["seed"] = 4.into();
    let found = differences(&resolved, &other, &["run.max_steps"]);
    assert_eq!(found, [Difference { key: "run.seed".into(), old: 0.into(), new: 4.into() }]);
}

/// Every key of the schema, made wrong in every way that its type allows, is refused by name.
#[test]
fn no_key_takes_a_wrong_value_in_silence() {
    let resolved = serde_json::to_value(Config::default()).unwrap();
    let mut leaves = Vec::new();
    collect("", &resolved, &mut leaves);
    assert!(leaves.len() > 40, "{}", leaves.len());
    for (key, value) in leaves {
        let mut wrong = vec!["[1]", "{a: 1}"];
        match value {
            Value::Number(n) if n.is_f64() => {
                wrong.extend(["x", "true", "-1e9", "-0.5", "1e30", ".nan", ".inf"]);
            }
            // A seed may be any number from 0.
            Value::Number(_) => wrong.extend(["x", "true", "0.5", "-1", "1e30"]),
            Value::Bool(_) => wrong.extend(["x", "1"]),
            _ => wrong.extend(["1", "true"]),
        }
        for bad in wrong {
            let text = format!("{key}={bad}");
            let error = loaded("", &[&text]).map(|_| ()).expect_err(&text);
            let named = error.contains(&key) || error.contains(key.rsplit_once('.').map_or("", |k| k.0));
            assert!(named && error.starts_with("override #1"), "{text}: {error}");
        }
        let (parent, name) = key.rsplit_once('.').unwrap();
        let typo = format!("{parent}.{name}x=1");
        let error = loaded("", &[&typo]).map(|_| ()).expect_err(&typo);
        assert!(error.contains("unknown key; did you mean"), "{error}");
    }
}

fn collect(path: &str, value: &Value, leaves: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| collect(&source::join(path, k), v, leaves)),
        Value::Null => {}
        other => leaves.push((path.to_owned(), other.clone())),
    }
}
