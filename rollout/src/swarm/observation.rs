//! What the swarm itself says to its agents: error observations, and the words around results.

/// Answer to a `create_subagent` that worked.
pub const READY: &str = "ready";
/// What asks for the forced answer.
pub const ANSWER_NOW: &str = "answer now";

/// An error observation: `error : REASON`.
pub fn error(reason: &str) -> String {
    format!("error : {reason}")
}

/// What the orchestrator reads when an assignment failed; the prompt is repeated so that it can be tried again.
pub fn failed(reason: &str, prompt: &str) -> String {
    format!("failed {} : {prompt}", reason.replace('_', " "))
}

/// Reasons in error observations.
pub mod reason {
    /// The turn breaks the call grammar.
    pub const MALFORMED: &str = "malformed call";
    /// No such tool.
    pub const UNKNOWN_TOOL: &str = "unknown tool";
    /// Another number of arguments than the tool has parameters.
    pub const ARGUMENTS: &str = "wrong arguments";
    /// Environment calls and assignments in one turn.
    pub const MIXED: &str = "mixed turn";
    /// No such agent.
    pub const UNKNOWN_AGENT: &str = "unknown agent";
    /// The name is taken.
    pub const DUPLICATE: &str = "duplicate name";
    /// The name is empty.
    pub const EMPTY_NAME: &str = "empty name";
    /// More assignments than allowed.
    pub const TOO_MANY: &str = "too many agents";
    /// A sub-agent tried to make or use sub-agents.
    pub const NESTING: &str = "no nesting";
    /// The call would go over the step budget.
    pub const BUDGET: &str = "step budget";
}

/// Every word that this module can say; a vocabulary that holds them spells each with one token.
pub fn words() -> Vec<&'static str> {
    let mut words: Vec<&str> = [
        READY,
        ANSWER_NOW,
        "error : failed",
        reason::MALFORMED,
        reason::UNKNOWN_TOOL,
        reason::ARGUMENTS,
        reason::MIXED,
        reason::UNKNOWN_AGENT,
        reason::DUPLICATE,
        reason::EMPTY_NAME,
        reason::TOO_MANY,
        reason::NESTING,
        reason::BUDGET,
        "step limit context malformed deadline outage down",
        super::CREATE,
        super::ASSIGN,
    ]
    .iter()
    .flat_map(|text| text.split(' '))
    .collect();
    words.sort_unstable();
    words.dedup();
    words
}
