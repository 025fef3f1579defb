//! `search` and `open` over a fixed corpus: a BM25 index in memory.
//!
//! Queries are built term by term from the words of the text, never through a query syntax: whatever a page or a
//! model writes is only words. Equal scores are ordered as the documents are, so equal queries give equal results
//! on every machine.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tantivy::collector::TopDocs;
use tantivy::directory::RamDirectory;
use tantivy::query::{BooleanQuery, BoostQuery, Occur, Query, TermQuery};
use tantivy::schema::{Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::TextAnalyzer;
use tantivy::{Index, ReloadPolicy, Searcher, SingleSegmentIndexWriter, TantivyDocument, TantivyError, Term};

use super::{ToolOutcome, ToolSpec, Tools};
use crate::RolloutError;
use crate::tasks::Document;

/// Name of the tool that finds documents.
pub const SEARCH: &str = "search";
/// Name of the tool that shows one.
pub const OPEN: &str = "open";

/// Distinct terms of a query that count; a longer one is cut, so that no query is slow.
pub const MAX_QUERY_TERMS: usize = 32;

/// How much more a match in the title weighs than one in the text: a page about something outranks pages that
/// mention it often.
const TITLE_BOOST: f32 = 8.0;

/// Bytes that the index may take while it is built; more only means more memory, not other results.
const BUILD_BYTES: usize = 50_000_000;

/// Settings of the search tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SearchConfig {
    /// Hits that `search` shows, best first. From 1 to 100; each costs tokens of context.
    pub top_k: u32,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self { top_k: 1 }
    }
}

impl SearchConfig {
    /// What is out of bounds: the key below this section, and value and bound in words.
    pub fn validate(&self) -> Vec<(String, String)> {
        if (1..=100).contains(&self.top_k) {
            return Vec::new();
        }
        vec![("top_k".to_string(), format!("{} is not within 1 to 100", self.top_k))]
    }
}

/// `search(query)` and `open(doc)` over a corpus. Calls run at the same time without waiting for each other.
pub struct CorpusTools {
    specs: Vec<ToolSpec>,
    documents: Vec<Document>,
    by_id: HashMap<String, usize>,
    searcher: Searcher,
    analyzer: TextAnalyzer,
    fields: Fields,
    top_k: usize,
}

/// The indexed fields.
#[derive(Clone, Copy)]
struct Fields {
    title: Field,
    text: Field,
}

impl CorpusTools {
    /// Indexes `documents`; `search` shows the best `top_k` (at least 1).
    ///
    /// # Errors
    /// [`RolloutError::Index`] when two documents have one id or the index cannot be built.
    pub fn new(documents: &[Document], top_k: usize) -> Result<Self, RolloutError> {
        let mut by_id = HashMap::with_capacity(documents.len());
        for (position, document) in documents.iter().enumerate() {
            if by_id.insert(one_line(&document.id), position).is_some() {
                return Err(RolloutError::Index(format!("two documents have the id {:?}", document.id)));
            }
        }
        let (index, fields) = build(documents).map_err(failed)?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into().map_err(failed)?;
        Ok(Self {
            specs: specs(),
            documents: documents.to_vec(),
            by_id,
            searcher: reader.searcher(),
            analyzer: index.tokenizer_for_field(fields.text).map_err(failed)?,
            fields,
            top_k: top_k.max(1),
        })
    }

    /// The best `top_k` documents for `query`, best first; none when no word of it is known.
    ///
    /// # Errors
    /// [`RolloutError::Index`] when the index fails, which a valid one in memory does not.
    pub fn hits(&self, query: &str) -> Result<Vec<&Document>, RolloutError> {
        let query = BooleanQuery::new(self.clauses(query));
        let best = self
            .searcher
            .search(&query, &TopDocs::with_limit(self.top_k).order_by_score())
            .map_err(failed)?;
        // One segment written in order: the index's number of a document is its position.
        Ok(best.iter().filter_map(|(_, address)| self.documents.get(address.doc_id as usize)).collect())
    }

    /// A clause a term and field, each term once.
    fn clauses(&self, query: &str) -> Vec<(Occur, Box<dyn Query>)> {
        let mut terms: Vec<String> = Vec::new();
        let mut analyzer = self.analyzer.clone();
        let mut stream = analyzer.token_stream(query);
        while terms.len() < MAX_QUERY_TERMS && stream.advance() {
            let term = &stream.token().text;
            if !terms.contains(term) {
                terms.push(term.clone());
            }
        }
        let matching = |field, term: &String| -> Box<dyn Query> {
            Box::new(TermQuery::new(Term::from_field_text(field, term), IndexRecordOption::WithFreqs))
        };
        let both = |term: &String| {
            let in_title: Box<dyn Query> =
                Box::new(BoostQuery::new(matching(self.fields.title, term), TITLE_BOOST));
            [(Occur::Should, in_title), (Occur::Should, matching(self.fields.text, term))]
        };
        terms.iter().flat_map(both).collect()
    }

    /// `QUERY : ID , TITLE ; ID , TITLE`, or `QUERY : none`.
    fn search(&self, query: &str) -> ToolOutcome {
        match self.hits(query) {
            Ok(hits) if hits.is_empty() => ToolOutcome::Ok(format!("{} : none", one_line(query))),
            Ok(hits) => {
                let hits: Vec<_> = hits.iter().map(|hit| format!("{} , {}", hit.id, hit.title)).collect();
                ToolOutcome::Ok(format!("{} : {}", one_line(query), hits.join(" ; ")))
            }
            Err(error) => ToolOutcome::Down(error.to_string()),
        }
    }

    fn open(&self, id: &str) -> ToolOutcome {
        let id = one_line(id);
        match self.by_id.get(&id) {
            Some(position) => ToolOutcome::Ok(self.documents[*position].text.clone()),
            None => ToolOutcome::Error(format!("no document {id}")),
        }
    }
}

impl Tools for CorpusTools {
    fn specs(&self) -> &[ToolSpec] {
        &self.specs
    }

    fn call(&self, name: &str, arguments: &[String]) -> Option<ToolOutcome> {
        let argument = arguments.first().map_or("", String::as_str);
        match name {
            SEARCH => Some(self.search(argument)),
            OPEN => Some(self.open(argument)),
            _ => None,
        }
    }
}

/// The id of the best hit in a result of `search(query)`, for readers that know no better way; `None` where
/// nothing was found.
pub fn first_hit<'a>(query: &str, result: &'a str) -> Option<&'a str> {
    let hits = result.strip_prefix(&one_line(query))?.strip_prefix(" : ")?;
    hits.split_once(" , ").map(|(id, _)| id)
}

fn specs() -> Vec<ToolSpec> {
    let spec = |name: &str, parameter: &str, description: &str| ToolSpec {
        name: name.to_string(),
        parameters: vec![parameter.to_string()],
        description: description.to_string(),
    };
    vec![
        spec(SEARCH, "query", "Finds documents by words; gives ids and titles, best first."),
        spec(OPEN, "doc", "Gives the text of the document with this id."),
    ]
}

/// Words with one space between, so that calls may space their arguments as they like.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// One segment, written by one thread in the order of `documents`: the order that breaks ties.
fn build(documents: &[Document]) -> Result<(Index, Fields), TantivyError> {
    let mut schema = Schema::builder();
    let indexing = TextFieldIndexing::default().set_index_option(IndexRecordOption::WithFreqs);
    let options = TextOptions::default().set_indexing_options(indexing);
    let fields = Fields {
        title: schema.add_text_field("title", options.clone()),
        text: schema.add_text_field("text", options),
    };
    let index = Index::builder().schema(schema.build());
    let mut writer: SingleSegmentIndexWriter =
        index.single_segment_index_writer(RamDirectory::create(), BUILD_BYTES)?;
    for document in documents {
        let mut entry = TantivyDocument::new();
        entry.add_text(fields.title, &document.title);
        entry.add_text(fields.text, &document.text);
        writer.add_document(entry)?;
    }
    Ok((writer.finalize()?, fields))
}

#[expect(clippy::needless_pass_by_value, reason = "map_err hands the error over")]
fn failed(error: TantivyError) -> RolloutError {
    RolloutError::Index(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(id: &str, title: &str, text: &str) -> Document {
        Document { id: id.to_string(), title: title.to_string(), text: text.to_string() }
    }

    fn call(tools: &CorpusTools, name: &str, argument: &str) -> ToolOutcome {
        tools.call(name, &[argument.to_string()]).expect("a known tool")
    }

    fn tools(top_k: usize) -> CorpusTools {
        let documents = [
            document("1 2", "blue lake", "the heron heron heron lives here"),
            document("3 4", "heron", "a bird"),
            document("5 6", "stone", "same words"),
            document("7 8", "stone", "same words"),
            document("9 9", "J. D. Drew", "What is the batting hand of JD Drew? Left."),
        ];
        CorpusTools::new(&documents, top_k).unwrap()
    }

    #[test]
    fn search_echoes_the_query_and_ranks_titles_first() {
        let expected = "n3 heron : 3 4 , heron ; 1 2 , blue lake";
        assert_eq!(call(&tools(3), "search", " n3  heron "), ToolOutcome::Ok(expected.to_string()));
        assert_eq!(first_hit("n3  heron", expected), Some("3 4"));
        assert_eq!(first_hit("wolf", "wolf : none"), None);
        assert_eq!(call(&tools(1), "search", "heron"), ToolOutcome::Ok("heron : 3 4 , heron".to_string()));
    }

    #[test]
    fn ties_keep_the_order_of_the_documents() {
        for top_k in 1..3 {
            let hits = tools(top_k);
            let ids: Vec<_> = hits.hits("stone words").unwrap().iter().map(|hit| hit.id.as_str()).collect();
            assert_eq!(ids, ["5 6", "7 8"][..top_k]);
        }
    }

    #[test]
    fn nothing_found_says_none() {
        for query in ["zebra", "zebra lion", ": ;"] {
            assert_eq!(call(&tools(2), "search", query), ToolOutcome::Ok(format!("{query} : none")));
        }
        assert_eq!(call(&tools(2), "search", ""), ToolOutcome::Ok(" : none".to_string()));
        let empty = CorpusTools::new(&[], 2).unwrap();
        assert_eq!(call(&empty, "search", "heron"), ToolOutcome::Ok("heron : none".to_string()));
    }

    #[test]
    fn query_syntax_is_only_words() {
        for query in
            ["-heron", "title:heron", "heron AND NOT bird", "\"heron\"", "(heron", "heron^9~*", "+heron]"]
        {
            assert_eq!(tools(1).hits(query).unwrap()[0].id, "3 4", "{query}");
        }
        assert_eq!(tools(1).hits("*").unwrap().len(), 0);
        assert_eq!(tools(1).hits("j.d. DREW").unwrap()[0].id, "9 9");
    }

    #[test]
    fn long_queries_are_cut() {
        let many = (0..MAX_QUERY_TERMS).map(|word| format!("w{word}")).collect::<Vec<_>>().join(" ");
        assert_eq!(tools(1).hits(&format!("{many} heron")).unwrap().len(), 0);
        assert_eq!(tools(1).hits(&format!("heron {many}")).unwrap().len(), 1);
        assert_eq!(tools(1).hits(&"heron ".repeat(100_000)).unwrap().len(), 1);
    }

    #[test]
    fn open_gives_the_text_or_an_error_observation() {
        assert_eq!(call(&tools(1), "open", " 3   4"), ToolOutcome::Ok("a bird".to_string()));
        assert_eq!(call(&tools(1), "open", "4 3"), ToolOutcome::Error("no document 4 3".to_string()));
        assert_eq!(tools(1).call("close", &["3 4".to_string()]), None);
    }

    #[test]
    fn two_documents_of_one_id_are_refused() {
        let twice = [document("1", "a", "a"), document("1", "b", "b")];
        let error = CorpusTools::new(&twice, 1).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("search index: two documents have the id \"1\""));
    }

    #[test]
    fn threads_share_it() {
        let tools = tools(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|_| assert_eq!(tools.hits("heron").unwrap().len(), 2)));
            }
        });
    }

    #[test]
    fn settings_are_checked() {
        assert_eq!(SearchConfig::default().validate(), []);
        let message = "0 is not within 1 to 100".to_string();
        assert_eq!(SearchConfig { top_k: 0 }.validate(), [("top_k".to_string(), message)]);
    }
}
