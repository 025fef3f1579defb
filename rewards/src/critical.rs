//! Critical steps: the length of an episode's longest chain of work.

/// One stage: an orchestrator turn and the sub-agents that it started, joined at its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stage {
    /// The orchestrator's own cost, steps.
    pub s_main: u32,
    /// Steps of each sub-agent of the stage.
    pub sub_steps: Vec<u32>,
}

impl Stage {
    /// Steps that its longest sub-agent takes; 0 where none ran.
    pub fn longest(&self) -> u32 {
        self.sub_steps.iter().copied().max().unwrap_or(0)
    }
}

/// CriticalSteps = Σ_t ( S_main(t) + max_i S_sub,i(t) ); max = 0 where no sub-agent ran.
pub fn critical_steps(stages: &[Stage]) -> u64 {
    stages.iter().map(|s| u64::from(s.s_main) + u64::from(s.longest())).sum()
}

/// All steps of all agents.
pub fn total_steps(stages: &[Stage]) -> u64 {
    stages.iter().map(|s| u64::from(s.s_main) + s.sub_steps.iter().map(|n| u64::from(*n)).sum::<u64>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_longest_sub_agent_of_a_stage_counts() {
        let stage = |s_main, sub: &[u32]| Stage { s_main, sub_steps: sub.to_vec() };
        let cases = [
            (vec![], 0, 0),
            (vec![stage(1, &[])], 1, 1),
            (vec![stage(1, &[2, 5, 3]), stage(1, &[])], 7, 12),
            (vec![stage(3, &[]), stage(1, &[2; 100]), stage(1, &[])], 7, 205),
        ];
        for (stages, critical, total) in cases {
            assert_eq!((critical_steps(&stages), total_steps(&stages)), (critical, total), "{stages:?}");
        }
    }
}
