//! What an inference backend is: `submit` a plan, `collect` ids and log-probs.
//!
//! The engine above knows KV *blocks* and bytes; how keys and values lie inside a block is the backend's own
//! affair. Logits leave the backend in [`Backend::logits`] alone, a debug call.

use crate::KernelError;
use crate::rng::RngKey;
use crate::weights::WeightSet;

/// Names a weight set inside a backend (0 = the trainable one, by the trainer's convention).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetId(pub u32);

/// A KV block; a block belongs to the weight set whose rows fill it.
pub type BlockId = u32;

/// How to draw the next token. Log-probs are always of softmax(logits / temperature) *before* truncation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Above 0; 0 means greedy (the log-prob is then taken at temperature 1).
    pub temperature: f32,
    /// Keep this many likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of likeliest tokens with at least this mass; 1 keeps all.
    pub top_p: f32,
}

/// Draw the token that follows a row's last input token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Temperature and truncation.
    pub sampling: Sampling,
    /// The random stream of this draw: one key and position give the same token in every batch.
    pub key: RngKey,
    /// Counter within the stream, the position of the drawn token in its sequence.
    pub position: u32,
}

/// One sequence's share of a plan: prefill when there are several tokens, decode when there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanRow {
    /// Input tokens, at least one.
    pub tokens: Vec<u32>,
    /// Position of the first input token; the KV of positions `0..start` is already in `blocks`.
    pub start: u32,
    /// Block table of the sequence, enough blocks for `start + tokens.len()` positions.
    pub blocks: Vec<BlockId>,
    /// Draw after the last input token, or only write KV.
    pub draw: Option<Draw>,
}

/// Rows under one weight set.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanGroup {
    /// Whose weights.
    pub set: SetId,
    /// The rows; no two rows of a plan write the same block, and none reads (before its `start`) a block that a
    /// row of the plan writes.
    pub rows: Vec<PlanRow>,
}

/// One forward pass of the continuous batch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Whole-block copies made before anything else (copy on write), `(from, to)`.
    pub copies: Vec<(BlockId, BlockId)>,
    /// Rows grouped by weight set.
    pub groups: Vec<PlanGroup>,
}

/// A drawn token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// The token.
    pub id: u32,
    /// Natural log of its probability under softmax(logits / temperature).
    pub logprob: f32,
}

/// What a plan gave: for each group and row in order, the token drawn where one was asked for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    /// `draws[group][row]`.
    pub draws: Vec<Vec<Option<Drawn>>>,
}

/// What taking in a weight set cost.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct InstallReport {
    /// Bytes of packed copies that the backend derived (0 when it reads the lease in place).
    pub packed_bytes: u64,
    /// Seconds that the packing took.
    pub pack_seconds: f64,
}

/// Identifies a submitted plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// An inference backend.
pub trait Backend: Send {
    /// Takes (or replaces, dropping the old lease) the weights behind `set`, and makes sure that it has KV
    /// storage for them.
    ///
    /// # Errors
    /// [`KernelError::Weights`] when the model does not fit the backend or an element is not finite.
    fn install(&mut self, set: SetId, weights: WeightSet) -> Result<InstallReport, KernelError>;

    /// Drops the lease on `set`; the memory may be written after this returns.
    fn release(&mut self, set: SetId);

    /// Reserves `blocks` KV blocks of `block_tokens` positions each, dropping all KV there was.
    ///
    /// # Errors
    /// [`KernelError::Plan`] when either is 0.
    fn reserve_kv(&mut self, blocks: u32, block_tokens: u32) -> Result<(), KernelError>;

    /// Bytes that one KV block takes for the models installed.
    fn kv_block_bytes(&self) -> u64;

    /// Starts a plan.
    ///
    /// # Errors
    /// [`KernelError::Plan`] for a plan that breaks the rules of [`PlanRow`], [`KernelError::Sampling`] for a draw
    /// out of bounds; nothing has run then.
    fn submit(&mut self, plan: &Plan) -> Result<Ticket, KernelError>;

    /// Waits for a submitted plan and returns what it drew.
    ///
    /// # Errors
    /// [`KernelError::Plan`] for a ticket that is not open; [`KernelError::Sampling`] when a row's logits were not
    /// finite (its KV is written, nothing was drawn).
    fn collect(&mut self, ticket: Ticket) -> Result<Output, KernelError>;

    /// Debug and tests: runs `plan` and returns the logits (before temperature) after every input token,
    /// `[group][row][token][vocab]`.
    ///
    /// # Errors
    /// As [`Backend::submit`].
    fn logits(&mut self, plan: &Plan) -> Result<Vec<Vec<Vec<Vec<f32>>>>, KernelError>;
}
