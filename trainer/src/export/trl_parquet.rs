//! Rows of TRL's table of completions: the orchestrator's conversation, cut where it first spoke.

use parl_rollout::trajectory::completions::{Completion, Said, ToolUse};
use parl_rollout::trajectory::record::EpisodeRecord;

use super::origin::Origin;
use crate::transcript::turns;

/// The row of an episode.
pub fn row(record: &EpisodeRecord, origin: Origin<'_>) -> Completion {
    let mut prompt = Vec::new();
    let mut completion = Vec::new();
    for turn in turns(record, 0) {
        for message in turn.before {
            let side = if completion.is_empty() { &mut prompt } else { &mut completion };
            side.push(Said::plain(&message.role, &message.content));
        }
        let tool_calls = turn.calls.iter().map(|call| ToolUse {
            name: call.record.name.clone(),
            arguments_json: call.record.arguments_json.clone(),
        });
        let tool_calls = tool_calls.collect();
        completion.push(Said { tool_calls, ..Said::plain("assistant", turn.said) });
        for call in &turn.calls {
            if let Some(text) = call.result {
                completion.push(Said { name: Some(call.record.name.clone()), ..Said::plain("tool", text) });
            }
        }
        completion.extend(turn.remarks.iter().map(|text| Said::plain("tool", text)));
    }
    let scored = record.scored.as_ref();
    Completion {
        step: i64::from(origin.step),
        prompt,
        completion,
        rewards: scored.iter().flat_map(|s| &s.parts).map(|p| (p.component.clone(), p.raw)).collect(),
        advantage: scored.and_then(|s| s.advantage),
        episode_id: record.episode_id.clone(),
        group_id: record.group_id.clone(),
        task_kind: record.task_kind.name().to_owned(),
        reward: scored.map(|s| s.reward),
    }
}
