//! A line of `metrics.jsonl` as Prometheus reads it: the text exposition format, version 0.0.4.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Map, Value};

/// All numbers of a metrics line as gauges with the run as their label. `reward/mean` is `parl_reward_mean`, and
/// `parl/speedup` is `parl_speedup`. Of two figures that come out under one name the first stands; what is no number
/// is left out.
pub fn exposition(run_id: &str, line: &Map<String, Value>) -> String {
    let run = escaped(run_id).replace('"', "\\\"");
    let mut out = String::new();
    let mut seen = BTreeSet::new();
    for (key, value) in line {
        let (name, Value::Number(value)) = (metric_name(key), value) else { continue };
        if seen.contains(&name) {
            continue;
        }
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP {name} {} of metrics.jsonl", escaped(key));
        let _ = writeln!(out, "# TYPE {name} gauge\n{name}{{run=\"{run}\"}} {value}");
        seen.insert(name);
    }
    out
}

/// A name of letters, digits and `_`, under `parl_`.
fn metric_name(key: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("parl_{}", key.strip_prefix("parl/").unwrap_or(key).chars().map(plain).collect::<String>())
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_gauges_with_valid_and_unique_names() {
        let line = json!({
            "step": 7,
            "reward/mean": 0.25,
            "parl/speedup": 1e-7,
            "success/two hop/mean": 1.0,
            "success/two-hop/mean": 0.0,
            "optim/refused": "the loss is NaN",
            "loss/mean": null,
            "odd\\key\n": -3,
        });
        let text = exposition("a\"b\\c\nd", line.as_object().unwrap());
        let wanted = [
            "# HELP parl_step step of metrics.jsonl",
            "# TYPE parl_step gauge",
            r#"parl_step{run="a\"b\\c\nd"} 7"#,
            "# HELP parl_reward_mean reward/mean of metrics.jsonl",
            "# TYPE parl_reward_mean gauge",
            r#"parl_reward_mean{run="a\"b\\c\nd"} 0.25"#,
            "# HELP parl_speedup parl/speedup of metrics.jsonl",
            "# TYPE parl_speedup gauge",
            r#"parl_speedup{run="a\"b\\c\nd"} 1e-7"#,
            "# HELP parl_success_two_hop_mean success/two hop/mean of metrics.jsonl",
            "# TYPE parl_success_two_hop_mean gauge",
            r#"parl_success_two_hop_mean{run="a\"b\\c\nd"} 1.0"#,
            r"# HELP parl_odd_key_ odd\\key\n of metrics.jsonl",
            "# TYPE parl_odd_key_ gauge",
            r#"parl_odd_key_{run="a\"b\\c\nd"} -3"#,
            "",
        ];
        assert_eq!(text, wanted.join("\n"));
        assert_eq!(exposition("r", &Map::new()), "");
    }
}
