//! The batch sizes and context lengths for which decode steps are captured as graphs.

/// Positions of a split of attention, as `attention.cuh` has it.
pub const SPLIT_TOKENS: usize = 128;

/// The bucket of a decode step: a graph serves every step that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket {
    /// Rows.
    pub rows: usize,
    /// Splits of the longest row.
    pub splits: usize,
}

/// The smallest bucket for `rows` rows (at least 1) of at most `positions` positions (at least 1): rows 1, 2, 4, 8,
/// then multiples of 8, above 64 multiples of 32, but at most `most_rows`; splits a power of two.
///
/// Rows that a step lacks cost idle blocks, not arithmetic: kernels read the number of rows from memory.
pub fn bucket(rows: usize, positions: usize, most_rows: usize) -> Bucket {
    let rows = match rows {
        0..=8 => rows.next_power_of_two(),
        9..=64 => rows.next_multiple_of(8),
        _ => rows.next_multiple_of(32),
    };
    Bucket { rows: rows.min(most_rows), splits: positions.div_ceil(SPLIT_TOKENS).next_power_of_two() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_step_and_there_are_few() {
        let mut sizes = std::collections::BTreeSet::new();
        for rows in 1..=300 {
            let found = bucket(rows, 1, 300);
            assert!(found.rows >= rows && found.rows <= 300, "{rows} {found:?}");
            assert!(found.rows < 2 * rows || rows == 1, "{rows} {found:?}");
            sizes.insert(found.rows);
        }
        assert_eq!(sizes.len(), 4 + 7 + 8);
        for (positions, splits) in [(1, 1), (128, 1), (129, 2), (256, 2), (257, 4), (32_768, 256)] {
            assert_eq!(bucket(1, positions, 1).splits, splits, "{positions}");
        }
    }
}
