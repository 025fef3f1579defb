//! F1 over items: how much of a set or table an answer gives, and how much it makes up.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Score, reference};

fn normal(item: &str) -> String {
    item.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(super) fn score(answer: &str, reference: &Value) -> Score {
    let got: BTreeSet<String> = answer.split([';', '\n']).map(normal).filter(|i| !i.is_empty()).collect();
    let wanted: BTreeSet<String> = reference::rows(reference).iter().map(|r| normal(r)).collect();
    let common = got.intersection(&wanted).count();
    let size = got.len() + wanted.len();
    let value = if common == 0 { 0.0 } else { 2.0 * common as f64 / size as f64 };
    Score { value, success: common > 0 && got == wanted }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples() {
        let table = json!({"n1": "teal", "n2": ["oak", "iron"]});
        let cases = [
            ("n1 teal ; n2 oak iron", table.clone(), 1.0, true),
            ("N2  oak iron\nn1 teal", table.clone(), 1.0, true),
            ("n1 teal ; n1 teal", table.clone(), 2.0 / 3.0, false),
            ("n1 teal ; n2 oak", table.clone(), 0.5, false),
            ("n1 teal ; n2 oak iron ; n3 red", table.clone(), 0.8, false),
            ("", table, 0.0, false),
            ("a ; b", json!(["b", "a"]), 1.0, true),
            ("teal", json!("teal"), 1.0, true),
        ];
        for (answer, reference, value, success) in cases {
            let got = score(answer, &reference);
            assert!((got.value - value).abs() < 1e-12 && got.success == success, "{answer:?}: {got:?}");
        }
    }
}
