//! Rows read and rows refused, in both formats, and the real tasks where they lie beside the repository.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int32Array, ListArray, StringArray};
use arrow::datatypes::Int32Type;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use serde_json::json;

use super::*;
use crate::tasks::{SubTask, TaskKind};
use crate::tools::corpus::CorpusTools;
use crate::trajectory::table_in;

const CORPUS: &str =
    r#"{"doc_id": "d1", "title": "Sweden", "url": "https://example.org/s", "text": "Stockholm."}"#;
const TASK: &str = r#"{"id": "a", "prompt": "Which?", "answer": "x", "metric": "exact"}"#;

/// A folder that is gone after the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("parl-dataset-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn write_table(&self, name: &str, columns: Vec<(&str, ArrayRef)>) -> PathBuf {
        let path = self.0.join(name);
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut writer =
            ArrowWriter::try_new(fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        path
    }

    /// Opens tasks of `lines` beside a corpus of one page.
    fn open(&self, lines: impl AsRef<[u8]>) -> Result<DatasetSource, RolloutError> {
        let (tasks, corpus) = (self.write("tasks.jsonl", lines), self.write("corpus.jsonl", CORPUS));
        DatasetSource::open(&DatasetConfig { tasks, corpus, ..DatasetConfig::default() })
    }

    /// The text of the error, without the folder.
    fn refusal(&self, result: Result<DatasetSource, RolloutError>) -> String {
        let error = result.expect_err("a refusal").to_string();
        error.replace(&format!("{}/", self.0.display()), "")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn all(source: &DatasetSource) -> Vec<Task> {
    let of = |split| (0..source.count(split).unwrap()).map(move |index| source.task(split, index));
    of(Split::Train).chain(of(Split::Heldout)).collect()
}

#[test]
fn a_full_row_is_read() {
    let row = json!({
        "id": "q", "prompt": "Capitals?", "answer": {"Sweden": "Stockholm"}, "metric": "fanoutqa_loose",
        "split": "heldout", "kind": "mixed",
        "decomposition": [
            {"id": "1", "question": "Which?", "answer": ["Sweden", 2], "depends_on": [], "title": null},
            {"id": "2", "question": "Capital of Sweden?", "answer": "Stockholm", "depends_on": ["1"], "title": "Sweden"},
        ],
    });
    let source = Folder::new().open(format!("{row}\n\n")).unwrap();
    let part = |id: &str, question: &str, query: &str, answer: &str, depends_on: &[&str]| SubTask {
        id: id.to_string(),
        question: question.to_string(),
        query: query.to_string(),
        answer: answer.to_string(),
        depends_on: depends_on.iter().map(ToString::to_string).collect(),
    };
    let expected = Task {
        id: "q".to_string(),
        kind: TaskKind::Mixed,
        split: Split::Heldout,
        n_items: 2,
        prompt: "Capitals?".to_string(),
        answer: json!({"Sweden": "Stockholm"}),
        metric: Metric::FanoutqaLoose,
        parts: vec![
            part("1", "Which?", "Which?", "Sweden, 2", &[]),
            part("2", "Capital of Sweden?", "Sweden", "Stockholm", &["1"]),
        ],
    };
    assert_eq!(source.task(Split::Heldout, 5), expected);
    assert_eq!((source.count(Split::Train), source.count(Split::Heldout)), (Some(0), Some(1)));
    // The empty side borrows, and the task still says whose it is.
    assert_eq!(source.task(Split::Train, 0), expected);
    assert_eq!((source.documents()[0].id.as_str(), source.name()), ("d1", "dataset"));
}

#[test]
fn bad_rows_are_refused_with_file_and_line() {
    let cases = [
        ("{", "not valid JSON at column 1: EOF while parsing an object"),
        ("\u{feff}{}", "not valid JSON at column 1: expected value"),
        ("[1]", "the row is a list, must be an object"),
        (r#"{"prompt": "p", "answer": 1, "metric": "f1"}"#, "id: missing, must be text"),
        (r#"{"id": 7, "prompt": "p", "answer": 1, "metric": "f1"}"#, "id: a number, must be text"),
        (r#"{"id": "b", "answer": 1, "metric": "f1"}"#, "prompt: missing, must be text"),
        (
            r#"{"id": "b", "prompt": " ", "answer": 1, "metric": "f1"}"#,
            "prompt: empty, must hold at least one visible character",
        ),
        (
            r#"{"id": "b", "prompt": "p", "metric": "f1"}"#,
            "answer: missing, must be text, number, boolean, list or map",
        ),
        (
            r#"{"id": "b", "prompt": "p", "answer": {}, "metric": "f1"}"#,
            "answer: empty, no answer could be right",
        ),
        (r#"{"id": "b", "prompt": "p", "answer": 1}"#, "metric: missing, and the settings name none"),
        (
            r#"{"id": "b", "prompt": "p", "answer": 1, "metric": "bleu"}"#,
            "metric: unknown variant `bleu`, expected one of `exact`, `f1`, `item_f1`, `fanoutqa_loose`, `fanoutqa_strict`",
        ),
        (
            r#"{"id": "b", "prompt": "p", "answer": 1, "metric": "f1", "split": "dev"}"#,
            "split: unknown variant `dev`, expected `train` or `heldout`",
        ),
        (
            r#"{"id": "b", "prompt": "p", "answer": 1, "metric": "f1", "promt": 1}"#,
            "promt: unknown key, known are id, prompt, answer, metric, split, kind, decomposition",
        ),
        (TASK, "id: \"a\" is used twice in this file"),
    ];
    for (row, message) in cases {
        let folder = Folder::new();
        assert_eq!(
            folder.refusal(folder.open(format!("{TASK}\n{row}\n"))),
            format!("tasks.jsonl:2: {message}")
        );
    }
    let folder = Folder::new();
    let refusal = folder.refusal(folder.open(b"\n\n{\"id\": \"\xff\"}"));
    assert!(refusal.starts_with("tasks.jsonl:3: not valid JSON at column "), "{refusal}");
    assert_eq!(folder.refusal(folder.open("\n")), "tasks.jsonl: holds no row");
    let long = vec![b' '; 16 * 1024 * 1024 + 1];
    assert_eq!(folder.refusal(folder.open(long)), "tasks.jsonl:1: the line is longer than 16777216 bytes");
}

#[test]
fn bad_decompositions_are_refused_with_the_path_to_the_key() {
    let part = |id: &str, depends_on: &[&str]| json!({"id": id, "question": "?", "depends_on": depends_on});
    let cases = [
        (json!({}), "decomposition: an object, must be a list"),
        (json!(["x"]), "decomposition[0]: text, must be an object"),
        (json!([{"id": "1"}]), "decomposition[0].question: missing, must be text"),
        (json!([part("1", &[]), part("1", &[])]), "decomposition[1].id: \"1\" is used twice in this task"),
        (json!([part("1", &["9"])]), "decomposition[0].depends_on: \"9\" is no part of this task"),
        (
            json!([part("1", &["2"]), part("2", &["1"]), part("3", &[])]),
            "decomposition: 1, 2 can never be asked, each waits for another",
        ),
        (
            json!([{"id": "1", "question": "?", "depends_on": [1]}]),
            "decomposition[0].depends_on[0]: a number, must be text",
        ),
        (
            json!([{"id": "1", "question": "?", "decomposition": [{"id": "1", "question": "?"}]}]),
            "decomposition[0].decomposition[0].id: \"1\" is used twice in this task",
        ),
        (
            json!([{"id": "1", "question": "?", "hint": "x"}]),
            "decomposition[0].hint: unknown key, known are id, question, answer, depends_on, title, decomposition",
        ),
        (
            json!((0..1001).map(|id| part(&id.to_string(), &[])).collect::<Vec<_>>()),
            "decomposition[1000]: more than 1000 parts",
        ),
    ];
    for (decomposition, message) in cases {
        let row =
            json!({"id": "b", "prompt": "p", "answer": 1, "metric": "f1", "decomposition": decomposition});
        let folder = Folder::new();
        assert_eq!(folder.refusal(folder.open(row.to_string())), format!("tasks.jsonl:1: {message}"));
    }
}

#[test]
fn nested_decompositions_dissolve_in_order() {
    let row = json!({
        "id": "q", "prompt": "p", "answer": 1, "metric": "f1", "decomposition": [
            {"id": "late", "question": "late?", "depends_on": ["inner"]},
            {"id": "first", "question": "first?"},
            {"id": "inner", "question": "inner?", "depends_on": ["first"], "decomposition": [
                {"id": "a", "question": "a?", "title": "A"},
                {"id": "b", "question": "b?", "depends_on": ["a"]},
            ]},
            {"id": "page", "question": "page?", "title": "P", "decomposition": [{"id": "c", "question": "c?"}]},
        ],
    });
    let task = Folder::new().open(row.to_string()).unwrap().task(Split::Train, 0);
    let order: Vec<_> = task.parts.iter().map(|part| (part.id.as_str(), part.depends_on.join(" "))).collect();
    let expected =
        [("first", ""), ("a", "first"), ("b", "first a"), ("c", ""), ("page", "c"), ("late", "a b")];
    assert_eq!(order, expected.map(|(id, waits)| (id, waits.to_string())));
}

#[test]
fn bad_corpora_and_files_are_refused() {
    let cases = [
        (
            r#"{"doc_id": "d1", "title": "T", "text": "x"}"#,
            "corpus.jsonl:2: doc_id: \"d1\" is used twice in this file; document_ids: row would number documents",
        ),
        (r#"{"doc_id": "d2", "title": "T"}"#, "corpus.jsonl:2: text: missing, must be text"),
        (r#"{"doc_id": "d2", "text": "T"}"#, "corpus.jsonl:2: title: missing, must be text"),
        (
            r#"{"id": "d2", "title": "T", "text": "x"}"#,
            "corpus.jsonl:2: id: unknown key, known are doc_id, title, url, text",
        ),
    ];
    for (row, message) in cases {
        let folder = Folder::new();
        let (tasks, corpus) =
            (folder.write("tasks.jsonl", TASK), folder.write("corpus.jsonl", format!("{CORPUS}\n{row}")));
        let config = DatasetConfig { tasks, corpus, ..DatasetConfig::default() };
        assert_eq!(folder.refusal(DatasetSource::open(&config)), message);
    }
    let folder = Folder::new();
    let open = |tasks| {
        let corpus = folder.write("corpus.jsonl", CORPUS);
        folder.refusal(DatasetSource::open(&DatasetConfig { tasks, corpus, ..DatasetConfig::default() }))
    };
    assert_eq!(
        open(folder.write("tasks.csv", TASK)),
        "tasks.csv: unknown format: the name must end in .jsonl or .parquet"
    );
    assert!(open(folder.0.join("absent.jsonl")).starts_with("absent.jsonl: cannot read: "));
    assert!(open(folder.0.join("absent.parquet")).starts_with("absent.parquet: cannot open: "));
    assert!(
        open(folder.write("bad.parquet", "PAR1 no"))
            .starts_with("bad.parquet: not a readable Parquet file: ")
    );
    assert_eq!(open(PathBuf::new()), "tasks: empty, must be the path of a .jsonl or .parquet file");
}

fn texts(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(values.iter().copied().collect::<StringArray>())
}

#[test]
fn parquet_says_the_same_as_jsonl() {
    let folder = Folder::new();
    let parts = r#"[{"id": "1", "question": "Which?", "title": "Sweden"}]"#;
    let tasks = folder.write_table(
        "tasks.parquet",
        vec![
            ("id", texts(&[Some("a"), Some("b")])),
            ("prompt", texts(&[Some("One?"), Some("Two?")])),
            ("answer", texts(&[Some(r#"{"k": 2.5}"#), Some("\"x\"")])),
            ("metric", texts(&[Some("item_f1"), Some("f1")])),
            ("split", texts(&[Some("train"), None])),
            ("decomposition", texts(&[Some(parts), None])),
        ],
    );
    let lines = format!(
        "{}\n{}\n",
        json!({"id": "a", "prompt": "One?", "answer": {"k": 2.5}, "metric": "item_f1", "split": "train",
            "decomposition": serde_json::from_str::<serde_json::Value>(parts).unwrap()}),
        json!({"id": "b", "prompt": "Two?", "answer": "x", "metric": "f1", "split": null}),
    );
    let columns = ["doc_id", "title", "text"].map(|name| (name, texts(&[Some("x"), Some("y")])));
    let corpus = folder.write_table("corpus.parquet", columns.to_vec());
    let table = DatasetSource::open(&DatasetConfig { tasks, corpus, ..DatasetConfig::default() }).unwrap();
    assert_eq!(all(&table), all(&folder.open(lines).unwrap()));
    assert_eq!(table.documents().len(), 2);
}

#[test]
fn bad_tables_are_refused_with_their_row_or_column() {
    let folder = Folder::new();
    let open = |answer: ArrayRef| {
        let same = |value| texts(&[Some(value), Some(value)]);
        let columns = vec![
            ("id", texts(&[Some("a"), Some("b")])),
            ("prompt", same("p")),
            ("metric", same("f1")),
            ("answer", answer),
        ];
        let (tasks, corpus) =
            (folder.write_table("t.parquet", columns), folder.write("corpus.jsonl", CORPUS));
        DatasetSource::open(&DatasetConfig { tasks, corpus, ..DatasetConfig::default() })
    };
    let plain = folder.refusal(open(texts(&[Some("1"), Some("Paris")])));
    assert_eq!(
        plain,
        "t.parquet:2: answer: not valid JSON at column 1: expected value; the column holds JSON, text stands in quotes"
    );
    let absent = folder.refusal(open(texts(&[Some("1"), None])));
    assert_eq!(absent, "t.parquet:2: answer: missing, must be text, number, boolean, list or map");
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)]), Some([Some(2)])]);
    let nested = folder.refusal(open(Arc::new(lists)));
    assert!(nested.starts_with("t.parquet: column answer: its type List("), "{nested}");
    assert!(nested.ends_with("is not text, number or boolean; write nested values as JSON text"), "{nested}");

    let typed: [(ArrayRef, serde_json::Value); 3] = [
        (Arc::new(Int32Array::from(vec![3, 4])), json!([3, 4])),
        (Arc::new(BooleanArray::from(vec![true, false])), json!([true, false])),
        (Arc::new(Float64Array::from(vec![0.5, 1.5])), json!([0.5, 1.5])),
    ];
    for (column, expected) in typed {
        let mut tasks = all(&open(column).unwrap());
        tasks.sort_by(|one, other| one.id.cmp(&other.id));
        assert_eq!(json!([tasks[0].answer, tasks[1].answer]), expected);
    }
}

/// Whatever is wrong with a file's bytes, it is read or refused.
#[test]
fn damaged_tables_are_no_panic() {
    let folder = Folder::new();
    let numbers: Vec<i32> = (0..40).collect();
    let many: Vec<String> = numbers.iter().map(|n| format!("n{}", n % 7)).collect();
    let path = folder.write_table(
        "t.parquet",
        vec![
            ("id", texts(&many.iter().map(|text| Some(text.as_str())).collect::<Vec<_>>())),
            ("answer", Arc::new(Int32Array::from(numbers))),
            ("right", Arc::new(BooleanArray::from([Some(true), None].repeat(20)))),
        ],
    );
    let whole = fs::read(&path).unwrap();
    let mut refused = 0;
    let mut read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        refused += u32::from(table_in::for_each_row(&path, &mut |_, _| Ok(())).is_err());
    };
    for at in 0..whole.len() {
        read(&whole[..at]);
        for other in [whole[at] ^ 1, whole[at] ^ 0x80, !whole[at], 0, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = other;
            read(&damaged);
        }
    }
    assert!(refused > whole.len() as u32, "{refused}");
}

#[test]
fn the_split_follows_ids_and_the_settings_metric_wins() {
    let folder = Folder::new();
    let line = |id| json!({"id": format!("t{id}"), "prompt": "p", "answer": 1, "metric": "f1"}).to_string();
    let lines = (0..2000).map(line).collect::<Vec<_>>().join("\n");
    let (tasks, corpus) = (folder.write("tasks.jsonl", lines), folder.write("corpus.jsonl", CORPUS));
    let mut config = DatasetConfig { tasks, corpus, metric: Some(Metric::Exact), ..DatasetConfig::default() };
    let heldout = |config: &DatasetConfig| -> HashSet<String> {
        let tasks = all(&DatasetSource::open(config).unwrap());
        assert!(tasks.len() == 2000 && tasks.iter().all(|task| task.metric == Metric::Exact));
        tasks.into_iter().filter(|task| task.split == Split::Heldout).map(|task| task.id).collect()
    };
    let fifth = heldout(&config);
    assert!((350..450).contains(&fifth.len()), "{}", fifth.len());
    config.heldout_fraction = 0.5;
    assert!(heldout(&config).is_superset(&fifth));
    config.heldout_fraction = 1.0;
    assert_eq!(heldout(&config).len(), 2000);
    config.heldout_fraction = 0.0;
    assert!(heldout(&config).is_empty());
}

#[test]
fn settings_are_checked() {
    let good =
        DatasetConfig { tasks: "t.jsonl".into(), corpus: "c.jsonl".into(), ..DatasetConfig::default() };
    assert_eq!(good.validate(), []);
    let bad = DatasetConfig { name: String::new(), heldout_fraction: f64::NAN, ..DatasetConfig::default() };
    let keys: Vec<String> = bad.validate().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["name", "tasks", "corpus", "heldout_fraction"]);
}

#[test]
fn documents_can_be_numbered() {
    let folder = Folder::new();
    let tasks = folder.write("tasks.jsonl", TASK);
    let corpus =
        folder.write("corpus.jsonl", format!("{CORPUS}\n\n{CORPUS}\n{{\"title\": \"T\", \"text\": \"x\"}}"));
    let config = DatasetConfig { tasks, corpus, document_ids: DocumentIds::Row, ..DatasetConfig::default() };
    let source = DatasetSource::open(&config).unwrap();
    assert_eq!(source.documents().iter().map(|page| page.id.as_str()).collect::<Vec<_>>(), ["1", "3", "4"]);
}

/// The real tasks, where they lie beside the repository.
#[test]
fn fanoutqa_loads_and_its_pages_are_found() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/fanoutqa");
    let (tasks, corpus) = (folder.join("tasks.jsonl"), folder.join("corpus.jsonl"));
    if !tasks.exists() {
        println!("skipped: no {}", tasks.display());
        return;
    }
    // Some of its pages share a placeholder for an id.
    let config = DatasetConfig { tasks, corpus, document_ids: DocumentIds::Row, ..DatasetConfig::default() };
    let source = DatasetSource::open(&config).unwrap();
    let tasks = all(&source);
    assert_eq!((tasks.len(), source.documents().len()), (257, 1616));
    let tools = [1, 3].map(|top_k| CorpusTools::new(source.documents(), top_k).unwrap());
    let parts: Vec<&SubTask> = tasks.iter().flat_map(|task| &task.parts).collect();
    let start = std::time::Instant::now();
    let share = |tools: &CorpusTools| {
        let found =
            |part: &&&SubTask| tools.hits(&part.query).unwrap().iter().any(|page| page.title == part.query);
        parts.iter().filter(found).count() as f64 / parts.len() as f64
    };
    let (first, third) = (share(&tools[0]), share(&tools[1]));
    let us = start.elapsed().as_secs_f64() * 1e6 / (2 * parts.len()) as f64;
    println!("{} parts: page found first {first:.4}, in three {third:.4}; {us:.0} us a query", parts.len());
    assert!(first > 0.99 && third > 0.99, "{first} {third}");
}
