//! A stretch of training steps, as the command line has it.

use std::fmt;
use std::str::FromStr;

/// Steps from `from` on, and before `to` where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepRange {
    from: u32,
    to: Option<u32>,
}

impl StepRange {
    /// Whether the step is in it.
    pub fn contains(self, step: u32) -> bool {
        step >= self.from && self.to.is_none_or(|to| step < to)
    }
}

impl FromStr for StepRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| {
            digits
                .parse::<u32>()
                .map_err(|_| format!("`{digits}` is no step; write A..B (without B), A.., ..B or A"))
        };
        let (from, to) = match text.split_once("..") {
            None => {
                let step = number(text)?;
                (step, Some(step.saturating_add(1)))
            }
            Some((from, to)) => {
                let from = if from.is_empty() { 0 } else { number(from)? };
                (from, if to.is_empty() { None } else { Some(number(to)?) })
            }
        };
        match to {
            Some(to) if to <= from => {
                Err(format!("no step is in {from}..{to}; B itself is not part of A..B"))
            }
            _ => Ok(Self { from, to }),
        }
    }
}

impl fmt::Display for StepRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            Some(to) => write!(f, "{}..{to}", self.from),
            None => write!(f, "{}..", self.from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_has_its_first_step_and_not_its_last() {
        let inside = |text: &str| {
            let range: StepRange = text.parse().unwrap();
            (0..6).filter(|step| range.contains(*step)).collect::<Vec<_>>()
        };
        assert_eq!(inside("1..3"), [1, 2]);
        assert_eq!(inside("..2"), [0, 1]);
        assert_eq!(inside("4.."), [4, 5]);
        assert_eq!(inside("3"), [3]);
        for (text, wanted) in [
            ("3..3", "no step is in 3..3"),
            ("a..2", "`a` is no step"),
            ("", "is no step"),
            ("1...3", "`.3`"),
        ] {
            let error = text.parse::<StepRange>().unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
