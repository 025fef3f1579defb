//! One Parquet file: a table's rows of one step.

use std::sync::Arc;

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::Table;
use crate::RolloutError;

/// Rows of a row group; token rows are long.
fn row_group_rows(table: Table) -> usize {
    if table == Table::Tokens { 512 } else { 65_536 }
}

fn properties(table: Table) -> Result<WriterProperties, RolloutError> {
    let zstd = ZstdLevel::try_new(3).map_err(|e| RolloutError::Log(e.to_string()))?;
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(zstd))
        .set_created_by(format!("parl {}", env!("CARGO_PKG_VERSION")))
        .set_max_row_group_row_count(Some(row_group_rows(table)));
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

/// The bytes of `batch` as a Parquet file. A step's tables are in memory anyway; what is about to be written is then
/// known whole, its length and its hash included.
pub(super) fn encode(table: Table, batch: &RecordBatch) -> Result<Vec<u8>, RolloutError> {
    let properties = properties(table)?;
    let written = ArrowWriter::try_new(Vec::new(), Arc::clone(batch.schema_ref()), Some(properties))
        .and_then(|mut writer| writer.write(batch).and_then(|()| writer.into_inner()));
    written.map_err(|e| RolloutError::Log(e.to_string()))
}
