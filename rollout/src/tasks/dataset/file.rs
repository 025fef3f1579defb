//! Rows of a JSONL or Parquet file, each with the place that an error names.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::RolloutError;
use crate::trajectory::table_in;

/// Longest line of a JSONL file; a longer one is no row but a mistake.
const MAX_LINE_BYTES: u64 = 16 * 1024 * 1024;

/// What is wrong with a row; the caller knows the file and line.
pub(super) type Fault = String;

/// Calls `visit` with each row of `path`, in order, and its line (JSONL) or row (Parquet) from 1. In Parquet the
/// columns named in `json_columns` hold JSON text.
pub(super) fn for_each_row(
    path: &Path,
    json_columns: &[&str],
    visit: &mut dyn FnMut(u64, Map<String, Value>) -> Result<(), Fault>,
) -> Result<(), RolloutError> {
    let at = |line, message| RolloutError::Row { path: path.to_path_buf(), line, message };
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl") => {
            let file = File::open(path).map_err(|source| unreadable(path, source))?;
            lines(path, BufReader::new(file), &mut |line, row| {
                visit(line, row).map_err(|fault| at(line, fault))
            })
        }
        Some("parquet") => table_in::for_each_row(path, &mut |line, row| {
            parse_columns(row, json_columns).and_then(|row| visit(line, row)).map_err(|fault| at(line, fault))
        }),
        _ => Err(RolloutError::Corrupt {
            path: path.to_path_buf(),
            message: "unknown format: the name must end in .jsonl or .parquet".to_string(),
        }),
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> RolloutError {
    RolloutError::Io { path: path.to_path_buf(), action: "cannot read", source }
}

/// Each line that is not blank, as an object.
fn lines(
    path: &Path,
    mut reader: impl BufRead,
    visit: &mut dyn FnMut(u64, Map<String, Value>) -> Result<(), RolloutError>,
) -> Result<(), RolloutError> {
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let read = reader.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes);
        let read = read.map_err(|source| unreadable(path, source))?;
        if read == 0 {
            break;
        }
        let wrong = |message| RolloutError::Row { path: path.to_path_buf(), line, message };
        if read as u64 > MAX_LINE_BYTES {
            return Err(wrong(format!("the line is longer than {MAX_LINE_BYTES} bytes")));
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let value = serde_json::from_slice(bytes.trim_ascii()).map_err(|error| wrong(not_json(&error)))?;
        match value {
            Value::Object(row) => visit(line, row)?,
            other => return Err(wrong(format!("the row is {}, must be an object", kind_of(&other)))),
        }
    }
    Ok(())
}

/// Replaces the text of `json_columns` by what it says.
fn parse_columns(mut row: Map<String, Value>, json_columns: &[&str]) -> Result<Map<String, Value>, Fault> {
    for column in json_columns {
        if let Some(cell) = row.get_mut(*column)
            && let Value::String(text) = cell
        {
            *cell = serde_json::from_str(text).map_err(|error| {
                format!("{column}: {}; the column holds JSON, text stands in quotes", not_json(&error))
            })?;
        }
    }
    Ok(row)
}

/// What the parser says, without its count of lines: a row is one line.
fn not_json(error: &serde_json::Error) -> Fault {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    format!("not valid JSON at column {}: {}", error.column(), text.strip_suffix(&place).unwrap_or(&text))
}

/// A value's type in words.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
