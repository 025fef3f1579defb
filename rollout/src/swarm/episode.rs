//! One episode as a pure state machine: `start` and `step` take what happened and say what to do next.
//!
//! Stages and steps are counted as method.md §3 says: a stage is one orchestrator turn;
//! S_main = max(1, direct environment calls); all creations and assignments of a turn cost 1 together.

use std::collections::HashMap;

use super::agent::{Agent, call_record};
use super::observation::{self, reason};
use super::{
    ASSIGN, Action, CREATE, EpisodeSpec, Event, Message, Moment, OnExhaustion, Rules, Seat, Turn, TurnEnd,
};
use crate::RolloutError;
use crate::dialect::{Call, Dialect, ParsedTurn, Role};
use crate::tools::{ToolOutcome, ToolSpec};
use crate::trajectory::record::Status;
use parl_kernels::rng::{RngKey, Stream};
use parl_rewards::critical::{Stage, critical_steps};

/// How an episode came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// The answer, if one was given.
    pub answer: Option<String>,
    /// The policy's own failure.
    pub failure: Option<&'static str>,
    /// Infrastructure's words.
    pub error: Option<String>,
}

/// An episode under way.
#[derive(Debug)]
pub struct Episode<'a> {
    pub(super) spec: EpisodeSpec,
    pub(super) rules: &'a Rules,
    dialect: &'a Dialect,
    /// 0 is the orchestrator.
    pub(super) agents: Vec<Agent>,
    configurations: HashMap<String, String>,
    /// Which call of the orchestrator an assignment answers.
    answers_call: HashMap<u32, u32>,
    pub(super) stages: Vec<Stage>,
    pub(super) outcome: Option<Outcome>,
    pub(super) began: Moment,
}

impl<'a> Episode<'a> {
    /// Begins an episode; the returned actions are its first.
    ///
    /// # Errors
    /// When the prompt cannot be encoded.
    pub fn start(
        spec: EpisodeSpec,
        rules: &'a Rules,
        dialect: &'a Dialect,
        now: Moment,
    ) -> Result<(Self, Vec<Action>), RolloutError> {
        let prompts = (rules.orchestrator.system_prompt.as_str(), spec.task.prompt.as_str());
        let orchestrator = Agent::new(dialect, 0, Seat::Orchestrator, "orchestrator", prompts, None, now)?;
        let mut episode = Self {
            spec,
            rules,
            dialect,
            agents: vec![orchestrator],
            configurations: HashMap::new(),
            answers_call: HashMap::new(),
            stages: Vec::new(),
            outcome: None,
            began: now,
        };
        let mut actions = Vec::new();
        episode.next_orchestrator_turn(now, &mut actions)?;
        Ok((episode, actions))
    }

    /// Takes in one event.
    ///
    /// # Errors
    /// [`RolloutError::Internal`] for an event that nobody waits for; events for agents that have ended are
    /// dropped, since a cancelled turn may still come back.
    pub fn step(&mut self, event: Event, now: Moment) -> Result<Vec<Action>, RolloutError> {
        let mut actions = Vec::new();
        let (Event::Turn { agent, .. } | Event::Tool { agent, .. }) = event;
        let Some(running) = self.agents.get(agent as usize).map(Agent::running) else {
            return Err(RolloutError::Internal(format!(
                "episode {}: no agent {agent}",
                self.spec.episode_id
            )));
        };
        if !running || self.outcome.is_some() {
            return Ok(actions);
        }
        match event {
            Event::Turn { agent: 0, turn } => self.orchestrator_turn(&turn, now, &mut actions)?,
            Event::Turn { agent, turn } => self.subagent_turn(agent, &turn, now, &mut actions)?,
            Event::Tool { agent, call, outcome } => {
                self.tool_result(agent, call, outcome, now, &mut actions)?;
            }
        }
        Ok(actions)
    }

    /// What is asked, and of which task.
    pub fn spec(&self) -> &EpisodeSpec {
        &self.spec
    }

    /// `Some` once it is over.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// An agent's context so far.
    pub fn context(&self, agent: u32) -> &[u32] {
        &self.agents[agent as usize].branch.token_ids
    }

    /// An agent's transcript so far.
    pub fn messages(&self, agent: u32) -> &[Message] {
        &self.agents[agent as usize].messages
    }

    /// The seat of an agent.
    pub fn seat(&self, agent: u32) -> Seat {
        self.agents[agent as usize].seat
    }

    /// Whether the agent's open turn is the forced answer.
    pub fn forced(&self, agent: u32) -> bool {
        self.agents[agent as usize].forced
    }

    /// Agents that still have a turn or a tool under way.
    pub fn running_agents(&self) -> impl Iterator<Item = u32> + '_ {
        self.agents.iter().filter(|a| a.running()).map(|a| a.idx)
    }

    /// Ends the episode without a reward, as when its policy's endpoint is down.
    pub fn abandon(&mut self, error: String, now: Moment) {
        self.end(Status::Error, None, None, Some(error), now);
    }

    fn critical(&self) -> u32 {
        critical_steps(&self.stages) as u32
    }

    fn end(
        &mut self,
        status: Status,
        answer: Option<String>,
        failure: Option<&'static str>,
        error: Option<String>,
        now: Moment,
    ) {
        for agent in self.agents.iter_mut().filter(|a| a.running()) {
            let reason = if agent.idx == 0 && status != Status::Error {
                failure.unwrap_or("done")
            } else {
                "cancelled"
            };
            agent.finish(reason, answer.clone().filter(|_| agent.idx == 0), now);
        }
        self.outcome = Some(Outcome { status, answer, failure, error });
    }

    fn next_orchestrator_turn(&mut self, now: Moment, actions: &mut Vec<Action>) -> Result<(), RolloutError> {
        let exhausted = self.critical() >= self.rules.critical_steps
            || self.agents[0].turns >= self.rules.orchestrator.max_turns;
        if exhausted && self.rules.on_exhaustion == OnExhaustion::Fail {
            self.end(Status::Truncated, None, Some("budget"), None, now);
            return Ok(());
        }
        let dialect = self.dialect;
        let orchestrator = &mut self.agents[0];
        if exhausted {
            orchestrator.forced = true;
            orchestrator.say(dialect, Role::User, observation::ANSWER_NOW, None)?;
        }
        match orchestrator.open_turn(dialect, &self.rules.orchestrator, now) {
            Some(max_new_tokens) => actions.push(Action::Sample { agent: 0, max_new_tokens }),
            None => self.end(Status::Truncated, None, Some("context"), None, now),
        }
        Ok(())
    }

    fn orchestrator_turn(
        &mut self,
        turn: &Turn,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> Result<(), RolloutError> {
        if let TurnEnd::Failed(error) = &turn.end {
            self.abandon(error.clone(), now);
            return Ok(());
        }
        let dialect = self.dialect;
        let parsed = self.agents[0].take_turn(dialect, turn)?;
        let stage = self.stages.len() as u32;
        let swarm_calls = parsed.calls.iter().filter(|c| is_swarm_call(&c.name)).count();
        let direct_calls = parsed.calls.len() - swarm_calls;
        let mixed = swarm_calls > 0 && direct_calls > 0;
        let malformed = parsed.malformed.is_some();
        let last_turn = self.agents[0].forced || turn.end == TurnEnd::Deadline;
        let direct = if mixed || malformed || last_turn { 0 } else { direct_calls as u32 };
        let room = self.rules.critical_steps.saturating_sub(self.critical()).max(1);
        self.stages.push(Stage { s_main: direct.clamp(1, room), sub_steps: Vec::new() });

        let ids: Vec<u32> = parsed.calls.iter().map(|_| self.agents[0].number_call()).collect();
        let records = self.records(&parsed, &ids, now);
        let s_main = self.stages[stage as usize].s_main;
        self.agents[0].log_step(turn, stage, s_main, records, now);

        if last_turn || (parsed.calls.is_empty() && !malformed) {
            self.answer(&parsed, turn, now);
            return Ok(());
        }
        if malformed {
            // The calls before the fault are not made: half a turn is no plan.
            let call = self.agents[0].number_call();
            self.agents[0].pending.retain(|p| p.call == call);
            self.agents[0].resolve(call, observation::error(reason::MALFORMED));
        } else if mixed {
            for id in ids {
                self.agents[0].resolve(id, observation::error(reason::MIXED));
            }
        } else if swarm_calls > 0 {
            self.swarm_calls(&parsed.calls, &ids, stage, now, actions)?;
        } else {
            let allowed = s_main as usize;
            self.environment_calls(0, &parsed.calls, &ids, allowed, actions);
        }
        self.join(now, actions)
    }

    fn answer(&mut self, parsed: &ParsedTurn, turn: &Turn, now: Moment) {
        let forced = self.agents[0].forced;
        let text = parsed.text.trim();
        let clean = parsed.calls.is_empty() && parsed.malformed.is_none() && turn.end == TurnEnd::Stop;
        if clean && !text.is_empty() {
            let status = if forced { Status::Budget } else { Status::Ok };
            self.end(status, Some(text.to_owned()), None, None, now);
            return;
        }
        let failure = match &turn.end {
            TurnEnd::Deadline => "deadline",
            TurnEnd::Length => "length",
            _ if forced => "budget",
            _ => "no_answer",
        };
        self.end(Status::Truncated, None, Some(failure), None, now);
    }

    fn records(
        &self,
        parsed: &ParsedTurn,
        ids: &[u32],
        now: Moment,
    ) -> Vec<crate::trajectory::record::CallRecord> {
        let parameters = |call: &Call| match call.name.as_str() {
            CREATE => Some(vec!["name".to_owned(), "system_prompt".to_owned()]),
            ASSIGN => Some(vec!["agent".to_owned(), "prompt".to_owned()]),
            name => self.tool(name).map(|t| t.parameters.clone()),
        };
        parsed
            .calls
            .iter()
            .zip(ids)
            .map(|(call, id)| call_record(*id, call, parameters(call).as_deref(), now))
            .collect()
    }

    fn tool(&self, name: &str) -> Option<&ToolSpec> {
        self.rules.tools.iter().find(|t| t.name == name)
    }

    /// Starts up to `allowed` environment calls of a turn; the rest, and those that make no sense, are answered
    /// with an error observation.
    fn environment_calls(
        &mut self,
        agent: u32,
        calls: &[Call],
        ids: &[u32],
        allowed: usize,
        actions: &mut Vec<Action>,
    ) {
        for (i, (call, id)) in calls.iter().zip(ids).enumerate() {
            let refusal = if i >= allowed {
                Some(reason::BUDGET)
            } else if is_swarm_call(&call.name) {
                Some(reason::NESTING)
            } else {
                match self.tool(&call.name) {
                    None => Some(reason::UNKNOWN_TOOL),
                    Some(tool) if tool.parameters.len() != call.arguments.len() => Some(reason::ARGUMENTS),
                    Some(_) => None,
                }
            };
            let acting = &mut self.agents[agent as usize];
            if let Some(reason) = refusal {
                acting.resolve(*id, observation::error(reason));
                continue;
            }
            acting.steps_used += 1;
            let (name, arguments) = (call.name.clone(), call.arguments.clone());
            actions.push(Action::Call { agent, call: *id, name, arguments });
        }
    }

    fn swarm_calls(
        &mut self,
        calls: &[Call],
        ids: &[u32],
        stage: u32,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> Result<(), RolloutError> {
        let mut assigned = 0;
        for (call, id) in calls.iter().zip(ids) {
            let result = match (call.name.as_str(), call.arguments.as_slice()) {
                (CREATE, [name, system]) => Some(self.create(name, system)),
                (ASSIGN, [name, prompt]) => {
                    let system = self.configurations.get(name).cloned();
                    let total = self.agents.len() as u32 - 1;
                    match system {
                        None => Some(observation::error(reason::UNKNOWN_AGENT)),
                        Some(_)
                            if assigned >= self.rules.max_concurrent
                                || total >= self.rules.max_assignments =>
                        {
                            Some(observation::error(reason::TOO_MANY))
                        }
                        Some(system) => {
                            assigned += 1;
                            self.assign(name, (&system, prompt), *id, stage, now, actions)?
                        }
                    }
                }
                _ => Some(observation::error(reason::ARGUMENTS)),
            };
            if let Some(text) = result {
                self.agents[0].resolve(*id, text);
            }
        }
        Ok(())
    }

    fn create(&mut self, name: &str, system_prompt: &str) -> String {
        if name.trim().is_empty() {
            return observation::error(reason::EMPTY_NAME);
        }
        if self.configurations.contains_key(name) {
            return observation::error(reason::DUPLICATE);
        }
        self.configurations.insert(name.to_owned(), system_prompt.to_owned());
        observation::READY.to_owned()
    }

    /// Starts a sub-agent; `Some` is its result when it fails at once.
    fn assign(
        &mut self,
        name: &str,
        prompts: (&str, &str),
        call: u32,
        stage: u32,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> Result<Option<String>, RolloutError> {
        let idx = self.agents.len() as u32;
        let mut agent = Agent::new(self.dialect, idx, Seat::Subagent, name, prompts, Some(stage), now)?;
        let key = RngKey {
            seed: self.spec.run_seed,
            stream: Stream::Faults,
            episode: self.spec.stream_id,
            agent: idx,
        };
        agent.outage = key.uniform_f64(0) < self.rules.outage_rate;
        let opened = agent.open_turn(self.dialect, &self.rules.subagent, now);
        self.answers_call.insert(idx, call);
        if opened.is_none() {
            agent.finish("context", None, now);
        }
        self.agents.push(agent);
        match opened {
            Some(max_new_tokens) => {
                actions.push(Action::Sample { agent: idx, max_new_tokens });
                Ok(None)
            }
            None => Ok(Some(observation::failed("context", prompts.1))),
        }
    }

    /// A sub-agent's steps may not carry its stage over the episode's budget.
    fn subagent_limit(&self) -> u32 {
        let s_main = self.stages.last().map_or(0, |s| s.s_main);
        let before = self.critical_before_current();
        self.rules.subagent_steps.min(self.rules.critical_steps.saturating_sub(before + s_main))
    }

    fn critical_before_current(&self) -> u32 {
        let done = self.stages.len().saturating_sub(1);
        critical_steps(&self.stages[..done]) as u32
    }

    fn subagent_turn(
        &mut self,
        idx: u32,
        turn: &Turn,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> Result<(), RolloutError> {
        match &turn.end {
            TurnEnd::Failed(error) => {
                self.abandon(error.clone(), now);
                return Ok(());
            }
            TurnEnd::Deadline => return self.fail_subagent(idx, "deadline", now, actions),
            TurnEnd::Stop | TurnEnd::Length => {}
        }
        let stage = self.agents[idx as usize].stage.unwrap_or(0);
        let limit = self.subagent_limit();
        let agent = &mut self.agents[idx as usize];
        let parsed = agent.take_turn(self.dialect, turn)?;
        let malformed = parsed.malformed.is_some() || turn.end == TurnEnd::Length;
        let calls = if malformed { &[][..] } else { &parsed.calls[..] };
        let ids: Vec<u32> = calls.iter().map(|_| agent.number_call()).collect();
        let shown = ParsedTurn { calls: calls.to_vec(), ..ParsedTurn::default() };
        let records = self.records(&shown, &ids, now);
        let agent = &mut self.agents[idx as usize];
        agent.log_step(turn, stage, 0, records, now);
        if malformed {
            return self.fail_subagent(idx, "malformed", now, actions);
        }
        if calls.is_empty() {
            let text = parsed.text.trim().to_owned();
            if text.is_empty() {
                return self.fail_subagent(idx, "no_answer", now, actions);
            }
            self.agents[idx as usize].finish("done", Some(text.clone()), now);
            self.report(idx, text);
            return self.join(now, actions);
        }
        // Turns that only earn error observations are bounded too.
        if agent.steps_used + calls.len() as u32 > limit || agent.turns > self.rules.subagent.max_turns {
            return self.fail_subagent(idx, "step_limit", now, actions);
        }
        self.environment_calls(idx, calls, &ids, calls.len(), actions);
        self.advance_subagent(idx, now, actions)
    }

    fn fail_subagent(
        &mut self,
        idx: u32,
        reason: &'static str,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> Result<(), RolloutError> {
        let agent = &mut self.agents[idx as usize];
        agent.finish(reason, None, now);
        let text = observation::failed(reason, &agent.prompt);
        self.report(idx, text);
        self.join(now, actions)
    }

    /// Hands an assignment's result to the orchestrator's call.
    fn report(&mut self, idx: u32, text: String) {
        if let Some(call) = self.answers_call.get(&idx) {
            self.agents[0].resolve(*call, text);
        }
    }

    fn tool_result(
        &mut self,
        agent: u32,
        call: u32,
        outcome: ToolOutcome,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> Result<(), RolloutError> {
        let (text, error) = match outcome {
            ToolOutcome::Ok(text) => (text, false),
            ToolOutcome::Error(text) => (observation::error(&text), true),
            ToolOutcome::Down(text) => {
                self.abandon(format!("a tool is down: {text}"), now);
                return Ok(());
            }
        };
        let acting = &mut self.agents[agent as usize];
        if let Some(record) =
            acting.steps.last_mut().and_then(|s| s.tool_calls.iter_mut().find(|c| c.id == call.to_string()))
        {
            record.t_end_ms = now.ms;
            record.error = error;
        }
        acting.resolve(call, text);
        if agent == 0 { self.join(now, actions) } else { self.advance_subagent(agent, now, actions) }
    }

    /// Gives a sub-agent its next turn once all its calls have come back.
    fn advance_subagent(
        &mut self,
        idx: u32,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> Result<(), RolloutError> {
        if !self.agents[idx as usize].all_resolved() {
            return Ok(());
        }
        if self.agents[idx as usize].outage {
            return self.fail_subagent(idx, "outage", now, actions);
        }
        let agent = &mut self.agents[idx as usize];
        agent.flush_results(self.dialect)?;
        match agent.open_turn(self.dialect, &self.rules.subagent, now) {
            Some(max_new_tokens) => {
                actions.push(Action::Sample { agent: idx, max_new_tokens });
                Ok(())
            }
            None => self.fail_subagent(idx, "context", now, actions),
        }
    }

    /// Ends the stage once all of the orchestrator's calls have come back.
    fn join(&mut self, now: Moment, actions: &mut Vec<Action>) -> Result<(), RolloutError> {
        if self.outcome.is_some() || self.agents[0].pending.is_empty() || !self.agents[0].all_resolved() {
            return Ok(());
        }
        let number = self.stages.len() as u32 - 1;
        let sub_steps =
            self.agents.iter().filter(|a| a.stage == Some(number)).map(|a| a.steps_used).collect();
        if let Some(stage) = self.stages.last_mut() {
            stage.sub_steps = sub_steps;
        }
        self.agents[0].flush_results(self.dialect)?;
        self.next_orchestrator_turn(now, actions)
    }
}

fn is_swarm_call(name: &str) -> bool {
    name == CREATE || name == ASSIGN
}
