//! A request and how far it is.

use parl_kernels::backend::{BlockId, Sampling, SetId};
use parl_kernels::rng::RngKey;
use serde::{Deserialize, Serialize};

use super::blocks::{ContentId, ROOT};

/// Names a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What is drawn of a request that is not complete.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begun {
    /// Drawn tokens.
    pub ids: Vec<u32>,
    /// Their log-probs.
    pub logprobs: Vec<f32>,
    /// Runs of one weight version over `ids`: `(start, end, version)`.
    pub versions: Vec<(u32, u32, u64)>,
    /// Ticks since it was submitted.
    pub waited: u64,
}

/// A context to go on with.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Names it; unique among those under way.
    pub id: RequestId,
    /// Whose weights.
    pub set: SetId,
    /// The whole context, at least one token.
    pub prompt: Vec<u32>,
    /// What was drawn after it earlier; fewer tokens than may be.
    pub begun: Begun,
    /// Tokens to draw at most, those of `begun` included.
    pub max_new_tokens: u32,
    /// Drawing one of these ends it.
    pub stop: Vec<u32>,
    /// How to draw.
    pub sampling: Sampling,
    /// The random stream; a token's counter is its position in the context.
    pub key: RngKey,
    /// Ticks after which it ends unfinished; 0 waits for ever.
    pub deadline_ticks: u64,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token, which is among the ids.
    Stop,
    /// Out of tokens.
    Length,
    /// Out of ticks.
    Deadline,
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Which request.
    pub id: RequestId,
    /// Drawn tokens.
    pub ids: Vec<u32>,
    /// Their log-probs.
    pub logprobs: Vec<f32>,
    /// Runs of one weight version over `ids`: `(start, end, version)`.
    pub versions: Vec<(u32, u32, u64)>,
    /// Why it ended.
    pub finish: Finish,
    /// Tick at which it was first computed.
    pub first_tick: u64,
    /// Context tokens that were not computed again.
    pub cached_tokens: u32,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub request: Request,
    /// Prompt and drawn tokens.
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub versions: Vec<(u32, u32, u64)>,
    /// Positions whose KV is in `blocks`.
    pub computed: usize,
    pub blocks: Vec<BlockId>,
    /// Contents of the blocks that are published, in order.
    pub contents: Vec<ContentId>,
    pub submitted_tick: u64,
    /// Ticks that it had waited by then, in another engine.
    pub waited: u64,
    pub first_tick: Option<u64>,
    pub cached_tokens: u32,
}

impl Sequence {
    pub fn new(mut request: Request, tick: u64) -> Self {
        let begun = std::mem::take(&mut request.begun);
        Self {
            tokens: [request.prompt.as_slice(), &begun.ids].concat(),
            request,
            logprobs: begun.logprobs,
            versions: begun.versions,
            computed: 0,
            blocks: Vec::new(),
            contents: Vec::new(),
            submitted_tick: tick,
            waited: begun.waited,
            first_tick: None,
            cached_tokens: 0,
        }
    }

    /// The content that the next block to be published comes after.
    pub fn parent(&self) -> ContentId {
        self.contents.last().copied().unwrap_or(ROOT)
    }

    pub fn drawn(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    pub fn push(&mut self, id: u32, logprob: f32, version: u64) {
        let at = self.drawn() as u32;
        match self.versions.last_mut() {
            Some(run) if run.2 == version => run.1 = at + 1,
            _ => self.versions.push((at, at + 1, version)),
        }
        self.tokens.push(id);
        self.logprobs.push(logprob);
    }

    pub fn finished(&self) -> Option<Finish> {
        let drawn = self.drawn();
        match self.tokens.last() {
            Some(last) if drawn > 0 && self.request.stop.contains(last) => Some(Finish::Stop),
            _ if drawn as u32 >= self.request.max_new_tokens => Some(Finish::Length),
            _ => None,
        }
    }

    /// Ticks since it was submitted, as of `tick`.
    pub fn age(&self, tick: u64) -> u64 {
        self.waited + tick - self.submitted_tick
    }

    pub fn begun(&self, tick: u64) -> Begun {
        Begun {
            ids: self.tokens[self.request.prompt.len()..].to_vec(),
            logprobs: self.logprobs.clone(),
            versions: self.versions.clone(),
            waited: self.age(tick),
        }
    }

    pub fn complete(self, finish: Finish, tick: u64) -> Completion {
        Completion {
            id: self.request.id,
            ids: self.tokens[self.request.prompt.len()..].to_vec(),
            logprobs: self.logprobs,
            versions: self.versions,
            finish,
            first_tick: self.first_tick.unwrap_or(tick),
            cached_tokens: self.cached_tokens,
        }
    }
}
