//! FanOutQA's accuracy: which of the reference's strings stand in the answer, on word boundaries, after
//! lower-casing and bringing numbers and punctuation to one spelling.

use serde_json::Value;

use super::{Score, reference};

/// Words of a text in one spelling: `1,463,000` is `1463000`, `J.D.` is `jd`, `5.0` is `5`, dashes part words.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let chars: Vec<char> = lower.chars().collect();
    let digit = |i: usize| chars.get(i).is_some_and(char::is_ascii_digit);
    let mut plain = String::with_capacity(lower.len());
    for (i, c) in chars.iter().enumerate() {
        let between_digits = i > 0 && digit(i - 1) && digit(i + 1);
        match c {
            c if c.is_alphanumeric() => plain.push(*c),
            '.' if between_digits => plain.push('.'),
            ',' if between_digits => {}
            '.' | '\'' | '’' | '"' | '“' | '”' => {}
            _ => plain.push(' '),
        }
    }
    plain.split_whitespace().map(one_number).collect()
}

fn one_number(word: &str) -> String {
    match word.split_once('.') {
        Some((whole, fraction)) => {
            let fraction = fraction.trim_end_matches('0');
            if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
        }
        None => word.to_owned(),
    }
}

fn found(answer: &[String], wanted: &str) -> bool {
    let wanted = words(wanted);
    !wanted.is_empty() && answer.windows(wanted.len()).any(|window| window == wanted)
}

/// The share of reference strings found.
pub(super) fn loose(answer: &str, reference: &Value) -> Score {
    let answer = words(answer);
    let strings = reference::strings(reference);
    let hits = strings.iter().filter(|s| found(&answer, s)).count();
    Score::share(hits, strings.len())
}

/// 1 when all are found.
pub(super) fn strict(answer: &str, reference: &Value) -> Score {
    let success = loose(answer, reference).success;
    Score { value: f64::from(u8::from(success)), success }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples() {
        let cases = [
            (
                "Pat Burrell bats Right; Mark Mulder: left",
                json!({"Pat Burrell": "Right", "Mark Mulder": "Left"}),
                1.0,
            ),
            ("Macau has 680,000 people", json!({"Macau": 680_000, "Bahrain": 1_463_000}), 0.5),
            ("J.D. Drew", json!(["JD Drew"]), 1.0),
            ("the rightmost", json!("right"), 0.0),
            ("about 5.0 or 3.50", json!([5, 3.5]), 1.0),
            ("a semi-final", json!("semi final"), 1.0),
            ("", json!("x"), 0.0),
            ("x", json!([]), 0.0),
        ];
        for (answer, reference, wanted) in cases {
            let (l, s) = (loose(answer, &reference), strict(answer, &reference));
            assert!((l.value - wanted).abs() < 1e-12, "{answer:?}: {l:?}");
            assert!((s.value - f64::from(u8::from(wanted >= 1.0))).abs() < 1e-12);
        }
    }
}
