//! The local policy: one engine draws the turns of both seats, each seat under its own weight set, in one batch.

use std::collections::{HashMap, VecDeque};

use parl_kernels::backend::{Sampling, SetId};
use parl_kernels::weights::WeightSet;

use super::{AgentRef, Identity, Policy, TurnRequest};
use crate::RolloutError;
use crate::engine::{Begun, Completion, Engine, Finish, Request, RequestId, Stats};
use crate::swarm::{Moment, Seat, Turn, TurnEnd};

/// How a seat draws.
#[derive(Debug, Clone, PartialEq)]
pub struct SeatDraw {
    /// Under which weights.
    pub set: SetId,
    /// Temperature; nothing is cut off.
    pub temperature: f32,
    /// Who it is, for the log.
    pub identity: Identity,
}

/// Both seats on one engine.
pub struct Local {
    engine: Engine,
    orchestrator: SeatDraw,
    subagents: Vec<SeatDraw>,
    end: u32,
    deadline_ticks: u64,
    open: HashMap<RequestId, (AgentRef, f32)>,
    by_agent: HashMap<AgentRef, RequestId>,
    next: u64,
    /// Passes of the engine so far, and when the latest of them began: all since there was last nothing under way.
    passes: u64,
    began: VecDeque<Moment>,
}

impl Local {
    /// Seats on `engine`, whose weight sets are installed. Each request says which of `subagents` draws it; where there
    /// is none, the orchestrator's draw serves both seats. `end` ends a turn; a turn that takes more than
    /// `deadline_ticks` ends unfinished (0 waits for ever).
    pub fn new(
        engine: Engine,
        orchestrator: SeatDraw,
        subagents: Vec<SeatDraw>,
        end: u32,
        deadline_ticks: u64,
    ) -> Self {
        Self {
            engine,
            orchestrator,
            subagents,
            end,
            deadline_ticks,
            open: HashMap::new(),
            by_agent: HashMap::new(),
            next: 0,
            passes: 0,
            began: VecDeque::new(),
        }
    }

    fn seat(&self, seat: Seat, number: usize) -> &SeatDraw {
        let subagent = || self.subagents.get(number).or(self.subagents.last());
        match seat {
            Seat::Orchestrator => &self.orchestrator,
            Seat::Subagent => subagent().unwrap_or(&self.orchestrator),
        }
    }

    /// The engine's counters.
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    fn turn(&mut self, completion: Completion) -> Option<(AgentRef, Turn)> {
        let (who, temperature) = self.open.remove(&completion.id)?;
        self.by_agent.remove(&who);
        let end = match completion.finish {
            Finish::Stop => TurnEnd::Stop,
            Finish::Length => TurnEnd::Length,
            Finish::Deadline => TurnEnd::Deadline,
        };
        let turn = Turn {
            ids: completion.ids,
            logprobs: completion.logprobs,
            versions: completion.versions,
            temperature,
            end,
            started: self.began_at(completion.first_tick),
        };
        Some((who, turn))
    }

    /// When a pass began; passes count from 1, as the engine's ticks do.
    fn began_at(&self, pass: u64) -> Moment {
        let ago = self.passes.saturating_sub(pass) as usize;
        let kept = self.began.len().checked_sub(ago + 1).and_then(|at| self.began.get(at));
        kept.or(self.began.front()).copied().unwrap_or_default()
    }
}

impl Policy for Local {
    fn identity(&self, seat: Seat, number: usize) -> Identity {
        self.seat(seat, number).identity.clone()
    }

    fn submit(&mut self, request: TurnRequest<'_>) -> Result<(), RolloutError> {
        let seat = self.seat(request.seat, request.subagents);
        let (set, temperature) = (seat.set, seat.temperature);
        let id = RequestId(self.next);
        self.next += 1;
        self.engine.submit(Request {
            id,
            set,
            prompt: request.context.to_vec(),
            begun: request.begun.cloned().unwrap_or_default(),
            max_new_tokens: request.max_new_tokens,
            stop: vec![self.end],
            sampling: Sampling { temperature, top_k: 0, top_p: 1.0 },
            key: request.key,
            deadline_ticks: self.deadline_ticks,
        })?;
        self.open.insert(id, (request.who, temperature));
        self.by_agent.insert(request.who, id);
        Ok(())
    }

    fn cancel(&mut self, who: AgentRef) {
        if let Some(id) = self.by_agent.remove(&who) {
            self.open.remove(&id);
            self.engine.cancel(id);
        }
    }

    fn tick(&mut self, now: Moment) -> Result<Vec<(AgentRef, Turn)>, RolloutError> {
        if self.open.is_empty() {
            self.began.clear();
        }
        self.passes += 1;
        self.began.push_back(now);
        let complete = self.engine.tick()?;
        Ok(complete.into_iter().filter_map(|c| self.turn(c)).collect())
    }

    fn publish(&mut self, seat: Seat, weights: WeightSet) -> Result<(), RolloutError> {
        let set = self.seat(seat, 0).set;
        self.engine.install(set, weights)?;
        Ok(())
    }

    fn give_back(&mut self, seat: Seat) {
        let set = self.seat(seat, 0).set;
        self.engine.release(set);
    }

    fn forget(&mut self) {
        self.engine.park();
    }

    fn under_way(&self) -> Vec<(AgentRef, Begun)> {
        let known = |(id, begun)| Some((self.open.get(&id)?.0, begun));
        self.engine.under_way().into_iter().filter_map(known).collect()
    }

    fn set_temperature(&mut self, seat: Seat, temperature: f32) {
        match seat {
            Seat::Orchestrator => self.orchestrator.temperature = temperature,
            Seat::Subagent => self.subagents.iter_mut().for_each(|draw| draw.temperature = temperature),
        }
    }
}
