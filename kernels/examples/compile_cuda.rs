//! Compiles every CUDA kernel for sm_80 and sm_90a (no card, no driver) and holds what each takes against
//! `kernels/cuda/resources.json`. With `--print` it prints such a file instead of checking.
//!
//! `cargo run --release --workspace --example compile_cuda [-- --print]`
#![expect(clippy::print_stdout, reason = "the report is the program's output")]

use std::collections::BTreeMap;
use std::process::ExitCode;

use parl_kernels::KernelError;
use parl_kernels::cuda::compile::{Compiler, Target};
use parl_kernels::cuda::driver::Types;
use parl_kernels::cuda::resources::Resources;
use parl_kernels::cuda::sources::{Source, sources};
use parl_kernels::weights::Dtype;

const BOUNDS: &str = include_str!("../cuda/resources.json");

/// Heads of the shipped model, of Qwen2.5-0.5B, and of most larger ones.
const HEAD_DIMS: [usize; 3] = [32, 64, 128];

type Report = BTreeMap<String, Resources>;

/// Every kernel under `architecture/element/kernel`, those that depend on it under `…/head_dim/kernel`.
fn compile_all(compiler: Compiler) -> Result<(Report, Vec<String>), KernelError> {
    let (mut report, mut warnings) = (Report::new(), Vec::new());
    for architecture in ["sm_80", "sm_90a"] {
        for (types, name) in [
            (Types::plain(Dtype::F32), "f32"),
            (Types::plain(Dtype::Bf16), "bf16"),
            (Types { element: Dtype::Bf16, kv_fp8: true }, "bf16-fp8"),
        ] {
            for head_dim in HEAD_DIMS {
                let target = Target { architecture: architecture.to_owned(), types, head_dim };
                // Most kernels do not look at keys and values.
                let of_interest = |source: &Source| !types.kv_fp8 || source.text.contains("Stored");
                for source in sources(types.element).filter(of_interest) {
                    let place = if source.text.contains("HEAD_DIM") {
                        format!("{architecture}/{name}/{head_dim}")
                    } else if head_dim == HEAD_DIMS[0] {
                        format!("{architecture}/{name}")
                    } else {
                        continue;
                    };
                    let compiled = compiler.compile(&source, &target)?;
                    for (kernel, resources) in compiled.resources {
                        report.insert(format!("{place}/{kernel}"), resources);
                    }
                    warnings
                        .extend(compiled.log.lines().filter(|l| l.contains("warning")).map(str::to_owned));
                }
            }
        }
    }
    Ok((report, warnings))
}

/// What the report breaks of the bounds; a kernel without bounds and bounds without a kernel count too.
fn broken(report: &Report, bounds: &Report) -> Vec<String> {
    let mut all = Vec::new();
    for (kernel, found) in report {
        match bounds.get(kernel) {
            Some(bound) => all.extend(found.above(bound).into_iter().map(|text| format!("{kernel}: {text}"))),
            None => all.push(format!("{kernel}: there are no bounds for it")),
        }
    }
    all.extend(
        bounds.keys().filter(|k| !report.contains_key(*k)).map(|k| format!("{k}: there is no such kernel")),
    );
    all
}

/// The report as JSON, a kernel a line.
fn as_file(report: &Report) -> Result<String, serde_json::Error> {
    let line = |(name, resources)| Ok(format!("  \"{name}\": {}", serde_json::to_string(resources)?));
    let lines = report.iter().map(line).collect::<Result<Vec<String>, serde_json::Error>>()?;
    Ok(format!("{{\n{}\n}}", lines.join(",\n")))
}

fn main() -> ExitCode {
    let check = || -> Result<Vec<String>, String> {
        let compiler = Compiler::find().map_err(|e| e.to_string())?;
        let (report, warnings) = compile_all(compiler).map_err(|e| e.to_string())?;
        if std::env::args().any(|a| a == "--print") {
            println!("{}", as_file(&report).map_err(|e| e.to_string())?);
            return Ok(warnings);
        }
        let bounds: Report = serde_json::from_str(BOUNDS).map_err(|e| format!("resources.json: {e}"))?;
        let (major, minor) = compiler.version();
        println!("NVRTC {major}.{minor} compiled {} kernels", report.len());
        Ok([warnings, broken(&report, &bounds)].concat())
    };
    let faults = check().unwrap_or_else(|error| vec![error]);
    for fault in &faults {
        println!("compile_cuda: error: {fault}");
    }
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
