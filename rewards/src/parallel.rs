//! r_parallel, the instantiation reward: it counters serial collapse, the habit of working alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::Assignment;

/// min(n, `n_cap`) / `n_cap`, where n is the most *different* prompts that were assigned in one stage
/// (choice: identical prompts count once, so copies of one order earn nothing). `n_cap` below 1 counts as 1.
pub fn r_parallel(assignments: &[Assignment<'_>], n_cap: u32) -> f64 {
    let mut prompts: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
    for assignment in assignments {
        prompts.entry(assignment.stage).or_default().insert(assignment.prompt.trim());
    }
    let concurrent = prompts.values().map(BTreeSet::len).max().unwrap_or(0) as u32;
    let cap = n_cap.max(1);
    f64::from(concurrent.min(cap)) / f64::from(cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(stage: u32, prompt: &str) -> Assignment<'_> {
        Assignment { stage, prompt, finished: true, env_calls: 2 }
    }

    #[test]
    fn different_prompts_of_one_stage_count_up_to_the_cap() {
        let cases: [(&[Assignment<'_>], f64); 5] = [
            (&[], 0.0),
            (&[asked(0, "a")], 0.25),
            (&[asked(0, "a"), asked(0, "a"), asked(0, " a ")], 0.25),
            (&[asked(0, "a"), asked(0, "b"), asked(1, "c")], 0.5),
            (&[asked(0, "a"), asked(0, "b"), asked(0, "c"), asked(0, "d"), asked(0, "e")], 1.0),
        ];
        for (assignments, wanted) in cases {
            assert!((r_parallel(assignments, 4) - wanted).abs() < 1e-15, "{assignments:?}");
        }
    }
}
