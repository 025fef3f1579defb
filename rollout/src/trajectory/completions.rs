//! The table of completions that TRL's trainers write: one row an episode, one column a reward function.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};

use super::columns::{Columns, list, structure};
use super::segment;
use crate::RolloutError;
use crate::durable;

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// Which tool a tool message is from.
    pub name: Option<String>,
    /// Calls of an assistant.
    pub tool_calls: Vec<ToolUse>,
}

impl Said {
    /// A message without tools.
    pub fn plain(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.to_owned(), name: None, tool_calls: Vec::new() }
    }
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolUse {
    /// The tool.
    pub name: String,
    /// Arguments as a JSON object.
    pub arguments_json: String,
}

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The training step, from 0.
    pub step: i64,
    /// What came before the model first spoke.
    pub prompt: Vec<Said>,
    /// What it said, and what it read in between.
    pub completion: Vec<Said>,
    /// Reward components before their weights, by name; their names are columns.
    pub rewards: Vec<(String, f64)>,
    /// Reward less its group's baseline, over the group's scale if there is one.
    pub advantage: Option<f64>,
    /// The episode.
    pub episode_id: String,
    /// Its group.
    pub group_id: String,
    /// Kind of its task.
    pub task_kind: String,
    /// The weighted sum of all components.
    pub reward: Option<f64>,
}

/// Writes `rows` as a Parquet file at `path`, whole or not at all.
///
/// # Errors
/// [`RolloutError::Log`] for a reward component with the name of another column, [`RolloutError::Io`].
pub fn write(path: &Path, rows: &[Completion]) -> Result<(), RolloutError> {
    let mut columns = Columns::default()
        .long("step", rows.iter().map(|r| r.step))
        .list("prompt", rows.iter().map(|r| r.prompt.len()), messages(rows.iter().flat_map(|r| &r.prompt)))
        .list(
            "completion",
            rows.iter().map(|r| r.completion.len()),
            messages(rows.iter().flat_map(|r| &r.completion)),
        );
    let components: BTreeSet<&str> =
        rows.iter().flat_map(|r| &r.rewards).map(|(name, _)| name.as_str()).collect();
    for name in components {
        if OURS.contains(&name) {
            return Err(RolloutError::Log(format!(
                "the reward component `{name}` has the name of another column"
            )));
        }
        let of_row = |r: &Completion| r.rewards.iter().find(|(n, _)| n == name).map(|(_, raw)| *raw);
        columns = columns.maybe_double(name, rows.iter().map(of_row));
    }
    let batch = columns
        .text("episode_id", rows.iter().map(|r| &r.episode_id))
        .text("group_id", rows.iter().map(|r| &r.group_id))
        .text("task_kind", rows.iter().map(|r| &r.task_kind))
        .maybe_double("reward", rows.iter().map(|r| r.reward))
        .maybe_double("advantage", rows.iter().map(|r| r.advantage))
        .batch(&[])?;
    durable::write_atomic(path, &segment::file(&batch, segment::zstd()?.build())?)
}

/// Columns that are there whatever the rewards are called.
const OURS: [&str; 8] =
    ["step", "prompt", "completion", "episode_id", "group_id", "task_kind", "reward", "advantage"];

fn messages<'a>(said: impl Iterator<Item = &'a Said>) -> ArrayRef {
    let said: Vec<&Said> = said.collect();
    let text = |values: Vec<&str>| -> ArrayRef { Arc::new(StringArray::from(values)) };
    let calls: Vec<&ToolUse> = said.iter().flat_map(|m| &m.tool_calls).collect();
    let function = structure(vec![
        ("name", false, text(calls.iter().map(|c| c.name.as_str()).collect())),
        ("arguments", false, text(calls.iter().map(|c| c.arguments_json.as_str()).collect())),
    ]);
    let call =
        structure(vec![("type", false, text(vec!["function"; calls.len()])), ("function", false, function)]);
    // Where there is no call the key has no value, as in the chat templates' own lists.
    let valid = said.iter().map(|m| !m.tool_calls.is_empty()).collect();
    let calls = list(said.iter().map(|m| m.tool_calls.len()), call, Some(valid));
    let names: StringArray = said.iter().map(|m| m.name.as_deref()).collect();
    structure(vec![
        ("role", false, text(said.iter().map(|m| m.role.as_str()).collect())),
        ("content", false, text(said.iter().map(|m| m.content.as_str()).collect())),
        ("name", true, Arc::new(names)),
        ("tool_calls", true, Arc::new(calls)),
    ])
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use arrow::json::LineDelimitedWriter;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use serde_json::{Value, json};

    use super::*;

    fn row(rewards: &[(&str, f64)]) -> Completion {
        let used = ToolUse { name: "search".to_owned(), arguments_json: "{}".to_owned() };
        Completion {
            step: 3,
            prompt: vec![Said::plain("user", "q")],
            completion: vec![
                Said { tool_calls: vec![used], ..Said::plain("assistant", "") },
                Said { name: Some("search".to_owned()), ..Said::plain("tool", "a \"page\"") },
            ],
            rewards: rewards.iter().map(|(name, raw)| ((*name).to_owned(), *raw)).collect(),
            advantage: None,
            episode_id: "e".to_owned(),
            group_id: "g".to_owned(),
            task_kind: "wide".to_owned(),
            reward: Some(1.0 / 3.0),
        }
    }

    #[test]
    fn a_row_has_its_messages_and_a_column_for_each_component() {
        let path = std::env::temp_dir().join(format!("parl-completions-{}.parquet", std::process::id()));
        write(&path, &[row(&[("r_perf", 0.1)]), row(&[("r_finish", 0.2)])]).unwrap();
        let mut reader =
            ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap().build().unwrap();
        let mut text = LineDelimitedWriter::new(Vec::new());
        text.write(&reader.next().unwrap().unwrap()).unwrap();
        text.finish().unwrap();
        let text = String::from_utf8(text.into_inner()).unwrap();
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let assistant = json!({
            "role": "assistant", "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "search", "arguments": "{}"}}],
        });
        let tool = json!({"role": "tool", "content": "a \"page\"", "name": "search"});
        assert_eq!(rows[0]["completion"], json!([assistant, tool]));
        assert_eq!((&rows[0]["r_perf"], rows[0].get("r_finish")), (&json!(0.1), None));
        assert_eq!((&rows[1]["r_finish"], &rows[1]["reward"]), (&json!(0.2), &json!(1.0 / 3.0)));
        durable::remove(&path).unwrap();
        let error = write(&path, &[row(&[("advantage", 1.0)])]).unwrap_err().to_string();
        assert!(error.contains("`advantage` has the name of another column") && !path.exists(), "{error}");
    }
}
