"""An episode as text to read, in HTML.

What models, tools and tasks wrote is foreign: it is escaped, it stands in `pre` and `code` (where a page neither
interprets markup nor typesets formulas), and characters that no one sees, or that turn the direction of writing, are
shown by number.
"""

from __future__ import annotations

import html
import unicodedata

import polars as pl

from parl_log import Run

LONGEST = 2000
"""Characters of a message that are shown."""


def plain(text: str | None, longest: int = LONGEST) -> str:
    """Foreign text, safe inside an element of HTML."""
    shown = (text or "")[:longest]
    visible = "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else f"⟨U+{ord(c):04X}⟩" for c in shown)
    cut = len(text or "") - len(shown)
    return html.escape(visible) + (f" … ({cut} more characters)" if cut else "")


def transcript(run: Run, episode_id: str) -> str:
    """An episode of a run as HTML: the orchestrator's turns, and folded below each turn the agents that it started.

    Raises KeyError when the run has no such episode.
    """
    episodes, agents, steps = (
        frame.filter(pl.col("episode_id") == episode_id).sort(order)
        for frame, order in [
            (run.episodes, "episode_id"),
            (run.agents, "agent_idx"),
            (run.steps, ["agent_idx", "step_idx"]),
        ]
    )
    if episodes.is_empty():
        raise KeyError(f"no episode {episode_id!r} in {run.folder}")
    episode = episodes.row(0, named=True)
    calls: dict[int, list[dict]] = {}
    for step in steps.iter_rows(named=True):
        calls.setdefault(step["agent_idx"], []).append(step)
    started: dict[int, list[dict]] = {}
    for agent in agents.filter(pl.col("agent_idx") > 0).iter_rows(named=True):
        started.setdefault(agent["stage"], []).append(agent)

    outcome = "no reward" if episode["reward"] is None else f"reward {episode['reward']:.3f}"
    advantage = "" if episode["advantage"] is None else f", advantage {episode['advantage']:+.3f}"
    pieces = [
        f"<h4><code>{plain(episode_id)}</code></h4><p>{outcome}{advantage}; status {plain(episode['status'])}; "
        f"{episode['critical_steps']} critical of {episode['total_steps']} steps; {episode['n_assigned']} agents</p>"
    ]
    for call in calls.get(0, []):
        pieces.append(_call(call))
        for agent in started.get(call["stage"], []):
            title = f"<code>{plain(agent['name'])} ({agent['agent_idx']})</code>: "
            title += f"{plain(agent['finish_reason'])}, {agent['n_steps']} environment calls"
            body = "".join(_call(c) for c in calls.get(agent["agent_idx"], []))
            pieces.append(f"<details style='margin-left: 2em'><summary>{title}</summary>{body}</details>")
    return "\n".join(pieces)


def _call(call: dict) -> str:
    blocks = [(m["role"], m["content"]) for m in call["messages_delta"] or []]
    for tool in call["tool_calls"] or []:
        name = f"calls {tool['name']}" + (" (refused or failed)" if tool["error"] else "")
        blocks.append((name, tool["arguments_json"]))
    style = "margin: 2px 0; padding: 2px 8px; border-left: 3px solid #999; white-space: pre-wrap"
    return "".join(
        f"<pre style='{style}'><b>{plain(role)}</b>  {plain(text)}</pre>" for role, text in blocks if text
    )
