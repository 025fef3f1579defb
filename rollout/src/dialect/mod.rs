//! The dialect: how messages and tool calls are spelt in tokens, and read back out of them.
//!
//! A context is a row of messages, each `<|role|> text <|end|>`. An assistant's turn is
//! `<|assistant|> MODE text? (<|call|> name (<|arg|> value)* <|call_end|>)* <|end|>`; the template places the
//! first two tokens, the policy draws the rest. Arguments stand in the order of the tool's parameters.
//!
//! Only the template places special ids. Text, wherever it comes from, is encoded so that no special id can
//! come out of it: a document that spells `<|end|>` gives the ids of those characters.

mod turn;
mod vocabulary;

pub use turn::{Call, ParsedTurn};
pub use vocabulary::{SPECIAL_TOKENS, frequent_words, tokenizer_json};

use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use crate::RolloutError;

/// Who a message is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Sets the role of the agent.
    System,
    /// What is asked of it.
    User,
    /// The policy.
    Assistant,
    /// An observation.
    Tool,
}

impl Role {
    /// The name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// How an assistant's turn is opened (method.md §6: thinking at temperature 1.0, instant at 0.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The turn may open with free text before it acts.
    Thinking,
    /// The turn acts at once.
    #[default]
    Instant,
}

/// Ids of the tokens that only the template may place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    system: u32,
    user: u32,
    assistant: u32,
    tool: u32,
    /// Ends a message; the one token at which sampling stops.
    pub end: u32,
    call: u32,
    arg: u32,
    call_end: u32,
    thinking: u32,
    instant: u32,
}

impl SpecialIds {
    fn all(&self) -> [u32; 10] {
        let s = self;
        [s.system, s.user, s.assistant, s.tool, s.end, s.call, s.arg, s.call_end, s.thinking, s.instant]
    }
}

/// A tokenizer with the template's special tokens resolved.
pub struct Dialect {
    tokenizer: Tokenizer,
    special: SpecialIds,
    foreign_special: Vec<u32>,
    vocab_size: usize,
    hash: String,
}

impl std::fmt::Debug for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialect")
            .field("vocab", &self.vocab_size)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

impl Dialect {
    /// Reads the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`RolloutError::Tokenizer`] when the file is not one, or lacks a special token.
    pub fn from_json(json: &[u8]) -> Result<Self, RolloutError> {
        let mut tokenizer = Tokenizer::from_bytes(json)
            .map_err(|e| RolloutError::Tokenizer(format!("not a tokenizer.json: {e}")))?;
        // Text never yields special ids: this makes the library treat their spelling as plain characters.
        tokenizer.set_encode_special_tokens(true);
        let id = |token: &str| {
            tokenizer
                .token_to_id(token)
                .ok_or_else(|| RolloutError::Tokenizer(format!("the special token `{token}` is missing")))
        };
        let special = SpecialIds {
            system: id("<|system|>")?,
            user: id("<|user|>")?,
            assistant: id("<|assistant|>")?,
            tool: id("<|tool|>")?,
            end: id("<|end|>")?,
            call: id("<|call|>")?,
            arg: id("<|arg|>")?,
            call_end: id("<|call_end|>")?,
            thinking: id("<|thinking|>")?,
            instant: id("<|instant|>")?,
        };
        let mut foreign_special: Vec<u32> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        foreign_special.extend(special.all());
        foreign_special.sort_unstable();
        foreign_special.dedup();
        let vocab_size = tokenizer.get_vocab_size(true);
        let hash = blake3::hash(json).to_hex().to_string();
        Ok(Self { tokenizer, special, foreign_special, vocab_size, hash })
    }

    /// The byte-level dialect over whole words that ships with the generated world.
    ///
    /// # Errors
    /// [`RolloutError::Tokenizer`] when a word is empty or given twice.
    pub fn of_words(words: &[String]) -> Result<Self, RolloutError> {
        Self::from_json(tokenizer_json(words)?.as_bytes())
    }

    /// Number of ids, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// For each id its id in `other`; the spelling of the first that is no token there as an error.
    ///
    /// # Errors
    /// The spelling of that token.
    pub fn places_in(&self, other: &Self) -> Result<Vec<u32>, String> {
        (0..self.vocab_size as u32)
            .map(|id| {
                let token = self.tokenizer.id_to_token(id).ok_or_else(|| format!("id {id}"))?;
                other.tokenizer.token_to_id(&token).ok_or(token)
            })
            .collect()
    }

    /// BLAKE3 of the `tokenizer.json`.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The template's ids.
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// Ids of `text`; never a special one, whatever the text spells. One space is put in front, so that the
    /// first word is spelt as in the middle of a sentence.
    ///
    /// # Errors
    /// [`RolloutError::Tokenizer`] when the tokenizer cannot spell the text without a special id.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, RolloutError> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let ids = self.encode_raw(&format!(" {text}"))?;
        if !ids.iter().any(|id| self.is_special(*id)) {
            return Ok(ids);
        }
        // A tokenizer whose model itself knows a special token's spelling: spell the text by characters.
        let mut spelt = Vec::with_capacity(text.len() + 1);
        for c in std::iter::once(' ').chain(text.chars()) {
            spelt.extend(self.encode_raw(c.encode_utf8(&mut [0; 4]))?);
        }
        match spelt.iter().find(|id| self.is_special(**id)) {
            Some(id) => Err(RolloutError::Tokenizer(format!("plain text is spelt with the special id {id}"))),
            None => Ok(spelt),
        }
    }

    fn encode_raw(&self, text: &str) -> Result<Vec<u32>, RolloutError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|e| RolloutError::Tokenizer(format!("cannot encode: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of plain ids, without the space that [`Dialect::encode_text`] put in front.
    ///
    /// # Errors
    /// [`RolloutError::Tokenizer`] for an id outside the vocabulary.
    pub fn decode_text(&self, ids: &[u32]) -> Result<String, RolloutError> {
        let text = self
            .tokenizer
            .decode(ids, false)
            .map_err(|e| RolloutError::Tokenizer(format!("cannot decode: {e}")))?;
        Ok(text.strip_prefix(' ').map_or(text.clone(), str::to_owned))
    }

    /// What each id adds to the text, special ids by their names. Where several ids hold one character between
    /// them, the last one has it and the others are empty.
    ///
    /// # Errors
    /// [`RolloutError::Tokenizer`] for an id outside the vocabulary.
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<String>, RolloutError> {
        /// The longest character in UTF-8, bytes: ids that make none together by then make none at all.
        const LONGEST: usize = 4;
        let mut pieces = Vec::with_capacity(ids.len());
        let mut begin = 0;
        for (at, id) in ids.iter().enumerate() {
            if self.tokenizer.id_to_token(*id).is_none() {
                return Err(RolloutError::Tokenizer(format!("the id {id} is outside the vocabulary")));
            }
            let text = self
                .tokenizer
                .decode(&ids[begin..=at], false)
                .map_err(|e| RolloutError::Tokenizer(format!("cannot decode: {e}")))?;
            if text.ends_with(char::REPLACEMENT_CHARACTER) && at + 1 - begin < LONGEST {
                pieces.push(String::new());
            } else {
                pieces.push(text);
                begin = at + 1;
            }
        }
        Ok(pieces)
    }

    /// Whether only the template may place this id.
    pub fn is_special(&self, id: u32) -> bool {
        self.foreign_special.binary_search(&id).is_ok()
    }

    /// Whether a message begins with this id: only the template places the ids of roles.
    pub fn opens_message(&self, id: u32) -> bool {
        let s = &self.special;
        [s.system, s.user, s.assistant, s.tool].contains(&id)
    }

    /// A whole message.
    ///
    /// # Errors
    /// As [`Dialect::encode_text`].
    pub fn message(&self, role: Role, text: &str) -> Result<Vec<u32>, RolloutError> {
        let mut ids = vec![match role {
            Role::System => self.special.system,
            Role::User => self.special.user,
            Role::Assistant => self.special.assistant,
            Role::Tool => self.special.tool,
        }];
        ids.extend(self.encode_text(text)?);
        ids.push(self.special.end);
        Ok(ids)
    }

    /// What the template puts in front of an assistant's turn.
    pub fn turn_prefix(&self, mode: Mode) -> [u32; 2] {
        let mode = match mode {
            Mode::Thinking => self.special.thinking,
            Mode::Instant => self.special.instant,
        };
        [self.special.assistant, mode]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dialect() -> Dialect {
        let words = ["amber", "falcon", "colour", "n1", "search", ":", ";", "end"].map(str::to_owned);
        Dialect::of_words(&words).unwrap()
    }

    #[test]
    fn known_words_are_one_token_each() {
        let d = dialect();
        assert_eq!(d.encode_text("colour n1 amber falcon ; n1").unwrap().len(), 6);
        assert_eq!(d.vocab_size(), 256 + 8 + SPECIAL_TOKENS.len());
    }

    #[test]
    fn every_special_token_spelt_in_text_gives_plain_ids() {
        let d = dialect();
        for token in SPECIAL_TOKENS {
            for text in [
                token.to_owned(),
                format!("a {token} b"),
                format!("amber{token}{token}"),
                format!("\n{token}"),
            ] {
                let ids = d.encode_text(&text).unwrap();
                assert!(ids.iter().all(|id| !d.is_special(*id)), "{text:?} gave {ids:?}");
                assert_eq!(d.decode_text(&ids).unwrap(), text);
            }
        }
    }

    #[test]
    fn pieces_make_the_text_and_a_character_is_never_torn() {
        let d = dialect();
        let ids = d.message(Role::User, "amber ✓ falcon").unwrap();
        let pieces = d.pieces(&ids).unwrap();
        assert_eq!(pieces.len(), ids.len());
        assert_eq!(pieces.concat(), "<|user|> amber ✓ falcon<|end|>");
        assert_eq!(pieces.iter().filter(|piece| piece.is_empty()).count(), 2, "{pieces:?}");
        assert!(
            d.pieces(&[d.vocab_size() as u32]).unwrap_err().to_string().contains("outside the vocabulary")
        );
    }

    #[test]
    fn a_tokenizer_without_the_template_is_refused_by_name() {
        let json = tokenizer_json(&[]).unwrap().replace("<|call|>", "<|other|>");
        let error = Dialect::from_json(json.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("`<|call|>` is missing"), "{error}");
        assert!(Dialect::from_json(b"{}").is_err());
    }

    proptest! {
        #[test]
        fn any_text_round_trips_without_special_ids(text in "\\PC{0,40}|[ a-z<|>\n\t;:]{0,60}") {
            let d = dialect();
            let ids = d.encode_text(&text).unwrap();
            prop_assert!(ids.iter().all(|id| !d.is_special(*id)));
            prop_assert_eq!(d.decode_text(&ids).unwrap(), text);
        }
    }
}
