//! An assistant's turn: from ids to text and calls, and (for scripted policies) back.

use super::Dialect;
use crate::RolloutError;

/// A tool call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The tool.
    pub name: String,
    /// Arguments in the order of the tool's parameters.
    pub arguments: Vec<String>,
}

impl Call {
    /// A call of `name` with `arguments`.
    pub fn new(name: &str, arguments: &[&str]) -> Self {
        Self { name: name.to_owned(), arguments: arguments.iter().map(|a| (*a).to_owned()).collect() }
    }
}

/// A turn read back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParsedTurn {
    /// Free text before the calls; the answer when there are none.
    pub text: String,
    /// Calls in order.
    pub calls: Vec<Call>,
    /// What breaks the grammar, if something does; `calls` then holds what came before it.
    pub malformed: Option<&'static str>,
}

impl Dialect {
    /// Ids that a policy would have drawn to say `text` and make `calls`, with the closing `<|end|>`.
    ///
    /// # Errors
    /// As [`Dialect::encode_text`].
    pub fn encode_turn(&self, text: &str, calls: &[Call]) -> Result<Vec<u32>, RolloutError> {
        let s = self.special();
        let mut ids = self.encode_text(text)?;
        for call in calls {
            ids.push(s.call);
            ids.extend(self.encode_text(&call.name)?);
            for argument in &call.arguments {
                ids.push(s.arg);
                ids.extend(self.encode_text(argument)?);
            }
            ids.push(s.call_end);
        }
        ids.push(s.end);
        Ok(ids)
    }

    /// Reads a turn's drawn ids, with or without the closing `<|end|>`.
    ///
    /// # Errors
    /// [`RolloutError::Tokenizer`] for an id outside the vocabulary; broken grammar is no error here but
    /// [`ParsedTurn::malformed`].
    pub fn parse_turn(&self, ids: &[u32]) -> Result<ParsedTurn, RolloutError> {
        let s = *self.special();
        let ids = ids.strip_suffix(&[s.end]).unwrap_or(ids);
        let mut turn = ParsedTurn::default();
        let first = ids.iter().position(|id| self.is_special(*id)).unwrap_or(ids.len());
        turn.text = self.decode_text(&ids[..first])?;
        let mut rest = &ids[first..];
        while let Some((open, tail)) = rest.split_first() {
            if *open != s.call {
                turn.malformed = Some("a call must begin with its opening token");
                return Ok(turn);
            }
            let Some(close) = tail.iter().position(|id| *id == s.call_end) else {
                turn.malformed = Some("a call is not closed");
                return Ok(turn);
            };
            let body = &tail[..close];
            if body.iter().any(|id| self.is_special(*id) && *id != s.arg) {
                turn.malformed = Some("a call holds a token that only the template may place");
                return Ok(turn);
            }
            let mut fields = body.split(|id| *id == s.arg);
            let name = self.decode_text(fields.next().unwrap_or_default())?;
            if name.trim().is_empty() {
                turn.malformed = Some("a call names no tool");
                return Ok(turn);
            }
            let arguments = fields.map(|field| self.decode_text(field)).collect::<Result<_, _>>()?;
            turn.calls.push(Call { name, arguments });
            rest = &tail[close + 1..];
        }
        Ok(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dialect() -> Dialect {
        Dialect::of_words(&["search", "open", "n1", "amber"].map(str::to_owned)).unwrap()
    }

    #[test]
    fn broken_grammar_is_named() {
        let d = dialect();
        let s = *d.special();
        let word = d.encode_text("search").unwrap();
        let cases: [(Vec<u32>, &str); 5] = [
            ([vec![s.call], word.clone()].concat(), "not closed"),
            ([vec![s.arg], word.clone()].concat(), "opening token"),
            (vec![s.call, s.call_end], "names no tool"),
            ([vec![s.call], word.clone(), vec![s.user, s.call_end]].concat(), "only the template"),
            ([vec![s.call], word.clone(), vec![s.call_end], word.clone()].concat(), "opening token"),
        ];
        for (ids, wanted) in cases {
            let turn = d.parse_turn(&ids).unwrap();
            assert!(turn.malformed.is_some_and(|m| m.contains(wanted)), "{ids:?}: {turn:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(
            text in "[a-z ]{0,12}|\\PC{0,6}",
            calls in prop::collection::vec(("[a-z_]{1,8}", prop::collection::vec("\\PC{0,10}|<\\|end\\|>", 0..3)), 0..4),
        ) {
            let d = dialect();
            let calls: Vec<Call> = calls.into_iter().map(|(name, arguments)| Call { name, arguments }).collect();
            let ids = d.encode_turn(&text, &calls).unwrap();
            let turn = d.parse_turn(&ids).unwrap();
            prop_assert_eq!(turn, ParsedTurn { text, calls, malformed: None });
        }
    }
}
