//! Exact match after `SQuAD` normalisation.

use serde_json::Value;

use super::{Score, f1, reference};

/// An empty reference is matched by nothing: silence must not earn a reward.
pub(super) fn score(answer: &str, reference: &Value) -> Score {
    let wanted = f1::tokens(&reference::text(reference));
    Score::all_or_nothing(!wanted.is_empty() && f1::tokens(answer) == wanted)
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
            ("tower eiffel", json!("eiffel tower"), false),
            ("1998", json!(1998), true),
            ("yes", json!(true), true),
            ("A", json!("A"), true),
            ("the", json!("A"), false),
            ("", json!("x"), false),
            ("", json!(""), false),
            ("?", json!(null), false),
        ];
        for (answer, reference, wanted) in cases {
            let got = score(answer, &reference);
            assert_eq!(got.success, wanted, "{answer:?} {reference}");
            assert!((got.value - f64::from(u8::from(wanted))).abs() < 1e-15, "{answer:?} {reference}");
        }
    }
}
