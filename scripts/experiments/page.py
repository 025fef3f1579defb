"""The page, its pictures, and the tables that `trainer report` shows."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import altair as alt
import polars as pl

from measure import END_STEPS, WINDOW, Measured, measure, smooth
from suite import Scene, folder
from tables import table

WORDS = Path(__file__).resolve().parent / "ablations.md"
"""What the tables say, in words; it has no figures."""

COLUMNS = [
    ("success", "success", "percent"),
    ("wide n ≤ 6", "success n<=6", "percent"),
    ("wide n ≥ 8", "success n>=8", "percent"),
    ("mixed", "success mixed", "percent"),
    ("deep", "success deep", "percent"),
    ("serial collapse", "serial", "percent"),
    ("critical steps, n ≥ 8", "critical n>=8", "number"),
    ("agents, n ≥ 8", "agents n>=8", "number"),
    ("agents, deep", "deep agents", "number"),
    ("idle assignments", "idle", "percent"),
    ("finished", "finish", "percent"),
    ("orchestrator's tokens", "tokens", "number"),
]
PICTURES = {
    "skilled": [
        ("parallel", "wide and mixed episodes with work assigned"), ("success", "success"),
        ("tokens", "tokens of the orchestrator's, an episode"),
    ],
    "rare": [("parallel", "wide and mixed episodes with work assigned"), ("success", "success")],
    "spurious": [("idle", "assignments without any work"), ("deep agents", "assignments a deep task")],
}


def spread(values: list[float], kind: str) -> str:
    """Mean, and the least and the most over seeds."""
    known = [v for v in values if v == v]
    if not known:
        return "–"
    mean = sum(known) / len(known)
    if kind == "percent":
        if len(known) == 1:
            return f"{100 * mean:.0f} %"
        return f"{100 * mean:.0f} % ({100 * min(known):.0f}–{100 * max(known):.0f})"
    return f"{mean:.1f}" if len(known) == 1 else f"{mean:.1f} ({min(known):.1f}–{max(known):.1f})"


def half(measured: list[Measured]) -> str:
    """Steps to half of the episodes in parallel, seed by seed."""
    return ", ".join("never" if one.half_parallel is None else str(one.half_parallel) for one in measured)


def cells(measured: list[Measured]) -> list[str]:
    """One row of a scene's table."""
    ends = [spread([one.end[key] for one in measured], kind) for _, key, kind in COLUMNS]
    shaped = [spread([one.shaped[key] for one in measured if one.shaped], "percent") for key in ("finish", "idle")]
    return [*ends, *shaped, half(measured), order([one.end["reward"] for one in measured])]


def order(rewards: list[float]) -> str:
    """The final reward; rows are put in its order by the reader."""
    return spread(rewards, "number") if len(rewards) == 1 else f"{sum(rewards) / len(rewards):.3f}"


HEAD = [name for name, _, _ in COLUMNS] + ["finished while λ > 0", "idle while λ > 0", "half parallel by step", "reward"]


def picture(scene: Scene, found: dict[str, list[Measured]], out: Path) -> None:
    """Curves of the scene's arms: means over seeds, each smoothed over a few steps."""
    charts = []
    for key, title in PICTURES[scene.name]:
        rows = []
        for arm, measured in found.items():
            curves = [smooth(one.curves[key], WINDOW) for one in measured]
            for at, values in enumerate(zip(*curves)):
                known = [v for v in values if v == v]
                if known:
                    rows.append({"step": at + 1, "arm": arm, "value": sum(known) / len(known)})
        line = alt.Chart(pl.DataFrame(rows)).mark_line().encode(
            x=alt.X("step:Q", title="training step"),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=True)),
            color=alt.Color("arm:N", title=None, sort=list(found)),
        )
        charts.append(line.properties(width=330, height=220))
    chart = alt.hconcat(*charts).configure(background="white")
    chart.save(str(out))


def write(runs: Path, scenes: list[Scene], seeds: list[int], out: Path) -> None:
    """Measures the runs that are complete and writes everything."""
    parts, tables = [], []
    for scene in scenes:
        found: dict[str, list[Measured]] = {}
        rows = []
        for arm in scene.arms:
            places = [folder(runs, scene, arm, seed) for seed in seeds]
            places = [place for place in places if place.with_suffix(".done").is_file()]
            if not places:
                continue
            found[arm.name] = [measure(place) for place in places]
            row = cells(found[arm.name])
            rows.append([f"{arm.name} ({len(places)} seeds)", *row])
            names = [place.name for place in places]
            tables.append((scene, {"name": arm.name, "runs": names, "cells": row}))
        if not rows:
            continue
        image = out.with_name(f"ablations-{scene.name}.svg")
        picture(scene, found, image)
        alone = " · ".join(f"`{name}.yaml`" for name in ["parl", "ablation", *scene.overlays])
        parts.append(f"## {scene.title}\n\n{alone}\n\n{table(['', *HEAD], rows)}\n\n![Curves of {scene.name}]({image.name})\n")
    report = [
        {"caption": scene.title, "columns": HEAD, "rows": [row for of, row in tables if of is scene]}
        for scene in scenes if any(of is scene for of, _ in tables)
    ]
    (runs / "ablations.json").write_text(json.dumps(report, ensure_ascii=False))
    out.write_text(f"""# Why it learns: ablations

Written by `scripts/ablations --seeds {' '.join(map(str, seeds))}` from the runs' Parquet logs; no figure is typed.
{platform.machine()}, {os.cpu_count()} cores.

{WORDS.read_text().strip()}

How to read the tables: means over the last {END_STEPS} steps of a run (training tasks, which are new at every step;
temperature 1.0), then over seeds, with the least and the most in brackets. *Serial collapse* is the share of wide and
mixed episodes that assign nothing; *idle* assignments made no environment call; *half parallel by step* is the first step
by which half of the wide and mixed episodes of the last {WINDOW} had work assigned, seed by seed. λ is annealed to 0 at
step 60 of 100, so the final figures are of a policy that no bonus is paid to any more, but for *never-annealed*.

{chr(10).join(parts)}""")
    print(f"wrote {out}")
