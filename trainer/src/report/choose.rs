//! Which episodes a page shows when nobody says.

use std::cmp::Ordering;

use parl_rollout::tasks::TaskKind;
use parl_rollout::trajectory::record::{EpisodeRecord, Status};

/// Most episodes that are chosen by themselves.
pub const MOST_EPISODES: usize = 8;
/// Most steps that are read for the choice, besides the last one.
const MOST_STEPS: usize = 16;

/// What the choice looks at.
#[derive(Debug, Clone, PartialEq)]
pub struct Digest {
    /// Training step, from 0.
    pub step: u32,
    /// Unique in the run.
    pub id: String,
    /// Kind of the task.
    pub kind: TaskKind,
    /// Items of the task.
    pub n_items: u32,
    /// How it ended.
    pub status: Status,
    /// `None` where it was not scored.
    pub reward: Option<f64>,
    /// Every item right.
    pub success: bool,
    /// Assignments made.
    pub assigned: u32,
    /// Of these, the ones that did not finish.
    pub failed: u32,
    /// Most assignments at once.
    pub at_once: u32,
    /// Critical steps.
    pub critical_steps: u32,
}

impl Digest {
    /// The digest of an episode of `step`.
    pub fn of(step: u32, record: &EpisodeRecord) -> Self {
        Self {
            step,
            id: record.episode_id.clone(),
            kind: record.task_kind,
            n_items: record.n_items,
            status: record.status,
            reward: record.scored.as_ref().map(|s| s.reward),
            success: record.scored.as_ref().is_some_and(|s| s.success),
            assigned: record.n_assigned,
            failed: record.n_assigned.saturating_sub(record.n_finished),
            at_once: record.max_concurrency,
            critical_steps: record.critical_steps,
        }
    }
}

/// The steps that are read for the choice, of all that are sealed (in order): the first, the last, and some between
/// them. As a run grows, most of them stay, so that who reads again reads little.
pub fn sampled_steps(sealed: &[u32]) -> Vec<u32> {
    let mut stride = 1;
    while sealed.len().div_ceil(stride) > MOST_STEPS {
        stride *= 2;
    }
    let mut steps: Vec<u32> = sealed.iter().copied().step_by(stride).collect();
    steps.extend(sealed.last());
    steps.dedup();
    steps
}

/// What an episode is shown for, and how one is found for it: the greatest key among those that have one, the earlier
/// of equals.
type Rule = (&'static str, fn(&Digest, Ends) -> Option<[f64; 3]>);

/// First and last step that there are episodes of.
type Ends = (u32, u32);

const RULES: [Rule; MOST_EPISODES] = [
    ("first step, widest task", |d, (first, _)| {
        (d.step == first).then(|| [f64::from(d.n_items), f64::from(d.assigned), 0.0])
    }),
    ("last step, widest task", |d, (_, last)| {
        (d.step == last).then(|| [f64::from(d.n_items), f64::from(d.assigned), 0.0])
    }),
    ("best", |d, _| Some([d.reward?, f64::from(d.n_items), -f64::from(d.critical_steps)])),
    ("worst", |d, _| Some([-d.reward?, f64::from(d.critical_steps), f64::from(d.step)])),
    ("most agents at once", |d, _| {
        (d.at_once > 0).then(|| [f64::from(d.at_once), f64::from(u8::from(d.success)), f64::from(d.step)])
    }),
    ("right in spite of failed agents", |d, _| {
        (d.success && d.failed > 0).then(|| [f64::from(d.failed), f64::from(d.assigned), f64::from(d.step)])
    }),
    ("no answer", |d, _| {
        let none = matches!(d.status, Status::Truncated | Status::Error);
        none.then(|| [f64::from(d.step), f64::from(d.critical_steps), 0.0])
    }),
    ("a chain, done alone", |d, _| {
        let alone = d.kind == TaskKind::Deep && d.success && d.assigned == 0;
        alone.then(|| [f64::from(d.step), f64::from(d.critical_steps), 0.0])
    }),
];

/// Indices of the episodes to show, each with what it is shown for; one rule after another, no episode twice.
pub fn choose(digests: &[&Digest]) -> Vec<(usize, &'static str)> {
    let steps = || digests.iter().map(|d| d.step);
    let (Some(first), Some(last)) = (steps().min(), steps().max()) else { return Vec::new() };
    let mut chosen: Vec<(usize, &'static str)> = Vec::new();
    for (name, key) in RULES {
        let free = |at: &usize| chosen.iter().all(|(taken, _)| taken != at);
        let keyed = (0..digests.len())
            .filter(free)
            .filter_map(|at| digests.get(at).and_then(|d| key(d, (first, last))).map(|key| (at, key)));
        let greatest =
            keyed.reduce(|a, b| if b.1.partial_cmp(&a.1).is_some_and(Ordering::is_gt) { b } else { a });
        chosen.extend(greatest.map(|(at, _)| (at, name)));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(step: u32, n_items: u32, reward: f64) -> Digest {
        Digest {
            step,
            id: format!("s{step}-{n_items}"),
            kind: TaskKind::Wide,
            n_items,
            status: Status::Ok,
            reward: Some(reward),
            success: reward >= 1.0,
            assigned: 0,
            failed: 0,
            at_once: 0,
            critical_steps: 5,
        }
    }

    #[test]
    fn every_rule_finds_its_episode_and_none_is_shown_twice() {
        let mut all = vec![digest(0, 3, 0.2), digest(0, 9, 0.1), digest(4, 5, 1.1), digest(9, 7, 0.5)];
        all.push(Digest { at_once: 20, assigned: 20, ..digest(5, 4, 0.6) });
        all.push(Digest { assigned: 4, failed: 2, ..digest(6, 4, 1.0) });
        all.push(Digest { status: Status::Truncated, ..digest(7, 4, 0.15) });
        all.push(Digest { kind: TaskKind::Deep, ..digest(8, 1, 1.0) });
        all.push(Digest { reward: None, status: Status::Error, ..digest(3, 1, 0.0) });
        all.push(digest(2, 2, -0.5));
        let of = |all: &[Digest]| choose(&all.iter().collect::<Vec<_>>());
        let named: Vec<(&str, u32)> = of(&all).into_iter().map(|(at, name)| (name, all[at].step)).collect();
        assert_eq!(
            named,
            [
                ("first step, widest task", 0),
                ("last step, widest task", 9),
                ("best", 4),
                ("worst", 2),
                ("most agents at once", 5),
                ("right in spite of failed agents", 6),
                ("no answer", 7),
                ("a chain, done alone", 8),
            ]
        );
        // With one episode, the first rule has it and the others go without.
        assert_eq!(of(&all[..1]), [(0, "first step, widest task")]);
        assert!(of(&[]).is_empty());
        let nan = [digest(0, 1, f64::NAN), digest(0, 1, 1.0)];
        assert_eq!(of(&nan).len(), 2);
    }

    #[test]
    fn a_bounded_number_of_steps_is_read_and_both_ends_are_among_them() {
        assert!(sampled_steps(&[]).is_empty());
        assert_eq!(sampled_steps(&[3]), [3]);
        assert_eq!(sampled_steps(&[0, 1, 5]), [0, 1, 5]);
        for n in [16, 17, 150, 1501] {
            let sealed: Vec<u32> = (0..n).collect();
            let steps = sampled_steps(&sealed);
            assert!(
                steps.len() <= MOST_STEPS + 1 && steps[0] == 0 && steps.last() == Some(&(n - 1)),
                "{steps:?}"
            );
            assert!(steps.windows(2).all(|pair| pair[0] < pair[1]));
        }
        // One step more changes one step that is read.
        let read = |n: u32| sampled_steps(&(0..n).collect::<Vec<_>>());
        let (before, after) = (read(150), read(151));
        assert!(after.iter().filter(|step| !before.contains(step)).count() <= 1);
    }
}
