//! FanOutQA's accuracy: which of the reference's strings stand in the answer, on word boundaries, after
//! lower-casing and bringing numbers and punctuation to one spelling.

use serde_json::Value;

use super::{Score, reference};

/// Words of a text in one spelling: `1,463,000` is `1463000`, `J.D.` is `jd`, `5.0` is `5`; dashes, apostrophes
/// and all other signs part words.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let chars: Vec<char> = lower.chars().collect();
    let digit = |i: usize| chars.get(i).is_some_and(char::is_ascii_digit);
    // A comma groups thousands only before exactly three digits: `2006,2012` are two numbers.
    let groups = |i: usize| (1..=3).all(|k| digit(i + k)) && !digit(i + 4);
    let mut plain = String::with_capacity(lower.len());
    for (i, c) in chars.iter().enumerate() {
        let after_digit = i > 0 && digit(i - 1);
        match c {
            // `ʼ` is an apostrophe that Unicode counts among the letters.
            c if c.is_alphanumeric() && *c != 'ʼ' => plain.push(*c),
            '.' if after_digit && digit(i + 1) => plain.push('.'),
            ',' if after_digit && groups(i) => {}
            '.' => {}
            _ => plain.push(' '),
        }
    }
    plain.split_whitespace().map(one_number).collect()
}

/// A decimal number without idle zeros; any other word as it is.
fn one_number(word: &str) -> String {
    match word.split_once('.') {
        Some((whole, fraction)) if whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) => {
            let fraction = fraction.trim_end_matches('0');
            if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
        }
        _ => word.to_owned(),
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
    Score::all_or_nothing(loose(answer, reference).success)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples() {
        let nested = json!({"Amsterdam": {"river": "Amstel", "founded": [1275, 1300]}});
        let cases = [
            (
                "Pat Burrell bats Right; Mark Mulder: left",
                json!({"Pat Burrell": "Right", "Mark Mulder": "Left"}),
                1.0,
            ),
            ("Macau has 680,000 people", json!({"Macau": 680_000, "Bahrain": 1_463_000}), 0.5),
            ("1,463,000 of them", json!(1_463_000), 1.0),
            ("2006,2012,2006, 1995", json!([2006, 2012, 2006, 1995]), 1.0),
            ("8848.86 m", json!("8,848.86 m"), 1.0),
            ("J.D. Drew", json!(["JD Drew"]), 1.0),
            ("In D.C.", json!("Washington, D.C."), 0.0),
            ("Washington DC.", json!("Washington, D.C."), 1.0),
            ("the rightmost", json!("right"), 0.0),
            ("14", json!(4), 0.0),
            ("4.5", json!(4), 0.0),
            ("about 5.0 or 3.50", json!([5, 3.5]), 1.0),
            ("exactly 36", json!(36.0), 1.0),
            ("version 1.0.10", json!("1.0.1"), 0.0),
            ("a semi-final", json!("semi final"), 1.0),
            ("Avatar's director", json!("Avatar"), 1.0),
            ("K'inich Janaab’ Pakal", json!("Kʼinich Janaabʼ Pakal"), 1.0),
            ("São Paulo", json!("são paulo"), 1.0),
            ("$87 billion", json!("87 billion"), 1.0),
            ("yes", json!([true, false]), 0.5),
            ("Amsterdam: river Amstel, founded in 1275", nested, 5.0 / 6.0),
            ("Pakal", json!({"Pakal": null}), 1.0),
            ("x", json!(["x", "?"]), 0.5),
            ("", json!("x"), 0.0),
            ("", json!(""), 0.0),
            ("x", json!([]), 0.0),
        ];
        for (answer, reference, wanted) in cases {
            let (l, s) = (loose(answer, &reference), strict(answer, &reference));
            assert!((l.value - wanted).abs() < 1e-12, "{answer:?}: {l:?}");
            assert!((s.value - f64::from(u8::from(wanted >= 1.0))).abs() < 1e-12, "{answer:?}: {s:?}");
            assert_eq!((l.success, s.success), (wanted >= 1.0, wanted >= 1.0), "{answer:?}");
        }
    }
}
