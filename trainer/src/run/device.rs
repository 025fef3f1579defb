//! What a run computes on: the CPU, or a card where all that it needs is found, its memory planned before any is taken.

use parl_kernels::KernelError;
use parl_kernels::backend::Backend;
use parl_kernels::cpu::CpuBackend;
use parl_kernels::cuda::CudaBackend;
use parl_kernels::cuda::cache::{Cubins, InMemory};
use parl_kernels::cuda::card::Card;
use parl_kernels::cuda::driver::{Driver, Types};
use parl_kernels::cuda::launches::MOST_ACROSS;
use parl_kernels::cuda::memory::MemoryPlan;
use parl_kernels::cuda::step::Limits;
use parl_kernels::shape::ModelShape;
use parl_kernels::weights::Dtype;
use parl_rollout::RolloutError;
use parl_rollout::config::RolloutMode;
use parl_rollout::engine::KvCacheDtype;

use super::cubins::{self, InFolder};
use crate::config::{Config, Device};
use crate::error::TrainerError;
use crate::learner::Place;

/// A model that is to be seated.
pub struct Model<'m> {
    /// Whose it is.
    pub name: String,
    /// Its sizes.
    pub shape: &'m ModelShape,
    /// Whether it is trained.
    pub trained: bool,
}

/// What was found.
pub struct Found {
    /// Where the learner's tensors lie.
    pub place: Place,
    /// What draws.
    pub backend: Box<dyn Backend>,
    /// What to tell of it at the start of a run.
    pub notes: Vec<String>,
}

/// What the config wishes for, for these models; all that is needed of a card is planned, and nothing of it is taken.
///
/// # Errors
/// [`RolloutError::Config`] where a card is wished for and something is missing, or what is needed does not fit;
/// [`RolloutError::Kernel`] when a card fails.
pub fn find(config: &Config, models: &[Model<'_>]) -> Result<Found, TrainerError> {
    let dtype = config.run.dtype.into();
    match decide(config.run.device, open)? {
        Ok(card) => on_card(config, models, types(config, true)?, card),
        Err(notes) => types(config, false).map(|_| Found {
            place: Place::cpu(dtype),
            backend: Box::new(CpuBackend::default()),
            notes,
        }),
    }
}

/// The card that `open` gives, or what to tell where it is the CPU.
fn decide<C>(
    wish: Device,
    open: impl FnOnce() -> Result<C, String>,
) -> Result<Result<C, Vec<String>>, TrainerError> {
    match (wish, (wish != Device::Cpu).then(open)) {
        (_, None) => Ok(Err(Vec::new())),
        (_, Some(Ok(card))) => Ok(Ok(card)),
        (Device::Cuda, Some(Err(missing))) => Err(refuse(missing)),
        (_, Some(Err(missing))) => Ok(Err(vec![format!("on the CPU, not on a card: {missing}")])),
    }
}

/// The types that the engine is to compute in.
///
/// # Errors
/// [`RolloutError::Config`] for keys and values that are wished for in fp8 where that cannot be.
fn types(config: &Config, card: bool) -> Result<Types, TrainerError> {
    let (element, kv_fp8) =
        (config.run.dtype.into(), config.rollout.engine.kv_cache_dtype == KvCacheDtype::Fp8);
    let missing = match element {
        _ if !kv_fp8 => None,
        _ if !card => Some("a card, and local models are on the CPU: take `auto`"),
        Dtype::F32 => Some("run.dtype bf16, which is f32: take `auto`, or bf16"),
        Dtype::Bf16 => None,
    };
    match missing {
        Some(missing) => Err(RolloutError::Config {
            key: "rollout.engine.kv_cache_dtype".to_owned(),
            message: format!("fp8 wants {missing}"),
        }
        .into()),
        None => Ok(Types { element, kv_fp8 }),
    }
}

fn refuse(message: String) -> TrainerError {
    RolloutError::Config { key: "run.device".to_owned(), message }.into()
}

/// The first card, if all that it needs is found; what is missing otherwise.
fn open() -> Result<Card, String> {
    let cubins: Box<dyn Cubins> = match cubins::folder(|name| std::env::var(name).ok()) {
        Some(folder) => Box::new(InFolder::new(&folder)),
        None => Box::<InMemory>::default(),
    };
    let card = Card::open(0, cubins).map_err(|e| e.to_string())?;
    Place::find_card().map_err(|e| e.to_string())?;
    Ok(card)
}

fn on_card(
    config: &Config,
    models: &[Model<'_>],
    types: Types,
    mut card: Card,
) -> Result<Found, TrainerError> {
    let kernel = |e: KernelError| TrainerError::from(RolloutError::from(e));
    let (learner, engine) = plans(config, models, types);
    let (free, total) = (card.free_bytes().map_err(kernel)?, card.total_bytes().map_err(kernel)?);
    let share = share(&learner, &engine, free, total)?;
    let notes = told(&learner, &engine, card.architecture(), free, share);
    let place = Place::card(types.element, share)?;
    match config.rollout.mode {
        RolloutMode::Sync => place.lend_stream(&mut card).map_err(kernel)?,
        RolloutMode::Async => place.part_streams(&mut card).map_err(kernel)?,
    }
    if !config.run.deterministic {
        card.use_library().map_err(kernel)?;
    }
    let mut backend = CudaBackend::new(card, limits(config)).map_err(kernel)?;
    if types.kv_fp8 {
        backend.keep_fp8();
    }
    Ok(Found { place, backend: Box::new(backend), notes })
}

/// What a step of the engine may hold; a larger batch is cut into steps.
fn limits(config: &Config) -> Limits {
    let engine = &config.rollout.engine;
    let most = |key: u32| (key as usize).min(MOST_ACROSS);
    Limits { tokens: most(engine.max_batch_tokens), rows: most(engine.max_running) }
}

/// What libtorch takes, and what is taken beside it.
fn plans(config: &Config, models: &[Model<'_>], types: Types) -> (MemoryPlan, MemoryPlan) {
    let dtype = types.element;
    let (mut learner, mut engine) = (MemoryPlan::default(), MemoryPlan::default());
    for model in models {
        learner.weights(&model.name, model.shape, dtype);
    }
    for Model { name, shape, .. } in models.iter().filter(|model| model.trained) {
        if config.rollout.mode == RolloutMode::Async {
            learner.copy(&format!("{name}, copied for the engine"), shape, dtype);
        }
        // The gradients added up and those of one micro-batch, and two moments, in f32; in bf16 besides its own
        // gradient, and what the weights are in f32.
        learner.optimizer(shape, if dtype == Dtype::F32 { 16 } else { 22 });
        let context = config.rollout.orchestrator.max_context_tokens;
        learner.learner(shape, dtype, u64::from(config.learner.micro_batch_tokens.max(context)));
    }
    let shapes: Vec<&ModelShape> = models.iter().map(|model| model.shape).collect();
    let blocks = &config.rollout.engine;
    let pool = (blocks.kv_blocks, blocks.block_tokens);
    engine.engine(&shapes, types, limits(config), pool, !config.run.deterministic);
    engine.libraries();
    (learner, engine)
}

/// The share of the card's memory that libtorch may take: all that is free and not the engine's.
///
/// # Errors
/// [`RolloutError::Config`] with the arithmetic when both do not fit together.
fn share(learner: &MemoryPlan, engine: &MemoryPlan, free: u64, total: u64) -> Result<f64, TrainerError> {
    let whole = MemoryPlan { lines: [&learner.lines[..], &engine.lines].concat() };
    whole.check(free).map_err(|e| refuse(e.to_string()))?;
    Ok((free - engine.total()) as f64 / total.max(free) as f64)
}

/// The plan as lines.
fn told(learner: &MemoryPlan, engine: &MemoryPlan, architecture: &str, free: u64, share: f64) -> Vec<String> {
    let whole = MemoryPlan { lines: [&learner.lines[..], &engine.lines].concat() };
    let free = free as f64 / f64::from(1 << 20);
    let mut notes =
        vec![format!("on card 0 ({architecture}), {free:.1} MiB of its memory are free; planned:")];
    notes.extend(whole.to_string().lines().map(str::to_owned));
    notes.push(format!("libtorch may take {:.1}% of the card's memory", 100.0 * share));
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_taken_where_there_is_one_and_asked_for_where_it_must_be() {
        let missing = || Err::<i32, _>("libcuda.so is not found".to_owned());
        assert_eq!(decide(Device::Auto, || Ok(7)).unwrap(), Ok(7));
        assert_eq!(decide(Device::Cuda, || Ok(7)).unwrap(), Ok(7));
        let note = decide(Device::Auto, missing).unwrap().unwrap_err();
        assert_eq!(note, ["on the CPU, not on a card: libcuda.so is not found"]);
        let error = decide(Device::Cuda, missing).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.exit_code()),
            ("run.device: libcuda.so is not found", 2)
        );
        // Nothing is looked for.
        assert_eq!(decide::<i32>(Device::Cpu, || panic!("looked")).unwrap(), Err(Vec::new()));
    }

    fn shape(layers: usize) -> ModelShape {
        ModelShape {
            vocab: 100,
            hidden: 64,
            layers,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            ffn: 96,
            max_positions: 512,
            rope_theta: 1e4,
            rms_eps: 1e-6,
            qkv_bias: true,
            qk_norm: false,
            tied_head: true,
        }
    }

    #[test]
    fn what_a_run_takes_is_told_by_line_and_refused_whole() {
        let (mut config, trained, frozen) = (Config::default(), shape(2), shape(3));
        let model = |name: &str, shape, trained| Model { name: name.to_owned(), shape, trained };
        let models = [
            model("the orchestrator", &trained, true),
            model("sub-agents", &trained, false),
            model("later sub-agents", &frozen, false),
        ];
        let bf16 = Types::plain(Dtype::Bf16);
        let (learner, engine) = plans(&config, &models, bf16);
        let names = |plan: &MemoryPlan| plan.lines.iter().map(|l| l.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&learner).iter().filter(|n| n.starts_with("weights of ")).count(), 3);
        assert_eq!(names(&learner).iter().filter(|n| *n == "optimizer").count(), 1);
        // Two of the models share their blocks.
        assert_eq!(names(&engine).iter().filter(|n| *n == "keys and values").count(), 2);
        let all = learner.total() + engine.total();
        let share_of = |free, total| share(&learner, &engine, free, total);
        // What is left over is libtorch's.
        let got = share_of(all + 1000, 2 * all).unwrap();
        assert!((got - (learner.total() + 1000) as f64 / (2 * all) as f64).abs() < 1e-12, "{got}");
        let error = share_of(all - 1, 2 * all).unwrap_err();
        let text = error.to_string();
        for wanted in [
            &format!("run.device: memory: {all} bytes are needed, {} are free", all - 1),
            "weights of the orchestrator: ",
            "lower ",
            "MiB  in all",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        assert_eq!(error.exit_code(), 2);
        let told = told(&learner, &engine, "sm_90a", 1 << 30, 0.5);
        assert_eq!(told[0], "on card 0 (sm_90a), 1024.0 MiB of its memory are free; planned:");
        assert_eq!(told.last().unwrap(), "libtorch may take 50.0% of the card's memory");
        assert_eq!(told.len(), 3 + learner.lines.len() + engine.lines.len());
        // Beside an update the engine reads a copy of what is trained.
        config.rollout.mode = RolloutMode::Async;
        let (beside, _) = plans(&config, &models, bf16);
        let copied = "weights of the orchestrator, copied for the engine";
        assert!(names(&beside).iter().any(|name| name == copied), "{beside}");
        let copy = beside.total() - learner.total();
        assert_eq!(copy, learner.lines[0].bytes, "{beside}");
    }

    #[test]
    fn keys_and_values_in_fp8_want_a_card_and_weights_in_bf16() {
        let mut config = Config::default();
        assert_eq!(types(&config, false).unwrap(), Types::plain(Dtype::F32));
        config.rollout.engine.kv_cache_dtype = KvCacheDtype::Fp8;
        let error = |config: &Config, card| types(config, card).unwrap_err().to_string();
        let key = "rollout.engine.kv_cache_dtype: fp8 wants";
        assert!(error(&config, false).starts_with(&format!("{key} a card")));
        assert!(error(&config, true).starts_with(&format!("{key} run.dtype bf16")));
        config.run.dtype = crate::config::Dtype::Bf16;
        let fp8 = types(&config, true).unwrap();
        assert_eq!(fp8, Types { element: Dtype::Bf16, kv_fp8: true });
        // Half of the bytes, and nothing else is less.
        let shape = shape(2);
        let models = [Model { name: "sub-agents".to_owned(), shape: &shape, trained: false }];
        let bytes = |types| plans(&config, &models, types).1.lines;
        for (wide, narrow) in bytes(Types::plain(Dtype::Bf16)).iter().zip(bytes(fp8)) {
            let wanted = if narrow.name == "keys and values" { wide.bytes / 2 } else { wide.bytes };
            assert_eq!(narrow.bytes, wanted, "{}", narrow.name);
        }
    }

    #[test]
    fn a_large_batch_is_cut_into_steps_that_a_card_can_take() {
        let mut config = Config::default();
        config.rollout.engine.max_batch_tokens = 1_000_000;
        config.rollout.engine.max_running = 300;
        assert_eq!(limits(&config), Limits { tokens: MOST_ACROSS, rows: 300 });
    }
}
