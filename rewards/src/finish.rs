//! r_finish, the share of assigned work that got done: it counters spurious parallelism.

use crate::Assignment;

/// Whether an assignment is finished work (choice: without one environment call there was no work).
pub fn is_finished(assignment: &Assignment<'_>) -> bool {
    assignment.finished && assignment.env_calls > 0
}

/// Finished assignments over all assignments; 0 when nothing was assigned.
pub fn r_finish(assignments: &[Assignment<'_>]) -> f64 {
    if assignments.is_empty() {
        return 0.0;
    }
    assignments.iter().filter(|a| is_finished(a)).count() as f64 / assignments.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_message_without_work_is_not_finished() {
        let a = |finished, env_calls| Assignment { stage: 0, prompt: "p", finished, env_calls };
        assert!(r_finish(&[]).abs() < 1e-15);
        assert!((r_finish(&[a(true, 2), a(true, 0), a(false, 3), a(true, 1)]) - 0.5).abs() < 1e-15);
    }
}
