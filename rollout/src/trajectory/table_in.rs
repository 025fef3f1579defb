//! Reads Parquet tables from outside as JSON rows, so that one reader of rows serves both formats.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Number, Value};

use crate::RolloutError;

/// Calls `visit` with each row of the Parquet file at `path`, in order, and its number from 1. Columns are text,
/// numbers or booleans; a null is a key that is not there.
///
/// # Errors
/// [`RolloutError::Io`] when the file cannot be opened, [`RolloutError::Corrupt`] when it is no Parquet file or
/// a column has another type, and whatever `visit` returns.
pub fn for_each_row(
    path: &Path,
    visit: &mut dyn FnMut(u64, Map<String, Value>) -> Result<(), RolloutError>,
) -> Result<(), RolloutError> {
    let corrupt = |message: String| RolloutError::Corrupt { path: path.to_path_buf(), message };
    let mut reader = open(path)?;
    let mut number = 0;
    while let Some(rows) = contained(|| next_rows(&mut reader, number)).map_err(&corrupt)? {
        for row in rows {
            number += 1;
            visit(number, row)?;
        }
    }
    Ok(())
}

/// The rows of the next batch, after the row `number`.
fn next_rows(
    reader: &mut ParquetRecordBatchReader,
    number: u64,
) -> Result<Option<Vec<Map<String, Value>>>, String> {
    let Some(batch) = reader.next() else { return Ok(None) };
    let batch = batch.map_err(|error| format!("after row {number}: {error}"))?;
    let columns = plain_columns(&batch)?;
    let row = |row| columns.iter().filter_map(move |(name, column)| Some((name.clone(), cell(column, row)?)));
    Ok(Some((0..batch.num_rows()).map(|at| row(at).collect()).collect()))
}

/// Runs what reads a file, for the library panics on some that are damaged.
fn contained<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let done = catch_unwind(AssertUnwindSafe(read));
    done.unwrap_or_else(|_| Err("the file is damaged: the Parquet library gave up on it".to_owned()))
}

/// A reader of the batches in the Parquet file at `path`.
///
/// # Errors
/// [`RolloutError::Io`] when the file cannot be opened, [`RolloutError::Corrupt`] when it is no Parquet file.
pub(super) fn open(path: &Path) -> Result<ParquetRecordBatchReader, RolloutError> {
    let file = File::open(path).map_err(|source| RolloutError::Io {
        path: path.to_path_buf(),
        action: "cannot open",
        source,
    })?;
    contained(|| {
        let reader =
            ParquetRecordBatchReaderBuilder::try_new(file).and_then(ParquetRecordBatchReaderBuilder::build);
        reader.map_err(|error| format!("not a readable Parquet file: {error}"))
    })
    .map_err(|message| RolloutError::Corrupt { path: path.to_path_buf(), message })
}

/// The batch's columns with few types: text, i64, u64, f64, boolean or nothing at all.
fn plain_columns(batch: &RecordBatch) -> Result<Vec<(String, ArrayRef)>, String> {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns());
    let plain = columns.map(|(field, column)| {
        let Some(target) = plain_type(field.data_type()) else {
            return Err(format!(
                "column {}: its type {} is not text, number or boolean; write nested values as JSON text",
                field.name(),
                field.data_type()
            ));
        };
        let column = cast(column, &target).map_err(|error| format!("column {}: {error}", field.name()))?;
        Ok((field.name().clone(), column))
    });
    plain.collect()
}

/// What a column is read as; `None` where it is not plain.
fn plain_type(of: &DataType) -> Option<DataType> {
    match of {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(DataType::Utf8),
        DataType::Boolean | DataType::Null | DataType::UInt64 => Some(of.clone()),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => Some(DataType::Float64),
        DataType::Dictionary(_, values) => plain_type(values),
        other if other.is_integer() => Some(DataType::Int64),
        _ => None,
    }
}

/// The value at `row` of a column of [`plain_columns`]; `None` for null and for numbers that JSON does not have.
fn cell(column: &ArrayRef, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::Utf8 => Some(Value::from(column.as_string::<i32>().value(row))),
        DataType::Boolean => Some(Value::from(column.as_boolean().value(row))),
        DataType::Int64 => Some(Value::from(column.as_primitive::<Int64Type>().value(row))),
        DataType::UInt64 => Some(Value::from(column.as_primitive::<UInt64Type>().value(row))),
        DataType::Float64 => {
            Number::from_f64(column.as_primitive::<Float64Type>().value(row)).map(Value::Number)
        }
        _ => None,
    }
}
