//! Reads a step's tables back as the records that they were written from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, UInt64Type};
use arrow::error::ArrowError;
use arrow::json::LineDelimitedWriter;
use arrow::record_batch::RecordBatch;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Table;
use super::record::EpisodeRecord;
use super::table_in::open;
use crate::RolloutError;

/// A row with the episode that it belongs to.
#[derive(Deserialize)]
struct Keyed<T> {
    episode_id: String,
    #[serde(flatten)]
    row: T,
}

/// The episodes of a step, in the order of their table, with their rows of the other tables.
pub(super) fn episodes(
    path: impl Fn(Table) -> Result<PathBuf, RolloutError>,
) -> Result<Vec<EpisodeRecord>, RolloutError> {
    let mut episodes: Vec<EpisodeRecord> = rows(&path(Table::Episodes)?)?;
    let mut agents = by_episode(&path(Table::Agents)?)?;
    let mut steps = by_episode(&path(Table::Steps)?)?;
    let mut branches = by_episode(&path(Table::Tokens)?)?;
    let mut parts = by_episode(&path(Table::Rewards)?)?;
    for episode in &mut episodes {
        let id = &episode.episode_id;
        episode.agents = agents.remove(id).unwrap_or_default();
        episode.steps = steps.remove(id).unwrap_or_default();
        episode.branches = branches.remove(id).unwrap_or_default();
        if let Some(scored) = &mut episode.scored {
            scored.parts = parts.remove(id).unwrap_or_default();
        }
    }
    Ok(episodes)
}

fn by_episode<T: DeserializeOwned>(path: &Path) -> Result<HashMap<String, Vec<T>>, RolloutError> {
    let mut grouped: HashMap<String, Vec<T>> = HashMap::new();
    for Keyed { episode_id, row } in rows(path)? {
        grouped.entry(episode_id).or_default().push(row);
    }
    Ok(grouped)
}

/// All rows of the Parquet file at `path`.
fn rows<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, RolloutError> {
    let corrupt = |message: String| RolloutError::Corrupt { path: path.to_path_buf(), message };
    let reader = open(path)?;
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| corrupt(error.to_string()))?;
        let mut json = LineDelimitedWriter::new(Vec::new());
        let written = numeric(&batch).and_then(|batch| json.write(&batch)).and_then(|()| json.finish());
        written.map_err(|error| corrupt(error.to_string()))?;
        for row in serde_json::Deserializer::from_slice(&json.into_inner()).into_iter() {
            rows.push(row.map_err(|error| corrupt(format!("row {}: {error}", rows.len() + 1)))?);
        }
    }
    Ok(rows)
}

/// The batch with times as microseconds, and with seeds as the unsigned numbers that they are.
fn numeric(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        let column: ArrayRef = match (field.name().as_str(), field.data_type()) {
            (_, DataType::Timestamp(_, _)) => cast(column, &DataType::Int64)?,
            ("seed", DataType::Int64) => {
                Arc::new(column.as_primitive::<Int64Type>().unary::<_, UInt64Type>(|seed| seed as u64))
            }
            _ => Arc::clone(column),
        };
        fields.push(Field::new(field.name(), column.data_type().clone(), field.is_nullable()));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}
