//! What a run's episodes happen in: tasks, tools, dialect, rules and policies, made from the config.

use std::path::Path;
use std::sync::Arc;

use parl_rollout::RolloutError;
use parl_rollout::config::{PolicyConfig, RolloutConfig};
use parl_rollout::dialect::{Dialect, frequent_words, tokenizer_json};
use parl_rollout::durable;
use parl_rollout::swarm::{EpisodeSpec, Rules, observation};
use parl_rollout::tasks::atlas::{self, AtlasWorld};
use parl_rollout::tasks::dataset::DatasetSource;
use parl_rollout::tasks::{Split, Task, TaskSource};
use parl_rollout::tools::corpus::{self, CorpusTools};
use parl_rollout::tools::{ToolOutcome, Tools};

use crate::config::{Config, TasksConfig};

/// Random streams of evaluations lie above those of training.
const EVAL_STREAMS: u64 = 1 << 63;
/// Each seed has its own stretch of the stream of tasks.
const TASKS_PER_SEED: u64 = 1 << 32;

/// Warm starts draw their tasks from stretches above those of runs.
const DEMONSTRATIONS: u64 = 1 << 31;

/// The model whose tokenizer the contexts are spelt with, if some seat has one.
fn model_folder(rollout: &RolloutConfig) -> Option<&str> {
    [&rollout.orchestrator.policy, &rollout.subagent.policy].into_iter().find_map(|policy| match policy {
        PolicyConfig::Local { model, .. } => Some(model.as_str()),
        PolicyConfig::Scripted { .. } => None,
    })
}

/// What an episode's draws are keyed by, and which of the config's sub-agents it has.
#[derive(Clone, Copy)]
struct Key {
    stream_id: u64,
    subagents: usize,
}

/// Everything that episodes need, besides a policy.
pub struct Environment {
    source: Box<dyn TaskSource>,
    /// `search` and `open`.
    pub tools: CorpusTools,
    /// The tokenizer and its template.
    pub dialect: Arc<Dialect>,
    /// The `tokenizer.json` of the dialect.
    pub tokenizer_json: Vec<u8>,
    /// The rules of episodes.
    pub rules: Rules,
    /// Words that a tokenizer made for these tasks spells with one id each.
    pub words: Vec<String>,
    /// Ids of those that a data set brought, and not the generated world or the swarm.
    pub own_ids: Vec<u32>,
    seed: u64,
}

/// The words of the generated world and of the swarm around it: the shipped dialect's vocabulary.
pub fn vocabulary() -> Vec<String> {
    let mut words = atlas::vocabulary();
    let more: Vec<String> =
        observation::words().into_iter().map(str::to_owned).filter(|w| !words.contains(w)).collect();
    words.extend(more);
    words
}

/// The words of a tokenizer made for the config's tasks.
fn words_of(config: &Config, source: &dyn TaskSource) -> Vec<String> {
    let mut words = vocabulary();
    if let TasksConfig::Dataset(dataset) = &config.tasks {
        let prompts: Vec<String> = (0..source.count(Split::Train).unwrap_or(0))
            .map(|i| source.task(Split::Train, i).prompt)
            .collect();
        let pages = source.documents().iter().flat_map(|d| [d.title.as_str(), d.text.as_str()]);
        let texts = pages.chain(prompts.iter().map(String::as_str));
        words.extend(frequent_words(texts, dataset.vocabulary_words as usize, &words));
    }
    words
}

/// What the ids of a training step's episodes begin with.
pub fn step_prefix(step: u64) -> String {
    format!("s{step:06}")
}

impl Environment {
    /// Makes the world or reads the data set, and indexes it.
    ///
    /// # Errors
    /// What the world, the data set or the index refuse.
    pub fn new(config: &Config) -> Result<Self, RolloutError> {
        Self::with_tokenizer_of(config, model_folder(&config.rollout))
    }

    /// As [`Environment::new`], with the tokenizer of the model in `folder`, or one made for the tasks.
    ///
    /// # Errors
    /// As [`Environment::new`].
    pub fn with_tokenizer_of(config: &Config, folder: Option<&str>) -> Result<Self, RolloutError> {
        let source: Box<dyn TaskSource> = match &config.tasks {
            TasksConfig::Atlas(atlas) => Box::new(AtlasWorld::new(atlas)?),
            TasksConfig::Dataset(dataset) => Box::new(DatasetSource::open(dataset)?),
        };
        let tools = CorpusTools::new(source.documents(), config.rollout.search.top_k as usize)?;
        let words = words_of(config, source.as_ref());
        let tokenizer_json = match folder {
            Some(folder) => durable::read(&Path::new(folder).join("tokenizer.json"))?,
            None => tokenizer_json(&words)?.into_bytes(),
        };
        let dialect = Arc::new(Dialect::from_json(&tokenizer_json)?);
        let rules = config.rollout.rules(tools.specs());
        let single = |word: &String| match dialect.encode_text(word).as_deref() {
            Ok([id]) => Some(*id),
            _ => None,
        };
        let own_ids = words.iter().skip(vocabulary().len()).filter_map(single).collect();
        Ok(Self { source, tools, dialect, tokenizer_json, rules, words, own_ids, seed: config.run.seed })
    }

    /// The first document that a search finds.
    pub fn read_about(&self, query: &str) -> Option<String> {
        let ok = |outcome| match outcome {
            Some(ToolOutcome::Ok(text)) => Some(text),
            _ => None,
        };
        let found = ok(self.tools.call(corpus::SEARCH, &[query.to_owned()]))?;
        let id = corpus::first_hit(query, &found)?;
        ok(self.tools.call(corpus::OPEN, &[id.to_owned()]))
    }

    /// Tasks of `split` before its stream repeats.
    pub fn count(&self, split: Split) -> Option<u64> {
        self.source.count(split)
    }

    fn spec(&self, name: &str, task: &Arc<Task>, group: u64, member: u32, key: Key) -> EpisodeSpec {
        EpisodeSpec {
            episode_id: format!("{name}-g{group:04}-e{member:04}"),
            group_id: format!("{name}-g{group:04}"),
            env_id: self.source.name().to_owned(),
            run_seed: self.seed,
            stream_id: key.stream_id,
            subagents: key.subagents,
            task: Arc::clone(task),
        }
    }

    /// The episode of the warm start with this number; its tasks are training tasks of a stretch of their own.
    pub fn demonstration_spec(&self, number: u64) -> EpisodeSpec {
        let task = self
            .source
            .task(Split::Train, (DEMONSTRATIONS + self.seed).wrapping_mul(TASKS_PER_SEED) + number);
        self.spec("sft", &Arc::new(task), number, 0, Key { stream_id: number, subagents: 0 })
    }

    /// The episodes of a training step, group after group.
    pub fn training_specs(&self, config: &Config, step: u64) -> Vec<EpisodeSpec> {
        let (tasks, size) = (u64::from(config.rollout.tasks_per_step), config.rollout.group_size);
        let first = self.seed.wrapping_mul(TASKS_PER_SEED).wrapping_add(step * tasks);
        let subagents = config.rollout.subagent.number_at(step);
        let mut specs = Vec::new();
        for group in 0..tasks {
            let task = Arc::new(self.source.task(Split::Train, first.wrapping_add(group)));
            for member in 0..size {
                let stream_id = (step * tasks + group) * u64::from(size) + u64::from(member);
                let key = Key { stream_id, subagents };
                specs.push(self.spec(&step_prefix(step), &task, group, member, key));
            }
        }
        specs
    }

    /// The first `n` held-out tasks, one episode each, the same ones for every policy and seed of the world; the sub-agents
    /// are the `subagents`-th of the config's.
    pub fn heldout_specs(&self, n: u32, subagents: usize) -> Vec<EpisodeSpec> {
        let n = self.count(Split::Heldout).map_or(u64::from(n), |count| count.min(u64::from(n)));
        (0..n)
            .map(|i| {
                let task = Arc::new(self.source.task(Split::Heldout, i));
                self.spec("eval", &task, i, 0, Key { stream_id: EVAL_STREAMS | i, subagents })
            })
            .collect()
    }
}
