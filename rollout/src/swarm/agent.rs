//! One agent: its context in tokens (append-only), its transcript in words, its counters.

use super::{Message, Moment, Seat, SeatRules, Turn, TurnEnd};
use crate::RolloutError;
use crate::dialect::{Call, Dialect, ParsedTurn, Role};
use crate::trajectory::record::{CallRecord, MessageRecord, StepRecord, TokenBranch, VersionRun};

/// A call that is under way or done in the current turn.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub call: u32,
    pub result: Option<String>,
}

#[derive(Debug)]
pub(super) struct Agent {
    pub idx: u32,
    pub seat: Seat,
    pub name: String,
    pub system_prompt: String,
    pub prompt: String,
    pub stage: Option<u32>,
    pub branch: TokenBranch,
    pub messages: Vec<Message>,
    pub pending: Vec<Pending>,
    /// Environment calls that were made.
    pub steps_used: u32,
    /// Turns that cost a step without a call (malformed, nesting).
    pub turns: u32,
    pub next_call: u32,
    pub outage: bool,
    pub forced: bool,
    pub final_message: Option<String>,
    pub finish_reason: Option<&'static str>,
    pub tokens_in: u64,
    pub tokens_out: u64,
    pub started: Moment,
    pub ended: Moment,
    pub steps: Vec<StepRecord>,
    logged: usize,
    asked: Moment,
    prompt_tokens: u32,
}

impl Agent {
    /// A fresh context: system prompt, then the question.
    pub fn new(
        dialect: &Dialect,
        idx: u32,
        seat: Seat,
        name: &str,
        prompts: (&str, &str),
        stage: Option<u32>,
        now: Moment,
    ) -> Result<Self, RolloutError> {
        let (system, user) = prompts;
        let mut agent = Self {
            idx,
            seat,
            name: name.to_owned(),
            system_prompt: system.to_owned(),
            prompt: user.to_owned(),
            stage,
            branch: TokenBranch::default(),
            messages: Vec::new(),
            pending: Vec::new(),
            steps_used: 0,
            turns: 0,
            next_call: 0,
            outage: false,
            forced: false,
            final_message: None,
            finish_reason: None,
            tokens_in: 0,
            tokens_out: 0,
            started: now,
            ended: now,
            steps: Vec::new(),
            logged: 0,
            asked: now,
            prompt_tokens: 0,
        };
        agent.say(dialect, Role::System, system, None)?;
        agent.say(dialect, Role::User, user, None)?;
        Ok(agent)
    }

    pub fn running(&self) -> bool {
        self.finish_reason.is_none()
    }

    /// Appends a message that the policy did not draw.
    pub fn say(
        &mut self,
        dialect: &Dialect,
        role: Role,
        text: &str,
        call_id: Option<u32>,
    ) -> Result<(), RolloutError> {
        let ids = dialect.message(role, text)?;
        self.append_unmasked(&ids);
        self.messages.push(Message { role, text: text.to_owned(), calls: Vec::new(), call_id });
        Ok(())
    }

    fn append_unmasked(&mut self, ids: &[u32]) {
        self.branch.token_ids.extend_from_slice(ids);
        self.branch.loss_mask.resize(self.branch.token_ids.len(), false);
        self.branch.logprobs.resize(self.branch.token_ids.len(), 0.0);
        self.tokens_in += ids.len() as u64;
    }

    /// Opens the next turn; `None` when the context has no room for one drawn token.
    pub fn open_turn(&mut self, dialect: &Dialect, rules: &SeatRules, now: Moment) -> Option<u32> {
        let prefix = dialect.turn_prefix(rules.mode);
        let used = self.branch.token_ids.len() + prefix.len();
        // One more place is kept for an `<|end|>` that the template may have to add.
        let room = (rules.max_context_tokens as usize).checked_sub(used + 1).filter(|room| *room > 0)?;
        self.append_unmasked(&prefix);
        self.asked = now;
        self.prompt_tokens = self.branch.token_ids.len() as u32;
        Some(rules.max_new_tokens.min(room as u32))
    }

    /// Takes in a drawn turn and reads it.
    pub fn take_turn(&mut self, dialect: &Dialect, turn: &Turn) -> Result<ParsedTurn, RolloutError> {
        if turn.ids.len() != turn.logprobs.len() {
            return Err(RolloutError::Internal(format!(
                "a policy gave {} ids with {} log-probs",
                turn.ids.len(),
                turn.logprobs.len()
            )));
        }
        let start = self.branch.token_ids.len() as u32;
        self.branch.step_offsets.push(start);
        self.branch.temperatures.push(turn.temperature);
        for (from, to, version) in &turn.versions {
            match self.branch.policy_versions.last_mut() {
                Some(last) if last.version == *version && last.end == start + from => last.end = start + to,
                _ => self.branch.policy_versions.push(VersionRun {
                    start: start + from,
                    end: start + to,
                    version: *version,
                }),
            }
        }
        self.branch.token_ids.extend_from_slice(&turn.ids);
        self.branch.loss_mask.resize(self.branch.token_ids.len(), true);
        self.branch.logprobs.extend_from_slice(&turn.logprobs);
        self.tokens_out += turn.ids.len() as u64;
        self.turns += 1;
        let end = dialect.special().end;
        if turn.ids.last() != Some(&end) {
            self.append_unmasked(&[end]);
        }
        let parsed = dialect.parse_turn(&turn.ids)?;
        self.messages.push(Message {
            role: Role::Assistant,
            text: parsed.text.clone(),
            calls: parsed.calls.clone(),
            call_id: None,
        });
        Ok(parsed)
    }

    /// Records the model call that just ended as a row of the steps table.
    pub fn log_step(&mut self, turn: &Turn, stage: u32, s_main: u32, calls: Vec<CallRecord>, now: Moment) {
        let delta = self.messages[self.logged..].iter().map(|m| MessageRecord {
            role: m.role.name().to_owned(),
            content: m.text.clone(),
            tool_call_id: m.call_id.map(|c| c.to_string()),
        });
        let messages_delta = delta.collect();
        self.logged = self.messages.len();
        let finish_reason = match &turn.end {
            _ if self.forced => "forced",
            TurnEnd::Stop => "stop",
            TurnEnd::Length => "length",
            TurnEnd::Deadline => "deadline",
            TurnEnd::Failed(_) => "failed",
        };
        self.steps.push(StepRecord {
            agent_idx: self.idx,
            step_idx: self.steps.len() as u32,
            stage,
            s_main,
            messages_delta,
            tool_calls: calls,
            finish_reason: finish_reason.to_owned(),
            temperature: turn.temperature,
            n_prompt: self.prompt_tokens,
            n_completion: turn.ids.len() as u32,
            t_queue_ms: self.asked.ms,
            t_start_ms: turn.started.ms,
            t_end_ms: now.ms,
            policy_version: turn.versions.first().map_or(0, |v| v.2),
        });
    }

    /// Numbers a call and remembers that its result is awaited.
    pub fn number_call(&mut self) -> u32 {
        let call = self.next_call;
        self.next_call += 1;
        self.pending.push(Pending { call, result: None });
        call
    }

    /// The result of a numbered call.
    pub fn resolve(&mut self, call: u32, result: String) {
        if let Some(pending) = self.pending.iter_mut().find(|p| p.call == call) {
            pending.result = Some(result);
        }
    }

    pub fn all_resolved(&self) -> bool {
        self.pending.iter().all(|p| p.result.is_some())
    }

    /// Appends every awaited result as a tool message, in the order of the calls.
    pub fn flush_results(&mut self, dialect: &Dialect) -> Result<(), RolloutError> {
        for pending in std::mem::take(&mut self.pending) {
            self.say(dialect, Role::Tool, &pending.result.unwrap_or_default(), Some(pending.call))?;
        }
        Ok(())
    }

    /// Ends the agent.
    pub fn finish(&mut self, reason: &'static str, message: Option<String>, now: Moment) {
        self.finish_reason = Some(reason);
        self.final_message = message;
        self.pending.clear();
        self.ended = now;
    }
}

/// The row of a call that has not come back yet.
pub(super) fn call_record(id: u32, call: &Call, parameters: Option<&[String]>, now: Moment) -> CallRecord {
    let fields = call.arguments.iter().enumerate().map(|(i, value)| {
        let name = parameters.and_then(|p| p.get(i)).cloned().unwrap_or_else(|| format!("arg{i}"));
        (name, serde_json::Value::String(value.clone()))
    });
    CallRecord {
        id: id.to_string(),
        name: call.name.clone(),
        arguments_json: serde_json::Value::Object(fields.collect()).to_string(),
        t_start_ms: now.ms,
        t_end_ms: now.ms,
        error: false,
    }
}
