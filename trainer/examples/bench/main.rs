//! Our side of scripts/bench/peers: `bench step|sample|decode1|learner WORK [completions]`.
//!
//! It says with one JSON line that it is ready. Each line `go` on standard input is one repetition of the work in the
//! file WORK and one JSON line with its seconds; with the last argument the line has the tokens and log-probs as well.
//! It ends with its input. So a driver can take turns with other programs that stay alive.
#![expect(clippy::print_stdout, reason = "the lines are the program's output")]

mod side;
mod work;

use std::io::BufRead;
use std::path::Path;

use parl_kernels::cpu::CpuBackend;
use serde_json::{Value, json};
use side::{Done, Mode, Side};

fn line(done: &Done, completions: bool) -> Result<Value, serde_json::Error> {
    let mut line = serde_json::to_value(done)?;
    if completions {
        let told = |(ids, logprobs): &(Vec<u32>, Vec<f32>)| json!({"ids": ids, "logprobs": logprobs});
        line["completions"] = done.completions.iter().map(told).collect();
    }
    Ok(line)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mode, file, completions) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [mode, file] => (mode, file, false),
        [mode, file, "completions"] => (mode, file, true),
        _ => return Err("give step|sample|decode1|learner, a file, and `completions` to be told them".into()),
    };
    let mode = match mode {
        "step" => Mode::Step,
        "sample" => Mode::Sample,
        "decode1" => Mode::Decode1,
        "learner" => Mode::Learner,
        other => return Err(format!("`{other}` is none of step, sample, decode1, learner").into()),
    };
    let work = work::read(Path::new(file))?;
    rayon::ThreadPoolBuilder::new().num_threads(work.threads).build_global()?;
    let mut side = Side::new(work)?;
    let (version, level) = (env!("CARGO_PKG_VERSION"), CpuBackend::default().level().name());
    println!("{}", json!({"ready": true, "versions": {"parl": version}, "cpu_level": level}));
    for (index, input) in std::io::stdin().lock().lines().enumerate() {
        let input = input?;
        if input != "go" {
            return Err(format!("the line `{input}` is not `go`").into());
        }
        println!("{}", line(&side.repeat(mode, index)?, completions)?);
    }
    Ok(())
}
