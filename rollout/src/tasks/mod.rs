//! Tasks: what an episode is asked, and how its answer is scored.

pub mod atlas;
pub mod dataset;

use parl_rewards::metrics::Metric;
use serde::{Deserialize, Serialize};

/// Which way a task wants to be worked on; only the log and the metrics know, never the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// The same question about many independent items.
    Wide,
    /// A chain of hops, each needing the one before.
    Deep,
    /// Find the set first, then ask about its members.
    Mixed,
    /// From a data set that does not say.
    Other,
}

impl TaskKind {
    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wide => "wide",
            Self::Deep => "deep",
            Self::Mixed => "mixed",
            Self::Other => "other",
        }
    }
}

/// Which side of the split a task is from; entities of one side never appear on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Trained on.
    Train,
    /// Held out.
    Heldout,
}

impl Split {
    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Heldout => "heldout",
        }
    }
}

/// One part of a task's decomposition: what a perfect planner would ask, and the answer. Scripted policies and
/// warm starts read it; no model ever does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubTask {
    /// Unique in the task.
    pub id: String,
    /// The question, in the words in which a sub-agent is asked.
    pub question: String,
    /// What to search for.
    pub query: String,
    /// The answer in the words of a final message; empty where only the page is known.
    pub answer: String,
    /// `id`s that must be known before this one can be asked.
    pub depends_on: Vec<String>,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Stable over runs.
    pub id: String,
    /// Which way it wants to be worked on.
    pub kind: TaskKind,
    /// Train or held out.
    pub split: Split,
    /// Items asked for (wide, mixed), hops (deep), parts (data sets).
    pub n_items: u32,
    /// What the orchestrator reads.
    pub prompt: String,
    /// The right answer: a string, a list or a map.
    pub answer: serde_json::Value,
    /// How an answer is compared with it.
    pub metric: Metric,
    /// The parts in an order in which they can be done.
    pub parts: Vec<SubTask>,
}

/// A document of the corpus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// What `open` takes.
    pub id: String,
    /// Shown by `search`.
    pub title: String,
    /// Shown by `open`.
    pub text: String,
}

/// Where tasks come from: a seeded cursor over an endless or finite set.
pub trait TaskSource: Send + Sync {
    /// The task at position `index` of `split`'s stream; equal arguments give equal tasks on every machine.
    fn task(&self, split: Split, index: u64) -> Task;

    /// Every document that `search` and `open` see.
    fn documents(&self) -> &[Document];

    /// The name in the log's `env_id`.
    fn name(&self) -> &str;

    /// How many different tasks `split` holds before its stream repeats; `None` when it is endless.
    fn count(&self, split: Split) -> Option<u64> {
        let _ = split;
        None
    }
}
