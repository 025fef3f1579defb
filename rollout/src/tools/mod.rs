//! The environment's tools. A tool is a pure question to a world that does not change during a run.

pub mod corpus;

use serde::{Deserialize, Serialize};

/// Name and parameters of a tool, in the order in which a call gives them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// What a call names.
    pub name: String,
    /// Parameter names; all are required strings.
    pub parameters: Vec<String>,
    /// One line for humans and for models that read tool descriptions.
    pub description: String,
}

/// What a tool gave back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToolOutcome {
    /// The observation.
    Ok(String),
    /// The call was understood but failed, or made no sense: an observation that the policy can learn from.
    Error(String),
    /// The tool itself is down: nobody's fault, the episode is retried or its group dropped.
    Down(String),
}

/// A set of environment tools.
pub trait Tools: Send + Sync {
    /// The tools there are.
    fn specs(&self) -> &[ToolSpec];

    /// Calls `name` with `arguments` in the order of its parameters; `None` when there is no such tool. The
    /// number of arguments has been checked.
    fn call(&self, name: &str, arguments: &[String]) -> Option<ToolOutcome>;
}
