//! Cuts the rows of a plan into steps of the card, and lays a step's data out in the words that its kernels read.

use std::collections::HashSet;

use crate::backend::{PlanRow, Sampling};
use crate::rng::RngKey;

/// Queries of a block of prefill attention, as `attention.cuh` has it.
pub const PREFILL_QUERIES: usize = 64;

/// Consecutive tokens of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which row of the group.
    pub row: usize,
    /// First token of the row's input.
    pub first: usize,
    /// Tokens, at least one.
    pub tokens: usize,
    /// Whether the row's draw follows these tokens.
    pub draws: bool,
}

/// What a step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens, at least 1.
    pub tokens: usize,
    /// Rows, at least 1.
    pub rows: usize,
}

/// Pieces that go through the layers together; those of one token come first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// The pieces.
    pub pieces: Vec<Piece>,
}

impl Step {
    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.pieces.iter().map(|p| p.tokens).sum()
    }

    /// Pieces of one token.
    pub fn decode_rows(&self) -> usize {
        self.pieces.iter().filter(|p| p.tokens == 1).count()
    }
}

/// Cuts `rows` into steps. A row that does not fit is cut; its pieces stand in later and later steps, so that each
/// finds the keys and values of those before it.
pub fn cut(rows: &[PlanRow], limits: Limits) -> Vec<Step> {
    let (mut steps, mut step, mut room) = (Vec::new(), Step::default(), limits.tokens);
    for (index, row) in rows.iter().enumerate() {
        let mut first = 0;
        while first < row.tokens.len() {
            if room == 0 || step.pieces.len() == limits.rows {
                steps.push(std::mem::take(&mut step));
                room = limits.tokens;
            }
            let tokens = room.min(row.tokens.len() - first);
            let last = first + tokens == row.tokens.len();
            step.pieces.push(Piece { row: index, first, tokens, draws: last && row.draw.is_some() });
            (first, room) = (first + tokens, room - tokens);
        }
    }
    if !step.pieces.is_empty() {
        steps.push(step);
    }
    for step in &mut steps {
        step.pieces.sort_by_key(|p| p.tokens > 1);
    }
    steps
}

/// How many of each thing a step's data has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Tokens.
    pub tokens: usize,
    /// Rows.
    pub rows: usize,
    /// Tiles of prefill attention.
    pub tiles: usize,
    /// Tokens after which logits are made.
    pub outputs: usize,
    /// Entries of block tables.
    pub blocks: usize,
}

/// Words of each kind of record, as `types.cuh` has them.
const TOKEN: usize = 4;
const ROW: usize = 4;
const TILE: usize = 2;
const DRAW: usize = 10;

/// Counts before the records: tokens, rows of one token, tiles, outputs; and four words to keep the rest aligned.
const COUNTS: usize = 8;

/// Where the parts of a step's data begin, in words of 4 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Tokens, then the other counts; see [`Count`].
    pub counts: usize,
    /// Token records.
    pub tokens: usize,
    /// Row records.
    pub rows: usize,
    /// Draw records, one for each output.
    pub draws: usize,
    /// Tile records.
    pub tiles: usize,
    /// For each output its token's place in the step.
    pub outputs: usize,
    /// Block tables, one after the other.
    pub tables: usize,
    /// All of it.
    pub words: usize,
}

/// The places of the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Tokens.
    Tokens = 0,
    /// Rows of one token.
    DecodeRows = 1,
    /// Tiles.
    Tiles = 2,
    /// Outputs.
    Outputs = 3,
}

impl Layout {
    /// The layout for `room`.
    pub fn new(room: Room) -> Self {
        let tokens = COUNTS;
        let rows = tokens + TOKEN * room.tokens;
        let draws = rows + ROW * room.rows;
        let tiles = draws + DRAW * room.outputs;
        let outputs = tiles + TILE * room.tiles;
        let tables = outputs + room.outputs;
        Self { counts: 0, tokens, rows, draws, tiles, outputs, tables, words: tables + room.blocks }
    }
}

/// After which tokens logits are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outputs {
    /// After the last token of the rows that draw.
    Draws,
    /// After every token.
    Every,
}

/// What a step needs room for.
pub fn room(step: &Step, rows: &[PlanRow], group: usize, block_tokens: usize, outputs: Outputs) -> Room {
    let tiles = |p: &Piece| if p.tokens == 1 { 0 } else { (p.tokens * group).div_ceil(PREFILL_QUERIES) };
    let blocks = |p: &Piece| (rows[p.row].start as usize + p.first + p.tokens).div_ceil(block_tokens);
    Room {
        tokens: step.tokens(),
        rows: step.pieces.len(),
        tiles: step.pieces.iter().map(tiles).sum(),
        outputs: match outputs {
            Outputs::Draws => step.pieces.iter().filter(|p| p.draws).count(),
            Outputs::Every => step.tokens(),
        },
        blocks: step.pieces.iter().map(blocks).sum(),
    }
}

fn draw_words(key: &RngKey, position: u32, sampling: &Sampling) -> [u32; DRAW] {
    [
        key.seed as u32,
        (key.seed >> 32) as u32,
        key.episode as u32,
        (key.episode >> 32) as u32,
        key.purpose(),
        position,
        sampling.temperature.to_bits(),
        sampling.top_k,
        sampling.top_p.to_bits(),
        0,
    ]
}

/// The words of a step, laid out by `layout`, which has room for it; what lies between the parts is 0. The result ends
/// with the last table's last entry.
pub fn words(
    step: &Step,
    rows: &[PlanRow],
    group: usize,
    block_tokens: usize,
    outputs: Outputs,
    layout: &Layout,
) -> Vec<u32> {
    let needs = room(step, rows, group, block_tokens, outputs);
    let mut all = vec![0u32; layout.tables + needs.blocks];
    all[Count::Tokens as usize] = needs.tokens as u32;
    all[Count::DecodeRows as usize] = step.decode_rows() as u32;
    all[Count::Tiles as usize] = needs.tiles as u32;
    all[Count::Outputs as usize] = needs.outputs as u32;
    let (mut token, mut tile, mut output, mut table) = (0, 0, 0, 0);
    for (index, piece) in step.pieces.iter().enumerate() {
        let row = &rows[piece.row];
        let start = row.start as usize + piece.first;
        let blocks = (start + piece.tokens).div_ceil(block_tokens);
        let mut put = |at: usize, words: &[u32]| all[at..at + words.len()].copy_from_slice(words);
        let record = [token as u32, piece.tokens as u32, start as u32, table as u32];
        put(layout.rows + ROW * index, &record);
        put(layout.tables + table, &row.blocks[..blocks]);
        table += blocks;
        if piece.tokens > 1 {
            for first in (0..piece.tokens * group).step_by(PREFILL_QUERIES) {
                put(layout.tiles + TILE * tile, &[index as u32, first as u32]);
                tile += 1;
            }
        }
        for i in 0..piece.tokens {
            let position = start + i;
            let (block, slot) = (row.blocks[position / block_tokens], position % block_tokens);
            let record = [row.tokens[piece.first + i], position as u32, block, slot as u32];
            put(layout.tokens + TOKEN * token, &record);
            let last = piece.draws && i + 1 == piece.tokens;
            if last || outputs == Outputs::Every {
                put(layout.outputs + output, &[token as u32]);
                if let (true, Some(draw)) = (last, &row.draw) {
                    let record = draw_words(&draw.key, draw.position, &draw.sampling);
                    put(layout.draws + DRAW * output, &record);
                }
                output += 1;
            }
            token += 1;
        }
    }
    all
}

/// Cuts copies into launches inside which their order does not matter: no block is written that the launch touches
/// otherwise. None has more than `most`.
pub fn copy_waves(copies: &[(u32, u32)], most: usize) -> Vec<&[(u32, u32)]> {
    let (mut waves, mut first) = (Vec::new(), 0);
    let (mut read, mut written) = (HashSet::new(), HashSet::new());
    for (i, &(from, to)) in copies.iter().enumerate() {
        if written.contains(&from) || written.contains(&to) || read.contains(&to) || i - first == most {
            waves.push(&copies[first..i]);
            first = i;
            read.clear();
            written.clear();
        }
        read.insert(from);
        written.insert(to);
    }
    if first < copies.len() {
        waves.push(&copies[first..]);
    }
    waves
}
