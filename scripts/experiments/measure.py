"""What a run did, from its trajectory log alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))
import parl_log  # noqa: E402

END_STEPS = 15
"""Steps at the end of a run that its final figures are means over."""
WINDOW = 5
"""Steps that a share is averaged over before it is asked whether it is above a bound."""

EPISODES = """
WITH work AS (
    SELECT train_step, episode_id, count(*) AS assigned,
           count(*) FILTER (WHERE finished) AS finished,
           count(*) FILTER (WHERE n_steps = 0) AS idle
    FROM agents WHERE agent_idx > 0 GROUP BY ALL
), sampled AS (
    SELECT train_step, episode_id, tokens_out AS tokens FROM agents WHERE agent_idx = 0
)
SELECT e.train_step AS step, e.task_kind AS kind, e.n_items AS n, e.success::DOUBLE AS success, e.r_perf, e.reward,
       e.critical_steps, e.lambda_parallel + e.lambda_finish AS lambda_sum,
       coalesce(w.assigned, 0) AS assigned, coalesce(w.finished, 0) AS finished, coalesce(w.idle, 0) AS idle, s.tokens
FROM episodes e JOIN sampled s USING (train_step, episode_id) LEFT JOIN work w USING (train_step, episode_id)
WHERE e.reward IS NOT NULL
"""


@dataclass(frozen=True)
class Measured:
    """A run in figures; the log's training tasks are new at every step, so no task was trained on before."""

    end: dict[str, float]
    """Means over the last steps; see `figures`."""
    shaped: dict[str, float]
    """The same over the steps whose λ is above 0; empty where there are none."""
    half_parallel: int | None
    """The first step by which half of the wide and mixed episodes had work assigned; None: never."""
    curves: dict[str, list[float]]
    """By step: `parallel`, `success`, `finish`, `idle`, `deep agents`, `tokens`."""


def mean(frame: pl.DataFrame, column: str) -> float:
    """NaN of an empty frame."""
    value = frame[column].mean()
    return float("nan") if value is None else float(value)


def share(top: pl.DataFrame, columns: tuple[str, str]) -> float:
    """Sum over sum; NaN where there is nothing below."""
    above, below = (float(top[column].sum()) for column in columns)
    return above / below if below else float("nan")


def figures(episodes: pl.DataFrame) -> dict[str, float]:
    """Means over episodes; what has no episodes is NaN."""
    kind = {name: episodes.filter(pl.col("kind") == name) for name in ("wide", "mixed", "deep")}
    split = episodes.filter(pl.col("kind") != "deep")
    large = kind["wide"].filter(pl.col("n") >= 8)
    return {
        "success": mean(episodes, "success"),
        **{f"success {name}": mean(frame, "success") for name, frame in kind.items()},
        "success n<=6": mean(kind["wide"].filter(pl.col("n") <= 6), "success"),
        "success n>=8": mean(large, "success"),
        "serial": mean(split.with_columns(alone=(pl.col("assigned") == 0).cast(pl.Float64)), "alone"),
        "critical n>=8": mean(large, "critical_steps"),
        "agents n>=8": mean(large, "assigned"),
        "deep agents": mean(kind["deep"], "assigned"),
        "idle": share(episodes, ("idle", "assigned")),
        "finish": share(episodes, ("finished", "assigned")),
        "tokens": mean(episodes, "tokens"),
        "reward": mean(episodes, "reward"),
    }


def measure(folder: Path) -> Measured:
    """Reads a run's log."""
    episodes = parl_log.open_run(folder).sql(EPISODES)
    steps = sorted(episodes["step"].unique())
    by_step = [figures(episodes.filter(pl.col("step") == step)) for step in steps]
    curves = {
        "parallel": [1.0 - one["serial"] for one in by_step],
        "success": [one["success"] for one in by_step],
        "finish": [one["finish"] for one in by_step],
        "idle": [one["idle"] for one in by_step],
        "deep agents": [one["deep agents"] for one in by_step],
        "tokens": [one["tokens"] for one in by_step],
    }
    shaped = episodes.filter(pl.col("lambda_sum") > 0)
    return Measured(
        end=figures(episodes.filter(pl.col("step") > steps[-1] - END_STEPS)),
        shaped=figures(shaped) if shaped.height else {},
        half_parallel=first_above(smooth(curves["parallel"], WINDOW), 0.5),
        curves=curves,
    )


def smooth(values: list[float], window: int) -> list[float]:
    """Mean of the last `window` values that are numbers."""
    out = []
    for at in range(len(values)):
        some = [v for v in values[max(0, at - window + 1): at + 1] if v == v]
        out.append(sum(some) / len(some) if some else float("nan"))
    return out


def first_above(values: list[float], bound: float) -> int | None:
    """Number of the first step, from 1, whose value is at least `bound`."""
    return next((at + 1 for at, value in enumerate(values) if value >= bound), None)
