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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tokens: usize, start: u32) -> PlanRow {
        PlanRow { tokens: vec![1; tokens], start, blocks: (0..100).collect(), draw: None }
    }

    #[test]
    fn every_token_is_in_one_piece_in_order_and_within_the_limits() {
        let rows: Vec<PlanRow> = [5, 1, 20, 1, 1, 3, 0, 40].map(|n| row(n, 0)).into();
        for (tokens, most_rows) in [(1, 1), (7, 3), (64, 2), (64, 100), (1000, 1000)] {
            let steps = cut(&rows, Limits { tokens, rows: most_rows });
            let mut done = vec![0; rows.len()];
            for step in &steps {
                assert!(step.tokens() <= tokens && step.pieces.len() <= most_rows && step.tokens() > 0);
                assert!(step.pieces.is_sorted_by_key(|p| p.tokens > 1));
                for piece in &step.pieces {
                    assert_eq!(piece.first, done[piece.row]);
                    done[piece.row] += piece.tokens;
                }
            }
            assert!(done.iter().zip(&rows).all(|(&done, row)| done == row.tokens.len()));
        }
        assert!(cut(&[], Limits { tokens: 1, rows: 1 }).is_empty());
    }

    #[test]
    fn words_lie_where_the_layout_says() {
        let rows = [row(3, 30), row(1, 7)];
        let step = cut(&rows, Limits { tokens: 10, rows: 10 }).remove(0);
        let needs = room(&step, &rows, 40, 16, Outputs::Every);
        assert_eq!(needs, Room { tokens: 4, rows: 2, tiles: 2, outputs: 4, blocks: 1 + 3 });
        let layout = Layout::new(Room { tokens: 9, rows: 5, tiles: 7, outputs: 11, blocks: 50 });
        let all = words(&step, &rows, 40, 16, Outputs::Every, &layout);
        assert_eq!(all[..4], [4, 1, 2, 4]);
        assert_eq!(all[layout.rows..][..8], [0, 1, 7, 0, 1, 3, 30, 1]);
        assert_eq!(all[layout.tables..], [0, 0, 1, 2]);
        assert_eq!(all[layout.tiles..][..4], [1, 0, 1, 64]);
        // Id, position, block, slot.
        assert_eq!(all[layout.tokens..][..16], [1, 7, 0, 7, 1, 30, 1, 14, 1, 31, 1, 15, 1, 32, 2, 0]);
        assert_eq!(all[layout.outputs..][..4], [0, 1, 2, 3]);
        // Records of 8-byte numbers.
        assert_eq!(layout.draws % 2, 0);
    }

    #[test]
    fn copies_of_a_launch_do_not_depend_on_each_other() {
        let copies = [(0, 1), (0, 2), (3, 4), (4, 5), (6, 3), (7, 6), (8, 8)];
        let waves = copy_waves(&copies, 100);
        assert_eq!(waves, [&copies[..3], &copies[3..5], &copies[5..]]);
        assert_eq!(copy_waves(&copies[..3], 2), [&copies[..2], &copies[2..3]]);
        assert!(copy_waves(&[], 1).is_empty());
    }
}
