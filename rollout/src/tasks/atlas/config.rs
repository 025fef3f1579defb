//! Settings of the generated world.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::words::ATTRIBUTES;

/// Most items a task can name: labels run from `n1` to `n48`.
pub const MAX_ITEMS: u32 = 48;
/// Largest n of the band of wide tasks that stays solvable alone.
pub(super) const SMALL_N: u32 = 6;
/// Fewest members of a guild.
pub(super) const MIN_MEMBERS: usize = 4;
/// Most members of a guild.
pub(super) const MAX_MEMBERS: usize = 10;
/// One guild for so many entities.
pub(super) const ENTITIES_PER_GUILD: usize = 8;

/// The generated world: entities with attributes and links, guilds, and tasks about them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AtlasConfig {
    /// Seed of the world and of its stream of tasks. Another seed is another world.
    pub seed: u64,
    /// Entities, both splits together. From 200 to 2048; there is one guild for eight of them.
    pub entities: u32,
    /// Share of entities and guilds that only held-out tasks know. From 0.05 to 0.5.
    pub heldout_fraction: f64,
    /// How often each kind of task is drawn.
    pub mix: TaskMix,
    /// Fewest items of a wide task. From 1 to 48.
    pub n_min: u32,
    /// Most items of a wide task. From `n_min` to 48.
    pub n_max: u32,
    /// Share of wide tasks with at most six items, which one agent can do alone; n is uniform within the band
    /// and outside of it. Without effect when one of the two is empty. From 0 to 1.
    pub small_share: f64,
    /// Fewest links followed in a deep task. From 1 to 8.
    pub hops_min: u32,
    /// Most links followed in a deep task. From `hops_min` to 8.
    pub hops_max: u32,
    /// Share of wide and mixed tasks that ask for two attributes of each item. From 0 to 1.
    pub two_attribute_share: f64,
    /// Which pairs of attributes those ask for.
    pub attribute_pairs: AttributePairs,
}

/// Pairs of attributes, so that some can be kept for measuring what was never trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttributePairs {
    /// All of them.
    Any,
    /// All but every fifth.
    Seen,
    /// Every fifth: three pairs in which each attribute stands once.
    Unseen,
}

impl AttributePairs {
    /// Whether tasks may ask for the attributes `a` and `b`, indices into the list of attributes.
    pub(super) fn hold(self, a: usize, b: usize) -> bool {
        let unseen = a.abs_diff(b) == ATTRIBUTES.len() / 2;
        match self {
            Self::Any => true,
            Self::Seen => !unseen,
            Self::Unseen => unseen,
        }
    }
}

/// Relative weights of the kinds of tasks; they need not sum to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TaskMix {
    /// An attribute or two of n named entities.
    pub wide: f64,
    /// An attribute or two of a guild's members.
    pub mixed: f64,
    /// A chain of links, then an attribute.
    pub deep: f64,
}

impl Default for TaskMix {
    fn default() -> Self {
        Self { wide: 0.5, mixed: 0.2, deep: 0.3 }
    }
}

impl Default for AtlasConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            entities: 2000,
            heldout_fraction: 0.2,
            mix: TaskMix::default(),
            n_min: 2,
            n_max: 24,
            small_share: 0.3,
            hops_min: 1,
            hops_max: 3,
            two_attribute_share: 0.2,
            attribute_pairs: AttributePairs::Any,
        }
    }
}

impl AtlasConfig {
    /// What is out of bounds: the key below this section, and value and bound in words.
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        let mut within = |key: &str, value: f64, low: f64, high: f64| {
            // A NaN is within nothing.
            if !(low..=high).contains(&value) {
                faults.push((key.to_string(), format!("{value} is not within {low} to {high}")));
            }
        };
        within("entities", f64::from(self.entities), 200.0, 2048.0);
        within("heldout_fraction", self.heldout_fraction, 0.05, 0.5);
        within("mix.wide", self.mix.wide, 0.0, 1e6);
        within("mix.mixed", self.mix.mixed, 0.0, 1e6);
        within("mix.deep", self.mix.deep, 0.0, 1e6);
        within("n_min", f64::from(self.n_min), 1.0, f64::from(MAX_ITEMS));
        within("n_max", f64::from(self.n_max), f64::from(self.n_min), f64::from(MAX_ITEMS));
        within("small_share", self.small_share, 0.0, 1.0);
        within("hops_min", f64::from(self.hops_min), 1.0, 8.0);
        within("hops_max", f64::from(self.hops_max), f64::from(self.hops_min), 8.0);
        within("two_attribute_share", self.two_attribute_share, 0.0, 1.0);
        if self.mix.wide + self.mix.mixed + self.mix.deep == 0.0 {
            faults.push((
                "mix".to_string(),
                "all three weights are 0, at least one must be above 0".to_string(),
            ));
        }
        let heldout = self.heldout_entities();
        if faults.is_empty() && heldout < self.n_max as usize {
            let message = format!(
                "{} leaves {heldout} held-out entities, fewer than n_max ({})",
                self.heldout_fraction, self.n_max
            );
            faults.push(("heldout_fraction".to_string(), message));
        }
        if faults.is_empty() && heldout < MAX_MEMBERS {
            let message = format!(
                "{} leaves {heldout} held-out entities, a guild may need {MAX_MEMBERS}",
                self.heldout_fraction
            );
            faults.push(("heldout_fraction".to_string(), message));
        }
        faults
    }

    /// Entities on the held-out side.
    pub(super) fn heldout_entities(&self) -> usize {
        (f64::from(self.entities) * self.heldout_fraction).round() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(AtlasConfig::default().validate(), []);
    }

    #[test]
    fn every_bound_is_checked_and_named() {
        type Change = fn(&mut AtlasConfig);
        let changes: [(&str, Change); 13] = [
            ("entities", |c| c.entities = 199),
            ("entities", |c| c.entities = 2049),
            ("heldout_fraction", |c| c.heldout_fraction = f64::NAN),
            ("mix.wide", |c| c.mix.wide = -1.0),
            ("mix.mixed", |c| c.mix.mixed = f64::INFINITY),
            ("mix.deep", |c| c.mix.deep = f64::NAN),
            ("mix", |c| c.mix = TaskMix { wide: 0.0, mixed: 0.0, deep: 0.0 }),
            ("n_min", |c| c.n_min = 0),
            ("n_max", |c| c.n_max = 49),
            ("small_share", |c| c.small_share = 1.1),
            ("hops_min", |c| c.hops_min = 0),
            ("hops_max", |c| c.hops_max = 9),
            ("heldout_fraction", |c| (c.entities, c.heldout_fraction) = (200, 0.05)),
        ];
        for (key, change) in changes {
            let mut config = AtlasConfig::default();
            change(&mut config);
            let faults = config.validate();
            assert_eq!(faults.len(), 1, "{key}: {faults:?}");
            assert_eq!(faults[0].0, key, "{faults:?}");
        }
    }
}
