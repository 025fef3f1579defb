//! Token F1 after `SQuAD` normalisation: lower case, no punctuation, no articles, single spaces.

use std::collections::HashMap;

use serde_json::Value;

use super::{Score, reference};

/// The normalised tokens of a text.
pub(super) fn tokens(text: &str) -> Vec<String> {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    plain.split_whitespace().filter(|t| !matches!(*t, "a" | "an" | "the")).map(str::to_owned).collect()
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
    // 2PR / (P + R) = 2·common / (|got| + |wanted|).
    let size = got.len() + wanted.len();
    let value = if common == 0 { 0.0 } else { 2.0 * common as f64 / size as f64 };
    Score { value, success: common > 0 && 2 * common == size }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples() {
        let cases = [
            ("the cat sat", json!("cat sat"), 1.0),
            ("cat", json!("cat sat"), 2.0 / 3.0),
            ("sat sat", json!("cat sat"), 0.5),
            ("dog", json!("cat"), 0.0),
            ("", json!("cat"), 0.0),
        ];
        for (answer, reference, wanted) in cases {
            assert!((score(answer, &reference).value - wanted).abs() < 1e-12, "{answer:?}");
        }
    }
}
