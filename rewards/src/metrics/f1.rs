//! Token F1 after `SQuAD` normalisation: lower case, no punctuation, no articles, single spaces.

use std::collections::HashMap;

use serde_json::Value;

use super::{Score, reference};

/// The normalised tokens of a text. A text of nothing but articles keeps them (choice): else a reference such as
/// "A" would be no token at all.
pub(super) fn tokens(text: &str) -> Vec<String> {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let is_article = |t: &&str| matches!(*t, "a" | "an" | "the");
    let all: Vec<&str> = plain.split_whitespace().collect();
    let only_articles = all.iter().all(is_article);
    all.into_iter().filter(|t| only_articles || !is_article(t)).map(str::to_owned).collect()
}

pub(super) fn score(answer: &str, reference: &Value) -> Score {
    let (got, wanted) = (tokens(answer), tokens(&reference::text(reference)));
    let mut left: HashMap<&str, usize> = HashMap::new();
    for token in &wanted {
        *left.entry(token).or_default() += 1;
    }
    let mut common = 0usize;
    for token in &got {
        if let Some(n) = left.get_mut(token.as_str()).filter(|n| **n > 0) {
            *n -= 1;
            common += 1;
        }
    }
    Score::f1(common, got.len(), wanted.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples() {
        let cases = [
            ("the cat sat", json!("cat sat"), 1.0),
            ("sat cat", json!("cat sat"), 1.0),
            ("cat", json!("cat sat"), 2.0 / 3.0),
            ("sat sat", json!("cat sat"), 0.5),
            ("Don't!", json!("dont"), 1.0),
            ("42", json!(42), 1.0),
            ("cat sat", json!(["cat", "sat"]), 1.0),
            ("A.", json!("A"), 1.0),
            ("a cat", json!("A"), 0.0),
            ("dog", json!("cat"), 0.0),
            ("", json!("cat"), 0.0),
            ("", json!(""), 0.0),
            ("", json!(null), 0.0),
        ];
        for (answer, reference, wanted) in cases {
            let got = score(answer, &reference);
            assert!((got.value - wanted).abs() < 1e-12, "{answer:?}: {got:?}");
            assert_eq!(got.success, wanted >= 1.0, "{answer:?}: {got:?}");
        }
    }
}
