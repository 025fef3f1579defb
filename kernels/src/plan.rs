//! The rules of a plan, checked before anything runs.

use crate::KernelError;
use crate::backend::{BlockId, Plan, PlanRow};
use crate::shape::ModelShape;

/// The blocks that a backend reserved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reserved {
    /// How many.
    pub(crate) blocks: u32,
    /// Positions in each.
    pub(crate) block_tokens: u32,
}

impl Reserved {
    /// # Errors
    /// [`KernelError::Plan`] when either is 0.
    pub(crate) fn new(blocks: u32, block_tokens: u32) -> Result<Self, KernelError> {
        if blocks == 0 || block_tokens == 0 {
            return Err(KernelError::Plan(format!(
                "reserving {blocks} blocks of {block_tokens} tokens: both must be at least 1"
            )));
        }
        Ok(Self { blocks, block_tokens })
    }
}

/// Which blocks the plan at hand writes; kept between plans, so that a check allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Writers {
    plan: u64,
    /// Per block the last plan that wrote it.
    written: Vec<u64>,
}

fn refuse<T>(text: String) -> Result<T, KernelError> {
    Err(KernelError::Plan(text))
}

/// Checks `plan` against the rules of [`PlanRow`]; `shape` gives the model of a set.
///
/// Besides, no row may read a block that a row of the plan writes past: parallel rows would race.
///
/// # Errors
/// [`KernelError::Plan`] naming group, row, value and bound; [`KernelError::Sampling`] for a draw's parameters.
pub(crate) fn check<'a>(
    plan: &Plan,
    reserved: Reserved,
    shape: impl Fn(&crate::backend::SetId) -> Option<&'a ModelShape>,
    writers: &mut Writers,
) -> Result<(), KernelError> {
    writers.plan += 1;
    writers.written.resize(reserved.blocks as usize, 0);
    for &(from, to) in &plan.copies {
        for block in [from, to] {
            if block >= reserved.blocks {
                return refuse(format!(
                    "copy {from} to {to}: block {block} is out of range 0..{}",
                    reserved.blocks
                ));
            }
        }
    }
    for (g, group) in plan.groups.iter().enumerate() {
        let Some(shape) = shape(&group.set) else {
            return refuse(format!("group {g}: set {} is not installed", group.set.0));
        };
        for (r, row) in group.rows.iter().enumerate() {
            check_row(row, shape, reserved)
                .map_err(|text| KernelError::Plan(format!("group {g} row {r}: {text}")))?;
            if let Some(draw) = &row.draw {
                draw.sampling.validate()?;
            }
            for &block in writes(row, reserved) {
                let last = &mut writers.written[block as usize];
                if *last == writers.plan {
                    return refuse(format!("group {g} row {r}: block {block} is written twice"));
                }
                *last = writers.plan;
            }
        }
    }
    // Only now are all writers known.
    for (g, group) in plan.groups.iter().enumerate() {
        for (r, row) in group.rows.iter().enumerate() {
            let before = &row.blocks[..(row.start / reserved.block_tokens) as usize];
            if let Some(block) = before.iter().find(|&&b| writers.written[b as usize] == writers.plan) {
                return refuse(format!("group {g} row {r}: block {block} is read here and written by a row"));
            }
        }
    }
    Ok(())
}

/// The blocks that a checked row writes.
fn writes(row: &PlanRow, reserved: Reserved) -> &[BlockId] {
    let first = (row.start / reserved.block_tokens) as usize;
    let end = (row.start as usize + row.tokens.len()).div_ceil(reserved.block_tokens as usize);
    &row.blocks[first..end]
}

fn check_row(row: &PlanRow, shape: &ModelShape, reserved: Reserved) -> Result<(), String> {
    if row.tokens.is_empty() {
        return Err("there are no tokens".to_owned());
    }
    let end = row.start as usize + row.tokens.len();
    if end > shape.max_positions {
        return Err(format!("ends at position {end}, max_positions is {}", shape.max_positions));
    }
    let room = row.blocks.len() * reserved.block_tokens as usize;
    if end > room {
        return Err(format!("ends at position {end}, its {} blocks hold {room}", row.blocks.len()));
    }
    if let Some(block) = row.blocks.iter().find(|&&b| b >= reserved.blocks) {
        return Err(format!("block {block} is out of range 0..{}", reserved.blocks));
    }
    if let Some(token) = row.tokens.iter().find(|&&t| t as usize >= shape.vocab) {
        return Err(format!("token {token} is out of range 0..{}", shape.vocab));
    }
    Ok(())
}
