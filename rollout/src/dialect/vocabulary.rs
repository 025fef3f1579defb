//! The shipped dialect's `tokenizer.json`: 256 bytes, whole words, and the template's special tokens.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::RolloutError;

/// The template's tokens, in the order of their ids.
pub const SPECIAL_TOKENS: [&str; 10] = [
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<|end|>",
    "<|call|>",
    "<|arg|>",
    "<|call_end|>",
    "<|thinking|>",
    "<|instant|>",
];

/// The `n` most frequent words of `texts` that are not in `known`, likeliest first, equal ones by name: what
/// [`tokenizer_json`] can spell with one id, behind a space or at a text's beginning.
pub fn frequent_words<'t>(texts: impl Iterator<Item = &'t str>, n: usize, known: &[String]) -> Vec<String> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for part in texts.flat_map(|text| text.split(char::is_whitespace)) {
        let letters = part.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
        let mark = usize::from(letters == 0 && part.bytes().next().is_some_and(|b| b.is_ascii_punctuation()));
        let word = &part[..letters.max(mark)];
        if !word.is_empty() {
            *counts.entry(word).or_default() += 1;
        }
    }
    for word in known {
        counts.remove(word.as_str());
    }
    let mut all: Vec<(&str, usize)> = counts.into_iter().collect();
    all.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    all.into_iter().take(n).map(|(word, _)| word.to_owned()).collect()
}

/// A `tokenizer.json` in which every word of `words` behind a space is one token, and everything else is spelt
/// in bytes (byte-level BPE without merges; `ignore_merges` lets whole words through). Special tokens are added
/// tokens only, so the model itself cannot produce them.
///
/// # Errors
/// [`RolloutError::Tokenizer`] for a word that is empty, given twice, or that the splitter would cut.
pub fn tokenizer_json(words: &[String]) -> Result<String, RolloutError> {
    let mut vocab = Map::new();
    for byte in 0..=255u8 {
        vocab.insert(byte_char(byte).to_string(), json!(vocab.len()));
    }
    let mut seen = HashSet::new();
    for word in words {
        let is_word = word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let is_mark = word.len() == 1 && word.bytes().all(|b| b.is_ascii_punctuation());
        if word.is_empty() || !(is_word || is_mark) {
            return Err(RolloutError::Tokenizer(format!(
                "`{word}` is neither one word of [A-Za-z0-9_] nor one punctuation mark"
            )));
        }
        if !seen.insert(word) {
            return Err(RolloutError::Tokenizer(format!("the word `{word}` is given twice")));
        }
        let spelt: String = std::iter::once(b' ').chain(word.bytes()).map(byte_char).collect();
        vocab.insert(spelt, json!(vocab.len()));
    }
    let first_special = vocab.len();
    let added: Vec<Value> = SPECIAL_TOKENS
        .iter()
        .enumerate()
        .map(|(i, token)| {
            json!({"id": first_special + i, "content": token, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": " ?[A-Za-z0-9_]+| ?[^\\sA-Za-z0-9_]|\\s"}, "behavior": "Isolated",
             "invert": false},
            byte_level,
        ]},
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                  "vocab": vocab, "merges": []},
    });
    let mut text = serde_json::to_string_pretty(&file).map_err(|e| RolloutError::Tokenizer(e.to_string()))?;
    text.push('\n');
    Ok(text)
}

/// GPT-2's visible character for a byte: printable Latin-1 stands for itself, the rest moves to U+0100 and up.
fn byte_char(byte: u8) -> char {
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !visible(*b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spelt_as_gpt2_spells_them() {
        assert_eq!(byte_char(b' '), 'Ġ');
        assert_eq!(byte_char(b'\n'), 'Ċ');
        assert_eq!(byte_char(b'a'), 'a');
        assert_eq!(byte_char(0xAD), 'Ń');
        let all: HashSet<char> = (0..=255u8).map(byte_char).collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn words_that_the_splitter_would_cut_are_refused() {
        for bad in ["", "two words", "a.b", "..", "é"] {
            assert!(tokenizer_json(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
        assert!(tokenizer_json(&["a".to_owned(), "a".to_owned()]).is_err());
    }

    #[test]
    fn words_are_counted_as_the_splitter_cuts_them() {
        let texts = ["Who is Pat? Pat, the Pat-man .", "is it . (is) n1"];
        let words = frequent_words(texts.into_iter(), 4, &["is".to_owned()]);
        assert_eq!(words, ["Pat", ".", "(", "Who"]);
        let known = [&["is".to_owned()][..], &words].concat();
        let dialect = crate::dialect::Dialect::of_words(&known).unwrap();
        // `Pat` and its comma, which stands behind no space.
        assert_eq!(dialect.encode_text("Who is Pat, .").unwrap().len(), 5);
    }
}
