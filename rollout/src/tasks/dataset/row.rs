//! One row as a task or a document.

use parl_rewards::metrics::Metric;
use serde_json::{Map, Value};

use super::DocumentIds;
use super::decomposition::flatten;
use super::fields::Fields;
use super::file::Fault;
use crate::tasks::{Document, Split, Task, TaskKind};

/// Columns of a task file that hold JSON text in Parquet.
pub(super) const TASK_JSON_COLUMNS: [&str; 2] = ["answer", "decomposition"];

const TASK_KEYS: [&str; 7] = ["id", "prompt", "answer", "metric", "split", "kind", "decomposition"];
const DOCUMENT_KEYS: [&str; 4] = ["doc_id", "title", "url", "text"];

/// A task; `metric` goes before the row's own, and `heldout_fraction` decides where no split is named.
pub(super) fn task(
    row: &Map<String, Value>,
    metric: Option<Metric>,
    heldout_fraction: f64,
) -> Result<Task, Fault> {
    let fields = Fields::new(row, "", &TASK_KEYS)?;
    let id = fields.text("id")?;
    let prompt = fields.text("prompt")?;
    let named_metric: Option<Metric> = fields.optional_name("metric")?;
    let split: Option<Split> = fields.optional_name("split")?;
    let kind: Option<TaskKind> = fields.optional_name("kind")?;
    let parts = flatten(fields.list("decomposition")?)?;
    Ok(Task {
        id: id.to_string(),
        kind: kind.unwrap_or(TaskKind::Other),
        split: split.unwrap_or_else(|| split_of(id, heldout_fraction)),
        n_items: parts.len() as u32,
        prompt: prompt.to_string(),
        answer: answer(&fields)?,
        metric: metric.or(named_metric).ok_or("metric: missing, and the settings name none")?,
        parts,
    })
}

/// The document of row `number`. The row's `url` is for humans.
pub(super) fn document(number: u64, row: &Map<String, Value>, ids: DocumentIds) -> Result<Document, Fault> {
    let fields = Fields::new(row, "", &DOCUMENT_KEYS)?;
    fields.optional_text("url")?;
    let id = match ids {
        DocumentIds::Column => fields.text("doc_id")?.to_string(),
        DocumentIds::Row => number.to_string(),
    };
    Ok(Document { id, title: fields.text("title")?.to_string(), text: fields.text("text")?.to_string() })
}

fn answer(fields: &Fields<'_>) -> Result<Value, Fault> {
    let answer =
        fields.value("answer").ok_or("answer: missing, must be text, number, boolean, list or map")?;
    let empty = match answer {
        Value::String(text) => text.trim().is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(rows) => rows.is_empty(),
        _ => false,
    };
    if empty { Err("answer: empty, no answer could be right".to_string()) } else { Ok(answer.clone()) }
}

/// The side of `id`: its hash as a number in [0, 1), against the share. A task stays on its side whatever else the
/// file holds.
fn split_of(id: &str, heldout_fraction: f64) -> Split {
    let hash = blake3::hash(id.as_bytes());
    let head = hash.as_bytes().iter().take(6).fold(0_u64, |head, byte| (head << 8) | u64::from(*byte));
    if (head as f64) < heldout_fraction * (1_u64 << 48) as f64 { Split::Heldout } else { Split::Train }
}
