//! Two policies, one a seat.

use parl_kernels::weights::WeightSet;

use super::{AgentRef, Identity, Policy, TurnRequest};
use crate::RolloutError;
use crate::engine::Begun;
use crate::swarm::{Moment, Seat, Turn};

/// Sends each seat's requests to a policy of its own.
pub struct Pair {
    /// Draws the orchestrator's turns.
    pub orchestrator: Box<dyn Policy>,
    /// Draws the sub-agents' turns.
    pub subagent: Box<dyn Policy>,
}

impl Policy for Pair {
    fn identity(&self, seat: Seat, number: usize) -> Identity {
        match seat {
            Seat::Orchestrator => self.orchestrator.identity(seat, number),
            Seat::Subagent => self.subagent.identity(seat, number),
        }
    }

    fn submit(&mut self, request: TurnRequest<'_>) -> Result<(), RolloutError> {
        match request.seat {
            Seat::Orchestrator => self.orchestrator.submit(request),
            Seat::Subagent => self.subagent.submit(request),
        }
    }

    fn cancel(&mut self, who: AgentRef) {
        if who.agent == 0 { self.orchestrator.cancel(who) } else { self.subagent.cancel(who) }
    }

    fn tick(&mut self, now: Moment) -> Result<Vec<(AgentRef, Turn)>, RolloutError> {
        let mut turns = self.orchestrator.tick(now)?;
        turns.extend(self.subagent.tick(now)?);
        Ok(turns)
    }

    fn publish(&mut self, seat: Seat, weights: WeightSet) -> Result<(), RolloutError> {
        match seat {
            Seat::Orchestrator => self.orchestrator.publish(seat, weights),
            Seat::Subagent => self.subagent.publish(seat, weights),
        }
    }

    fn give_back(&mut self, seat: Seat) {
        match seat {
            Seat::Orchestrator => self.orchestrator.give_back(seat),
            Seat::Subagent => self.subagent.give_back(seat),
        }
    }

    fn forget(&mut self) {
        self.orchestrator.forget();
        self.subagent.forget();
    }

    fn under_way(&self) -> Vec<(AgentRef, Begun)> {
        let mut turns = self.orchestrator.under_way();
        turns.extend(self.subagent.under_way());
        turns
    }

    fn set_temperature(&mut self, seat: Seat, temperature: f32) {
        match seat {
            Seat::Orchestrator => self.orchestrator.set_temperature(seat, temperature),
            Seat::Subagent => self.subagent.set_temperature(seat, temperature),
        }
    }
}
