//! The generated world: from a seed, thousands of entities with attributes and links, guilds that list some of
//! them, a short prose document for each, and an endless stream of tasks about them.
//!
//! Everything is words with a space between: a word-level tokenizer of [`vocabulary`] reads all of it. Entities
//! and guilds of held-out tasks never appear in training tasks, nor in the documents that these lead to.

mod ask;
mod config;
mod draw;
mod prose;
#[cfg(test)]
mod tests;
mod words;
mod world;

pub use config::{AtlasConfig, AttributePairs, MAX_ITEMS, TaskMix};
pub use prose::facts_in;
pub use words::vocabulary;

use draw::{Draws, Purpose};
use world::World;

use super::{Document, Split, Task, TaskSource};
use crate::RolloutError;

/// The world of one configuration.
#[derive(Debug, Clone)]
pub struct AtlasWorld {
    config: AtlasConfig,
    world: World,
    documents: Vec<Document>,
}

impl AtlasWorld {
    /// Makes the world.
    ///
    /// # Errors
    /// [`RolloutError::Config`] with the first setting that is out of bounds.
    pub fn new(config: &AtlasConfig) -> Result<Self, RolloutError> {
        if let Some((key, message)) = config.validate().into_iter().next() {
            return Err(RolloutError::Config { key, message });
        }
        let world = World::new(config);
        let documents = documents(config.seed, &world);
        Ok(Self { config: config.clone(), world, documents })
    }
}

/// One document an entity, then one a guild.
fn documents(seed: u64, world: &World) -> Vec<Document> {
    let entities = world.entities.iter().enumerate().map(|(index, entity)| {
        let text = prose::describe(world, entity, &mut Draws::new(seed, Purpose::Prose, index as u64));
        (entity.name.clone(), text)
    });
    let guilds =
        world.guilds.iter().map(|guild| (format!("guild {}", guild.name), prose::list_members(world, guild)));
    let ids = world::document_ids(seed, world.entities.len() + world.guilds.len());
    let pages = ids.into_iter().zip(entities.chain(guilds));
    pages.map(|(id, (title, text))| Document { id, title, text }).collect()
}

impl TaskSource for AtlasWorld {
    fn task(&self, split: Split, index: u64) -> Task {
        ask::draw(&self.config, &self.world, split, index)
    }

    fn documents(&self) -> &[Document] {
        &self.documents
    }

    fn name(&self) -> &'static str {
        "atlas"
    }
}
