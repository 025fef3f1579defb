//! One Parquet file: a table's rows of one step.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;

use super::Table;
use crate::RolloutError;
use crate::durable;

/// Rows of a row group; token rows are long.
fn row_group_rows(table: Table) -> usize {
    if table == Table::Tokens { 512 } else { 65_536 }
}

/// What all our Parquet files have in common.
pub(super) fn zstd() -> Result<WriterPropertiesBuilder, RolloutError> {
    let level = ZstdLevel::try_new(3).map_err(|e| RolloutError::Log(e.to_string()))?;
    Ok(WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_created_by(format!("parl {}", env!("CARGO_PKG_VERSION"))))
}

fn properties(table: Table) -> Result<WriterProperties, RolloutError> {
    let mut properties = zstd()?.set_max_row_group_row_count(Some(row_group_rows(table)));
    if table == Table::Tokens {
        // Ids and log-probs hardly repeat within a page: a dictionary and min/max would only cost.
        for list in ["token_ids", "logprobs", "advantages", "loss_mask"] {
            let column = ColumnPath::from(vec![list.to_owned(), "list".to_owned(), "element".to_owned()]);
            properties = properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_statistics_enabled(column.clone(), EnabledStatistics::None);
            if list == "logprobs" || list == "advantages" {
                properties = properties.set_column_encoding(column, Encoding::BYTE_STREAM_SPLIT);
            }
        }
    }
    Ok(properties.build())
}

/// Writes and syncs `batch` under a temporary name.
pub(super) fn write(partial: &Path, table: Table, batch: &RecordBatch) -> Result<(), RolloutError> {
    let properties = properties(table)?;
    durable::write_synced(partial, |file| encode(file, batch, properties))
}

/// Writes `batch` as a Parquet file.
pub(super) fn encode(file: &mut File, batch: &RecordBatch, properties: WriterProperties) -> io::Result<()> {
    let mut writer = ArrowWriter::try_new(file, Arc::clone(batch.schema_ref()), Some(properties))
        .map_err(io::Error::other)?;
    writer.write(batch).map_err(io::Error::other)?;
    writer.close().map_err(io::Error::other)?;
    Ok(())
}
