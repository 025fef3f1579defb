//! F1 over items: how much of a set or table an answer gives, and how much it makes up.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Score, reference};

/// The items of a text: parted by `;` and line breaks, in lower case with single spaces, each counted once.
fn items(text: &str) -> impl Iterator<Item = String> + '_ {
    let normal = |item: &str| item.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    text.split([';', '\n']).map(normal).filter(|item| !item.is_empty())
}

pub(super) fn score(answer: &str, reference: &Value) -> Score {
    let got: BTreeSet<String> = items(answer).collect();
    // A reference string that holds a `;` is parted like an answer: else no answer could match it.
    let rows = reference::rows(reference);
    let wanted: BTreeSet<String> = rows.iter().flat_map(|row| items(row)).collect();
    Score::f1(got.intersection(&wanted).count(), got.len(), wanted.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples() {
        let table = json!({"n1": "teal", "n2": ["oak", "iron"]});
        let cases = [
            ("n1 teal ; n2 oak iron", table.clone(), 1.0),
            ("N2  oak iron\nn1 teal", table.clone(), 1.0),
            ("n1 teal ; n1 teal", table.clone(), 2.0 / 3.0),
            ("n1 teal ; n2 oak", table.clone(), 0.5),
            ("n1 teal ; n2 oak iron ; n3 red", table.clone(), 0.8),
            ("", table.clone(), 0.0),
            (" ;\n; ", table, 0.0),
            ("a ; b", json!(["b", "a"]), 1.0),
            ("a ; b", json!(["b", "a", "A"]), 1.0),
            ("3; 4", json!([3, 4]), 1.0),
            ("teal", json!("teal"), 1.0),
            ("x; y", json!("x; y"), 1.0),
            ("", json!(""), 0.0),
            ("", json!([]), 0.0),
            ("n", json!([]), 0.0),
            ("", json!(null), 0.0),
        ];
        for (answer, reference, value) in cases {
            let got = score(answer, &reference);
            assert!((got.value - value).abs() < 1e-12, "{answer:?} {reference}: {got:?}");
            assert_eq!(got.success, value >= 1.0, "{answer:?} {reference}: {got:?}");
        }
    }
}
