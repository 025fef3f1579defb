//! `trainer report` and `trainer watch`: a run as one HTML page, from its files alone.

pub mod choose;
pub mod episode;
pub mod page;
pub mod series;
pub mod source;
pub mod watch;

use std::path::{Path, PathBuf};

use parl_rollout::dialect::Dialect;
use parl_rollout::durable;
use parl_rollout::trajectory::record::EpisodeRecord;

use crate::error::TrainerError;
use page::Block;
use source::{Page, Source};

/// Most bytes of texts in a page, so that a browser opens it; the first episode is shown however long it is.
const MOST_BYTES: usize = 96 << 20;

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// The page.
    pub file: PathBuf,
    /// Its length in bytes.
    pub bytes: usize,
    /// Training steps on its curves.
    pub steps: usize,
    /// Episodes on its timeline.
    pub episodes: usize,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// Writes the page of a run to `out`, `report.html` in the run's folder unless given. Shows the episodes of these
/// ids, or a choice of its own where there are none.
///
/// # Errors
/// [`TrainerError::Folder`] when there is no run or no such episode; [`TrainerError::Rollout`] when the disk fails.
pub fn report(run: &Path, out: Option<&Path>, episodes: &[String]) -> Result<Written, TrainerError> {
    let mut source = Source::open(run)?;
    let figures = source.figures()?;
    let mut shown = source.episodes(episodes)?;
    let mut blocks: Vec<Block> = Vec::new();
    let mut kept = Vec::new();
    for (view, record) in shown.episodes.drain(..).zip(&shown.records) {
        let texts = texts(kept.len(), record, shown.dialect.as_ref())?;
        let bytes = |blocks: &[Block]| blocks.iter().map(|b| b.json.len()).sum::<usize>();
        if !kept.is_empty() && bytes(&blocks) + bytes(&texts) > MOST_BYTES {
            let why = "with it the page would be too long; --episode shows it alone";
            shown.episode_notes.push(format!("episode {} is left out: {why}", view.id));
            continue;
        }
        blocks.extend(texts);
        kept.push(view);
    }
    shown.episodes = kept;
    let data = page::json(&Page { figures: &figures, episodes: &shown })?;
    // First, so that the program need not search for it behind the texts.
    blocks.insert(0, Block { name: "data".to_owned(), json: data });
    let html = page::html(&blocks, false);
    let file = out.map_or_else(|| run.join("report.html"), Path::to_owned);
    durable::write_atomic(&file, html.as_bytes())?;
    Ok(Written {
        file,
        bytes: html.len(),
        steps: figures.series.lines,
        episodes: shown.episodes.len(),
        notes: [figures.notes, shown.episode_notes].concat(),
    })
}

fn texts(at: usize, record: &EpisodeRecord, dialect: Option<&Dialect>) -> Result<Vec<Block>, TrainerError> {
    let block = |agent: u32| {
        episode::texts(record, agent, dialect)
            .map(|texts| Ok(Block { name: format!("texts-{at}-{agent}"), json: page::json(&texts)? }))
    };
    record.agents.iter().filter_map(|agent| block(agent.agent_idx)).collect()
}
