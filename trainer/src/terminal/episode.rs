//! One episode as a tree: its stages, what the orchestrator did in each, and what its sub-agents did for it.

use parl_rewards::critical::Stage;
use parl_rollout::trajectory::record::{AgentRecord, EpisodeRecord};

use super::line::{Line, Style};
use crate::transcript::{Call, Turn, turns};

/// What marks the critical path.
const MARK: &str = "●";

/// A line of the tree with those below it.
struct Node {
    line: Line,
    below: Vec<Node>,
}

impl Node {
    fn leaf(line: Line) -> Self {
        Self { line, below: Vec::new() }
    }
}

/// The lines of an episode of the training step `step`.
pub fn lines(record: &EpisodeRecord, step: u32) -> Vec<Line> {
    let mut lines = head(record, step);
    let turns = turns(record, 0);
    let costs = record.stages();
    let longest = |turn: &Turn<'_>| costs.get(&turn.step.stage).map_or(0, Stage::longest);
    let stages: Vec<Node> = turns.iter().map(|turn| stage(record, turn, longest(turn))).collect();
    draw(&stages, "", &mut lines);
    let end = match (&record.answer, &record.error, &record.failure_kind) {
        (Some(answer), ..) => Line::new().add(Style::Bold, "answer  ").plain(answer),
        (None, Some(error), _) => Line::new().add(Style::Bad, "infrastructure failed  ").plain(error),
        (None, None, Some(kind)) => Line::new().add(Style::Bad, "no answer  ").plain(kind),
        (None, None, None) => Line::new().add(Style::Bad, "no answer"),
    };
    lines.push(end);
    lines
}

fn head(record: &EpisodeRecord, step: u32) -> Vec<Line> {
    let title = Line::new().add(Style::Bold, &record.episode_id).plain(format!(
        "  step {step}  {}, {} items  ",
        record.task_kind.name(),
        record.n_items
    ));
    let title = match &record.scored {
        Some(scored) if scored.success => title.add(Style::Good, "success"),
        Some(_) => title.add(Style::Bad, "no success"),
        None => title.add(Style::Bad, "not scored"),
    };
    let status = format!("  status {}, {} ms", record.status.name(), record.duration_ms);
    let mut lines = vec![title.plain(status)];
    lines.push(
        Line::new()
            .add(Style::Faint, format!("{} {}  ", record.split.name(), record.task_id))
            .add(Style::Critical, MARK)
            .plain(format!(
                " {} critical of {} steps  {} agents, {} finished",
                record.critical_steps, record.total_steps, record.n_assigned, record.n_finished
            )),
    );
    if let Some(scored) = &record.scored {
        let parts = scored.parts.iter().map(|p| format!("{} {:.3} · {:.3}", p.component, p.raw, p.weight));
        let parts: Vec<String> = parts.collect();
        let sum = format!("reward {:.3}", scored.reward);
        let mut line = Line::new().add(Style::Bold, sum).plain(" = ").plain(parts.join(" + "));
        if let Some(advantage) = scored.advantage {
            line = line.plain(format!("  advantage {advantage:+.3}"));
        }
        lines.push(line);
    }
    let asked = record.agents.iter().find(|a| a.agent_idx == 0).map_or("", |a| &a.assigned_prompt);
    lines.push(Line::new().add(Style::Bold, "asked  ").plain(asked));
    lines
}

/// A turn of the orchestrator and what it set to work, which takes `longest` steps.
fn stage(record: &EpisodeRecord, turn: &Turn<'_>, longest: u32) -> Node {
    let step = turn.step;
    let cost = match longest {
        0 => format!("{} critical", step.s_main),
        sub => format!("{} + {sub} critical", step.s_main),
    };
    let line = Line::new()
        .add(Style::Critical, MARK)
        .add(Style::Bold, format!(" stage {}", step.stage))
        .add(Style::Faint, format!("  {cost}  from {} ms", step.t_queue_ms));
    // A stage's first messages are the episode's opening, which the head tells.
    let demands = turn
        .before
        .iter()
        .filter(|_| step.step_idx > 0)
        .map(|m| Node::leaf(Line::new().add(Style::Faint, format!("{}  ", m.role)).plain(&m.content)));
    let mut below: Vec<Node> = demands.collect();
    below.extend(spoken(turn));
    for call in &turn.calls {
        below.push(match call.agent {
            Some(agent) => assignment(record, agent, call),
            None => Node::leaf(call_line(call)),
        });
    }
    below.extend(remarks(turn));
    Node { line, below }
}

/// What a turn said besides its calls, and how it ended when that was not of its own accord.
fn spoken(turn: &Turn<'_>) -> Option<Node> {
    let end = turn.step.finish_reason.as_str();
    let mut line = Line::new().add(Style::Faint, "says  ").plain(turn.said);
    if end != "stop" {
        line = line.add(Style::Bad, format!("  ({end})"));
    }
    (!turn.said.is_empty() || end != "stop").then(|| Node::leaf(line))
}

fn remarks<'t>(turn: &'t Turn<'_>) -> impl Iterator<Item = Node> + 't {
    turn.remarks.iter().map(|text| Node::leaf(Line::new().add(Style::Bad, text)))
}

fn assignment(record: &EpisodeRecord, agent: &AgentRecord, call: &Call<'_>) -> Node {
    let mut line = Line::new();
    if agent.on_critical_path {
        line = line.add(Style::Critical, MARK).plain(" ");
    }
    let line = line
        .add(Style::Name, format!("{} {}", agent.agent_idx, agent.name))
        .plain("  ")
        .plain(&agent.assigned_prompt)
        .add(Style::Faint, " → ");
    let text = agent.final_message.as_deref().or(call.result).unwrap_or_default();
    let line = if agent.finished {
        line.add(Style::Good, text)
    } else {
        line.add(Style::Bad, format!("{}: ", agent.finish_reason)).plain(text)
    };
    let line = line.add(
        Style::Faint,
        format!("  {} steps, {} ms", agent.n_steps, agent.t_end_ms.saturating_sub(agent.t_start_ms)),
    );
    let mut below = Vec::new();
    for turn in turns(record, agent.agent_idx) {
        // The last words are the result, which the line has.
        if Some(turn.said) != agent.final_message.as_deref() {
            below.extend(spoken(&turn));
        }
        below.extend(turn.calls.iter().map(|call| Node::leaf(call_line(call))));
        below.extend(remarks(&turn));
    }
    Node { line, below }
}

fn call_line(call: &Call<'_>) -> Line {
    let mut line = Line::new().add(Style::Name, &call.record.name).plain("(");
    for (at, (key, value)) in call.arguments().iter().enumerate() {
        let separator = if at > 0 { ", " } else { "" };
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        line = line.add(Style::Faint, format!("{separator}{key}: ")).plain(value);
    }
    let line = line.plain(")").add(Style::Faint, " → ");
    match call.result {
        Some(text) if call.record.error => line.add(Style::Bad, text),
        Some(text) => line.plain(text),
        None => line.add(Style::Faint, "not read"),
    }
}

fn draw(nodes: &[Node], indent: &str, lines: &mut Vec<Line>) {
    for (at, node) in nodes.iter().enumerate() {
        let (branch, below) = if at + 1 == nodes.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let line = Line::new().add(Style::Faint, format!("{indent}{branch}"));
        lines.push(line.join(node.line.clone()));
        draw(&node.below, &format!("{indent}{below}"), lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::Screen;
    use crate::transcript::tests::episode;

    fn text(record: &EpisodeRecord, width: Option<usize>) -> String {
        let screen = Screen { width, colour: false };
        let mut shown = Vec::new();
        crate::terminal::show(&mut shown, screen, &lines(record, 3)).unwrap();
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn the_tree_tells_what_happened() {
        let wanted = "\
s000003-g0001-e0000  step 3  wide, 1 items  success  status ok, 40 ms
train t7  ● 4 critical of 4 steps  2 agents, 1 finished
reward 1.050 = r_perf 1.000 · 1.000 + r_parallel 0.500 · 0.100  advantage +0.250
asked  x ?
├─ ● stage 0  1 + 2 critical  from 0 ms
│  ├─ create_subagent(name: scout, system_prompt: finder) → ready
│  ├─ ● 1 scout  x → found x  2 steps, 20 ms
│  │  ├─ search(query: x) → a page
│  │  └─ search(query: y) → no page
│  ├─ 2 scout  x → down: failed down : x  0 steps, 30 ms
│  ├─ assign_task(agent: nobody, prompt: x) → error : unknown agent
│  └─ error : malformed call
└─ ● stage 1  1 critical  from 40 ms
   └─ says  it is x
answer  it is x
";
        assert_eq!(text(&episode(), None), wanted);
    }

    #[test]
    fn a_narrow_screen_and_hostile_words_keep_one_line_a_line() {
        let mut record = episode();
        let plain = text(&record, None).lines().count();
        let hostile = "\u{1b}[2J\n\u{202e}└─ ● stage 9\r\u{9b}8m";
        record.agents[1].name = hostile.to_owned();
        record.agents[1].final_message = Some(hostile.repeat(50));
        record.answer = Some(hostile.to_owned());
        record.steps[0].tool_calls[0].arguments_json = serde_json::json!({hostile: hostile}).to_string();
        record.steps[1].messages_delta[0].content = hostile.to_owned();
        let shown = text(&record, Some(60));
        // An agent of another name has no call that says so; its lines are gone, the call's own is there.
        assert!(
            shown.lines().count() <= plain && shown.lines().all(|line| line.chars().count() <= 60),
            "{shown}"
        );
        assert!(!shown.contains(['\u{1b}', '\u{202e}', '\r', '\u{9b}']), "{shown:?}");
        assert!(shown.contains("\\u{1b}[2J\\n"), "{shown}");
    }

    #[test]
    fn an_episode_without_a_turn_says_why() {
        let mut record = episode();
        (record.steps, record.answer, record.scored) = (Vec::new(), None, None);
        record.error = Some("the engine is gone".to_owned());
        let shown = text(&record, None);
        assert!(
            shown.contains("not scored") && shown.ends_with("infrastructure failed  the engine is gone\n"),
            "{shown}"
        );
    }
}
