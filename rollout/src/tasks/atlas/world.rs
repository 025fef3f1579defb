//! The facts of the world: who there is, what they have, whom they know.

use std::ops::Range;

use super::config::{AtlasConfig, ENTITIES_PER_GUILD, MAX_MEMBERS, MIN_MEMBERS};
use super::draw::{Draws, Purpose};
use super::words::{ATTRIBUTES, FIRST, LINKS, NUMBERS, SECOND, label};
use crate::tasks::Split;

/// Links that each entity has, of the kinds in [`LINKS`].
pub(super) const LINKS_EACH: usize = 2;

/// Someone in the world.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entity {
    /// Two words.
    pub(super) name: String,
    /// One value for each of [`ATTRIBUTES`].
    pub(super) values: [&'static str; ATTRIBUTES.len()],
    /// For each of [`LINKS`], the entity at its other end, of the same split.
    pub(super) links: [Option<usize>; LINKS.len()],
}

/// A named set of entities of one split.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Guild {
    /// Two words, a pair that no entity is called by.
    pub(super) name: String,
    /// Indices into [`World::entities`], in the order of the guild's document.
    pub(super) members: Vec<usize>,
}

/// All facts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct World {
    /// First those to train on, then the held-out ones.
    pub(super) entities: Vec<Entity>,
    /// First those to train on, then the held-out ones.
    pub(super) guilds: Vec<Guild>,
    train_entities: usize,
    train_guilds: usize,
}

impl World {
    /// The world of `config`, which is valid.
    pub(super) fn new(config: &AtlasConfig) -> Self {
        let n_entities = config.entities as usize;
        let n_guilds = n_entities / ENTITIES_PER_GUILD;
        let train_entities = n_entities - config.heldout_entities();
        let heldout_guilds = (n_guilds as f64 * config.heldout_fraction).round().max(1.0) as usize;
        let train_guilds = n_guilds - heldout_guilds;

        // Guilds and entities share the words but no pair of words: a search for one never finds the other.
        let mut pairs: Vec<usize> = (0..FIRST.len() * SECOND.len()).collect();
        Draws::new(config.seed, Purpose::World, 0).shuffle(&mut pairs);
        let name = |position: usize| {
            let pair = pairs[position];
            format!("{} {}", FIRST[pair / SECOND.len()], SECOND[pair % SECOND.len()])
        };
        let mut world = Self { entities: Vec::new(), guilds: Vec::new(), train_entities, train_guilds };
        for index in 0..n_entities {
            let mut draws = Draws::new(config.seed, Purpose::World, 1 + index as u64);
            let peers = if index < train_entities { 0..train_entities } else { train_entities..n_entities };
            let values = ATTRIBUTES.map(|(_, values)| draws.pick(&values));
            let links = links(&mut draws, index, &peers);
            world.entities.push(Entity { name: name(index), values, links });
        }
        for index in 0..n_guilds {
            let mut draws = Draws::new(config.seed, Purpose::World, (1 + n_entities + index) as u64);
            let side = if index < train_guilds { 0..train_entities } else { train_entities..n_entities };
            let count = draws.between(MIN_MEMBERS, MAX_MEMBERS);
            let members =
                draws.distinct(count, side.len()).iter().map(|member| side.start + member).collect();
            world.guilds.push(Guild { name: name(n_entities + index), members });
        }
        world
    }

    /// Indices of `split`'s entities.
    pub(super) fn entities_of(&self, split: Split) -> Range<usize> {
        match split {
            Split::Train => 0..self.train_entities,
            Split::Heldout => self.train_entities..self.entities.len(),
        }
    }

    /// Indices of `split`'s guilds.
    pub(super) fn guilds_of(&self, split: Split) -> Range<usize> {
        match split {
            Split::Train => 0..self.train_guilds,
            Split::Heldout => self.train_guilds..self.guilds.len(),
        }
    }

    /// `n1 amber falcon ; n2 stone heron`: entities with their labels.
    pub(super) fn labelled(&self, members: &[usize]) -> String {
        let items = members.iter().enumerate();
        let items =
            items.map(|(position, member)| format!("{} {}", label(position), self.entities[*member].name));
        items.collect::<Vec<_>>().join(" ; ")
    }
}

/// [`LINKS_EACH`] links of `index` to distinct others among `peers`.
fn links(draws: &mut Draws, index: usize, peers: &Range<usize>) -> [Option<usize>; LINKS.len()] {
    let mut links = [None; LINKS.len()];
    let targets = draws.distinct(LINKS_EACH, peers.len() - 1);
    for (kind, target) in draws.distinct(LINKS_EACH, LINKS.len()).into_iter().zip(targets) {
        let target = peers.start + target;
        // The numbers leave out `index` itself: those from it on move up by one.
        links[kind] = Some(if target >= index { target + 1 } else { target });
    }
    links
}

/// `count` document ids of two number words, in an order that tells nothing of what they name.
pub(super) fn document_ids(seed: u64, count: usize) -> Vec<String> {
    let ids = Draws::new(seed, Purpose::Ids, 0).distinct(count, NUMBERS * NUMBERS);
    ids.iter().map(|id| format!("{} {}", id / NUMBERS, id % NUMBERS)).collect()
}
