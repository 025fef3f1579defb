//! Writes a run for a page to be tried on: `synthetic_run FOLDER AGENTS CALLS`. Its first step holds a hostile episode,
//! its second one with so many sub-agents of so many model calls each.

use std::path::Path;

use parl_tests::synthetic::{dialect, episode, hostile, write_run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, agents, calls] = arguments.as_slice() else {
        return Err("give FOLDER AGENTS CALLS".into());
    };
    let dialect = dialect()?;
    let plain = |field: &str| format!("{field} of a large swarm, in some words that a model might say");
    let small = episode("s000000-g0000-e0000", 12, 5, &dialect, &hostile)?;
    let large = episode("s000001-g0000-e0000", agents.parse()?, calls.parse()?, &dialect, &plain)?;
    write_run(Path::new(folder), &[small, large], &hostile)
}
