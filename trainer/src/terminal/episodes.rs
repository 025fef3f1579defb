//! The episodes of a step as a table.

use parl_rollout::trajectory::record::EpisodeRecord;

use super::line::{Line, Style};
use super::table::{Side, table};

const HEADINGS: [(&str, Side); 10] = [
    ("episode", Side::Left),
    ("kind", Side::Left),
    ("n", Side::Right),
    ("status", Side::Left),
    ("success", Side::Left),
    ("reward", Side::Right),
    ("critical", Side::Right),
    ("total", Side::Right),
    ("agents", Side::Right),
    ("answer", Side::Left),
];

/// A line an episode, below the headings.
pub fn lines(records: &[EpisodeRecord]) -> Vec<Line> {
    let row = |e: &EpisodeRecord| {
        let (success, reward) = match &e.scored {
            Some(scored) if scored.success => ((Style::Good, "yes"), format!("{:.3}", scored.reward)),
            Some(scored) => ((Style::Bad, "no"), format!("{:.3}", scored.reward)),
            None => ((Style::Faint, "-"), "-".to_owned()),
        };
        let plain = |text: String| (Style::Plain, text);
        vec![
            (Style::Name, e.episode_id.clone()),
            plain(e.task_kind.name().to_owned()),
            plain(e.n_items.to_string()),
            plain(e.status.name().to_owned()),
            (success.0, success.1.to_owned()),
            plain(reward),
            plain(e.critical_steps.to_string()),
            plain(e.total_steps.to_string()),
            plain(e.n_assigned.to_string()),
            (Style::Faint, e.answer.clone().or_else(|| e.error.clone()).unwrap_or_default()),
        ]
    };
    table(&HEADINGS, records.iter().map(row).collect())
}
