//! Our side of scripts/bench/gpu: `gpu decode|update|share|mixed|learner SHAPE cpu|cuda f32|bf16 [ROWS]`, random weights
//! of a named shape, one JSON line; `decode` for one number of rows where that is given.
#![expect(clippy::print_stdout, reason = "the line is the program's output")]

mod measure;
mod sizes;

use parl_kernels::backend::Backend;
use parl_kernels::cpu::CpuBackend;
use parl_kernels::cuda::CudaBackend;
use parl_kernels::cuda::cache::{Cubins, InMemory};
use parl_kernels::cuda::card::Card;
use parl_kernels::cuda::step::Limits;
use parl_kernels::weights::Dtype;
use parl_trainer::learner::Place;
use parl_trainer::run::cubins::{self, InFolder};
use sizes::Sizes;

type Failure = Box<dyn std::error::Error>;

/// Of the card's memory, what libtorch may take beside keys and values, and where there are none.
const SHARES: (f64, f64) = (0.6, 0.95);

/// Where it all happens, as a run has it: engine and learner on one stream.
fn machine(
    mode: &str,
    device: &str,
    dtype: Dtype,
    sizes: &Sizes,
) -> Result<(Place, Box<dyn Backend>), Failure> {
    match device {
        "cpu" => Ok((Place::cpu_like_card(dtype), Box::new(CpuBackend::default()))),
        "cuda" => {
            let cubins: Box<dyn Cubins> = match cubins::folder(|name| std::env::var(name).ok()) {
                Some(folder) => Box::new(InFolder::new(&folder)),
                None => Box::<InMemory>::default(),
            };
            let mut card = Card::open(0, cubins)?;
            Place::find_card()?;
            let place = Place::card(dtype, if mode == "learner" { SHARES.1 } else { SHARES.0 })?;
            place.lend_stream(&mut card)?;
            if std::env::var("PARL_LIBRARY").is_ok() {
                card.use_library()?;
            }
            let limits = Limits { tokens: sizes.step_tokens as usize, rows: sizes.rows() };
            let mut backend = CudaBackend::new(card, limits)?;
            if std::env::var("PARL_KV_FP8").is_ok() {
                backend.keep_fp8();
            }
            Ok((place, Box::new(backend)))
        }
        other => Err(format!("`{other}` is none of cpu, cuda").into()),
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, shape, device, dtype, ref more @ ..] =
        arguments.iter().map(String::as_str).collect::<Vec<_>>()[..]
    else {
        return Err("give decode|update|share|mixed|learner, a shape, cpu|cuda, f32|bf16".into());
    };
    let dtype = match dtype {
        "f32" => Dtype::F32,
        "bf16" => Dtype::Bf16,
        other => return Err(format!("`{other}` is none of f32, bf16").into()),
    };
    let sizes = Sizes::of(shape)?;
    let side = || -> Result<measure::Side, Failure> {
        let (place, backend) = machine(mode, device, dtype, &sizes)?;
        measure::Side::new(&sizes, place, backend)
    };
    let line = match mode {
        "decode" => side()?.decode(more.first().map(|rows| rows.parse()).transpose()?)?,
        "update" => side()?.update()?,
        "share" => side()?.share()?,
        "mixed" => side()?.mixed()?,
        "learner" => side()?.learner()?,
        other => return Err(format!("`{other}` is none of decode, update, share, mixed, learner").into()),
    };
    println!("{line}");
    Ok(())
}
