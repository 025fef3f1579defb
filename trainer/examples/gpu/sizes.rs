//! The named shapes, and how much is done on each.

use parl_kernels::shape::ModelShape;

/// A shape and its amounts.
#[derive(Debug, Clone)]
pub struct Sizes {
    /// Of the model.
    pub shape: ModelShape,
    /// Rows of the decode steps measured.
    pub batches: &'static [u32],
    /// Positions before the first decode step, a multiple of a block's.
    pub context: u32,
    /// Decode steps timed.
    pub steps: u32,
    /// Tokens of a step of the engine, at most.
    pub step_tokens: u32,
    /// Sub-agents of the episode, and tokens of the prefix that all have.
    pub agents: u32,
    /// See `agents`.
    pub prefix: u32,
    /// Samples of an update, and tokens of each.
    pub samples: u32,
    /// See `samples`.
    pub sample_tokens: u32,
}

impl Sizes {
    /// By name.
    ///
    /// # Errors
    /// For a name that is none.
    pub fn of(name: &str) -> Result<Self, String> {
        let (hidden, layers, heads, head_dim, ffn) = match name {
            "qwen2.5-0.5b" => (896, 24, 14, 64, 4864),
            "qwen2.5-1.5b" => (1536, 28, 12, 128, 8960),
            // For tests of this program.
            "tiny" => (64, 2, 4, 16, 96),
            other => return Err(format!("`{other}` is none of qwen2.5-0.5b, qwen2.5-1.5b, tiny")),
        };
        let tiny = name == "tiny";
        let shape = ModelShape {
            vocab: if tiny { 256 } else { 151_936 },
            hidden,
            layers,
            heads,
            kv_heads: 2,
            head_dim,
            ffn,
            max_positions: if tiny { 256 } else { 4096 },
            rope_theta: 1e6,
            rms_eps: 1e-6,
            qkv_bias: true,
            qk_norm: false,
            tied_head: true,
        };
        Ok(if tiny {
            Self {
                shape,
                batches: &[1, 3],
                context: 32,
                steps: 3,
                step_tokens: 64,
                agents: 4,
                prefix: 64,
                samples: 4,
                sample_tokens: 32,
            }
        } else {
            Self {
                shape,
                batches: &[1, 32, 256],
                context: 1024,
                steps: 64,
                step_tokens: 8192,
                agents: 100,
                prefix: 2048,
                samples: 16,
                sample_tokens: 1024,
            }
        })
    }

    /// Rows of a step of the engine, at most.
    pub fn rows(&self) -> usize {
        self.batches.iter().copied().max().unwrap_or(1).max(self.agents) as usize
    }
}
