//! Exact match after `SQuAD` normalisation.

use serde_json::Value;

use super::{Score, f1, reference};

pub(super) fn score(answer: &str, reference: &Value) -> Score {
    let right = f1::tokens(answer) == f1::tokens(&reference::text(reference));
    Score { value: f64::from(u8::from(right)), success: right }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples() {
        let cases = [
            ("The Eiffel Tower!", json!("eiffel tower"), true),
            ("eiffel", json!("eiffel tower"), false),
            ("1998", json!(1998), true),
            ("", json!("x"), false),
        ];
        for (answer, reference, wanted) in cases {
            assert_eq!(score(answer, &reference).success, wanted, "{answer:?} {reference}");
        }
    }
}
