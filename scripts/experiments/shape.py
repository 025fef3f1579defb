"""Critical steps, item-F1 and simulated end-to-end time of a trained swarm and of a lone agent."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))
import parl_log  # noqa: E402
from tables import table  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SIZES = (2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48)
TRAINED_UP_TO = 24
"""Most items of a task of the default run."""
BUDGETS = (2, 3, 4, 5, 6, 8, 10, 14, 18, 24, 30, 36, 42, 50, 60)
"""Critical steps that an episode may take, for the curve over targets."""
LONE = ["rollout.orchestrator.max_context_tokens=8192", "rollout.orchestrator.max_new_tokens=768"]
"""A script alone reads every document itself; its context and its answer get the room for it."""
SWARM = ["rollout.orchestrator.max_new_tokens=768"]
"""48 assignments in one turn."""
TARGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FIRST_TOKEN_S, TOKEN_S, TOOL_S = 0.5, 0.02, 1.0
"""What a hosted model and a web tool take, roughly: to the first token, each further token, an environment call."""

SPANS = f"""
WITH turns AS (
    SELECT episode_id, agent_idx, stage,
           {FIRST_TOKEN_S} + {TOKEN_S} * n_completion
           + {TOOL_S} * len(list_filter(tool_calls, lambda c: c.name NOT IN ('create_subagent', 'assign_task'))) AS seconds
    FROM steps
), alone AS (
    SELECT episode_id, sum(seconds) AS seconds FROM turns WHERE agent_idx = 0 GROUP BY ALL
), workers AS (
    SELECT episode_id, stage, agent_idx, sum(seconds) AS seconds FROM turns WHERE agent_idx > 0 GROUP BY ALL
), stages AS (
    SELECT episode_id, stage, max(seconds) AS seconds FROM workers GROUP BY ALL
), waited AS (
    SELECT episode_id, sum(seconds) AS seconds FROM stages GROUP BY ALL
)
SELECT e.success::DOUBLE AS success, e.r_perf AS item_f1, e.critical_steps::DOUBLE AS critical,
       e.n_assigned::DOUBLE AS assigned, a.seconds + coalesce(w.seconds, 0) AS seconds
FROM episodes e JOIN alone a USING (episode_id) LEFT JOIN waited w USING (episode_id)
"""
"""The critical path: the orchestrator's turns one after another, and of each stage the sub-agent that takes longest."""


@dataclass(frozen=True)
class Point:
    """Means over the episodes of one evaluation."""

    success: float
    item_f1: float
    critical: float
    assigned: float
    seconds: float


def evaluate(place: Path, tasks: int, who: list[str], overrides: list[str]) -> Point:
    """One evaluation, its log kept at `place` while it is read."""
    shutil.rmtree(place, ignore_errors=True)
    config = ["--config", str(ROOT / "configs/parl.yaml"), "--tasks", str(tasks), "--run-dir", str(place), "--json"]
    fixed = ["run.eval_temperature=0.6", "tasks.mix={wide: 1.0, mixed: 0.0, deep: 0.0}", "rewards.perf={type: metric}"]
    subprocess.run(
        [str(ROOT / "scripts/trainer"), "eval", *config, *who, *fixed, *overrides], check=True, stdout=subprocess.DEVNULL
    )
    frame = parl_log.open_run(place).sql(SPANS)
    shutil.rmtree(place)
    return Point(**{name: float(frame[name].mean()) for name in Point.__dataclass_fields__})


def mean(points: list[Point]) -> Point:
    """Over seeds."""
    return Point(**{name: sum(getattr(p, name) for p in points) / len(points) for name in Point.__dataclass_fields__})


def cost_at(target: float, curve: list[Point], key: str) -> float | None:
    """What the first point of a curve by budget that reaches a mean item-F1 costs, between points on a straight line."""
    before = None
    for point in curve:
        if point.item_f1 >= target:
            if before is None or before.item_f1 >= point.item_f1:
                return getattr(point, key)
            part = (target - before.item_f1) / (point.item_f1 - before.item_f1)
            return getattr(before, key) + part * (getattr(point, key) - getattr(before, key))
        before = point
    return None


def picture(rows: list[dict[str, object]], x: str, out: Path) -> None:
    """Critical steps and time by `x`, side by side."""
    frame = pl.DataFrame(rows)
    charts = [
        alt.Chart(frame).mark_line(point=True).encode(
            x=alt.X("x:Q", title=x),
            y=alt.Y(f"{key}:Q", title=title, scale=alt.Scale(zero=True)),
            color=alt.Color("who:N", title=None),
        ).properties(width=330, height=220)
        for key, title in (("critical", "critical steps"), ("seconds", "simulated end-to-end seconds"))
    ]
    alt.hconcat(*charts).configure(background="white").save(str(out))


def less(swarm: float, alone: float) -> list[str]:
    """The ratio, and the same as a reduction."""
    return [f"÷ {alone / swarm:.1f}", f"−{100 * (1 - swarm / alone):.0f} %"]


def write(runs: Path, seeds: list[int], tasks: int, out: Path) -> None:
    """Measures and writes the page and its two pictures."""
    folders = [runs / f"seed{seed}" for seed in seeds]
    if not all((folder / "final_eval.json").is_file() for folder in folders):
        learn = [str(ROOT / "scripts/learning"), "--seeds", *map(str, seeds), "--runs", str(runs)]
        subprocess.run(learn, check=True)
    place = runs / "published_shape"

    def swarm(overrides: list[str]) -> Point:
        return mean([evaluate(place, tasks, ["--checkpoint", str(folder)], [*SWARM, *overrides]) for folder in folders])

    sizes, drawn = [], []
    for n in SIZES:
        size = [f"tasks.n_min={n}", f"tasks.n_max={n}"]
        alone, together = evaluate(place, tasks, ["--policy", "serial", "--lift-budget"], [*LONE, *size]), swarm(size)
        seen = "trained with" if n <= TRAINED_UP_TO else "never trained with"
        sizes.append([
            f"{n}", seen, f"{alone.critical:.1f}", f"{together.critical:.1f}", *less(together.critical, alone.critical),
            f"{alone.seconds:.0f}", f"{together.seconds:.0f}", *less(together.seconds, alone.seconds),
            f"{together.assigned:.1f}", f"{100 * alone.item_f1:.0f} %", f"{100 * together.item_f1:.0f} %",
            f"{100 * together.success:.0f} %",
        ])
        drawn += [{"x": n, "who": who, "critical": p.critical, "seconds": p.seconds}
                  for who, p in (("lone agent", alone), ("trained swarm", together))]
        print(f"n = {n}: {alone.critical:.1f} and {together.critical:.1f} critical steps", flush=True)
    by_n = out.with_name(f"{out.stem}-n.svg")
    picture(drawn, "items", by_n)

    large = ["tasks.n_min=8", f"tasks.n_max={TRAINED_UP_TO}"]
    curves: dict[str, list[Point]] = {"lone agent": [], "trained swarm": []}
    for budget in BUDGETS:
        limit = [*large, f"rollout.budget.critical_steps={budget}"]
        curves["lone agent"].append(evaluate(place, tasks, ["--policy", "serial"], [*LONE, *limit]))
        curves["trained swarm"].append(swarm(limit))
        print(f"budget {budget}: item-F1 " + " and ".join(f"{c[-1].item_f1:.2f}" for c in curves.values()), flush=True)
    targets, drawn = [], []
    for target in TARGETS:
        costs = {who: [cost_at(target, curve, key) for key in ("critical", "seconds")] for who, curve in curves.items()}
        row = [f"{100 * target:.0f} %"]
        for at in range(2):
            alone, together = costs["lone agent"][at], costs["trained swarm"][at]
            row += [f"{cost:.1f}" if cost is not None else "not reached" for cost in (alone, together)]
            row += less(together, alone) if alone is not None and together is not None else ["–", "–"]
        targets.append(row)
        drawn += [{"x": 100 * target, "who": who, "critical": cost[0], "seconds": cost[1]}
                  for who, cost in costs.items() if cost[0] is not None]
    by_target = out.with_name(f"{out.stem}-target.svg")
    picture(drawn, "target item-F1, %", by_target)

    pairs = ["critical, alone", "critical, swarm", "", "", "seconds, alone", "seconds, swarm", "", ""]
    out.write_text(f"""# A swarm beside a lone agent

Written by `scripts/published_shape --seeds {' '.join(map(str, seeds))}`; no figure is typed. {platform.machine()},
{os.cpu_count()} cores. {tasks} held-out wide tasks a row, temperature 0.6, means over the trained orchestrators of
[learning.md](learning.md).

The technical report tells of critical steps divided by 3 to 4.5 in wide search, and of 80 % less end-to-end time. The tasks
are other ones here, so only the shape can be compared: whether cost stays level as the work grows.

The lone agent is the serial expert with its budget lifted: a script that never errs and wastes no step, so it costs the
least that working alone can cost. *Simulated end-to-end time* goes along the critical path of each episode in the log: the
orchestrator's turns one after another, and of each stage the sub-agent that takes longest; a turn takes {FIRST_TOKEN_S:g} s,
{TOKEN_S:g} s a drawn token, and {TOOL_S:g} s an environment call, roughly what a hosted model and a web tool take.

## By number of items

{table(['n', '', *pairs, 'agents', 'item-F1, alone', 'item-F1, swarm', 'success, swarm'], sizes)}

![Critical steps and time by number of items]({by_n.name})

## By target

What it costs to reach a mean item-F1 on tasks of 8 to {TRAINED_UP_TO} items. Both were given budgets from {BUDGETS[0]} to
{BUDGETS[-1]} critical steps, after which they must answer with what they have; between budgets on a straight line.

{table(['item-F1', *pairs], targets)}

![Critical steps and time by target]({by_target.name})
""")
    print(f"wrote {out}")
