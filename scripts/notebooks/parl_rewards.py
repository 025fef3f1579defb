"""Recomputes rewards, baselines and advantages from a log, by the trainer's formulas or by others.

The formulas are those of the Rust crate `rewards` and agree with it to rounding (1e-12). What a log cannot give back is
the metric behind `r_perf`: that is taken as logged, so another `rewards.perf` needs another run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import polars as pl

Schedule = dict[str, Any]
"""A weight over training steps, as in configs: `{"type": "linear", "from": 0.1, "to": 0.0, "steps": 90}`."""

PARTS = ("r_perf", "r_parallel", "r_finish", "r_budget")
"""The components, in the order in which they are summed; the last one is 0 where there is no toggle."""

KEY = ["train_step", "episode_id"]
GROUP = ["train_step", "group_id"]

STD_EPSILON = 1e-6
"""Added to a group's standard deviation before advantages are divided by it."""

BUDGET_ROUNDING = 1e-9
"""Slack of a group's mean reward against the toggle's limit."""

EXPONENTIAL_REST = 1e-3
"""What is left of an exponential schedule's way just before its end."""

TIE = 1e-12
"""Rewards that differ by less are equal in rank: the difference is rounding."""


@dataclass(frozen=True)
class RewardRules:
    """What of the config's `rewards` section turns parts into advantages; `dataclasses.replace` gives a variant."""

    form: str
    """`k25`: λ1·r_parallel + λ2·r_finish + r_perf; `blog`: λ1·r_parallel + (1 − λ1)·I[success]·r_perf."""
    lambda_parallel: Schedule
    lambda_finish: Schedule
    n_cap: int
    """Different prompts in one stage that earn all of r_parallel."""
    baseline: str
    """`mean` of the group, or `leave_one_out`: the mean of the others."""
    scale: str = "none"
    """What the difference is divided by: nothing (`none`) or the group's standard deviation (`std`)."""
    toggle: dict[str, Any] | None = None
    """Bounds the orchestrator's tokens in every other phase, as in configs; None leaves it out."""

    def __post_init__(self) -> None:
        if self.form not in ("k25", "blog"):
            raise ValueError(f"form: {self.form!r} is neither 'k25' nor 'blog'")
        if self.baseline not in ("mean", "leave_one_out"):
            raise ValueError(f"baseline: {self.baseline!r} is neither 'mean' nor 'leave_one_out'")
        if self.scale not in ("none", "std"):
            raise ValueError(f"scale: {self.scale!r} is neither 'none' nor 'std'")
        for schedule in (self.lambda_parallel, self.lambda_finish):
            lambda_at(schedule, 0)

    @classmethod
    def of(cls, config: dict[str, Any]) -> RewardRules:
        """The rules of a resolved config; one from before there were a scale and a toggle has none."""
        section = {"scale": "none", "toggle": None, **config["rewards"]}
        return cls(**{name: section[name] for name in cls.__dataclass_fields__})

    def lambdas(self, step: int) -> tuple[float, float]:
        """λ1 and λ2 at a training step; the blog form has no λ2."""
        finish = lambda_at(self.lambda_finish, step) if self.form == "k25" else 0.0
        return lambda_at(self.lambda_parallel, step), finish

    def stage(self, step: int) -> str:
        """Name of the schedule's stretch at a step; both names where λ1's and λ2's differ."""
        parallel, finish = stage_name(self.lambda_parallel, step), stage_name(self.lambda_finish, step)
        return parallel if self.form == "blog" or parallel == finish else f"{parallel}/{finish}"


def lambda_at(schedule: Schedule, step: int) -> float:
    """A schedule's weight at a training step (from 0)."""
    kind = schedule["type"]
    if kind == "constant":
        return float(schedule["value"])
    if kind == "stages":
        values = (s["value"] for s in schedule["stages"] if step < s["until_step"])
        return float(next(values, schedule["then"]))
    rests = {
        "linear": lambda x: 1.0 - x,
        "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
        "exponential": lambda x: EXPONENTIAL_REST**x,
    }
    if kind not in rests:
        raise ValueError(f"a schedule's type: {kind!r} is not one of constant, stages, {', '.join(rests)}")
    start, end, steps = float(schedule["from"]), float(schedule["to"]), schedule["steps"]
    if step >= steps:
        return end
    value = end + (start - end) * rests[kind](step / steps)
    return min(max(value, min(start, end)), max(start, end))


def stage_name(schedule: Schedule, step: int) -> str:
    """Name of the stretch of a schedule that a step lies in."""
    kind = schedule["type"]
    if kind == "constant":
        return "constant"
    if kind == "stages":
        return f"stage_{sum(step >= s['until_step'] for s in schedule['stages'])}"
    return "annealing" if step < schedule["steps"] else "annealed"


def bonuses(agents: pl.DataFrame, n_cap: int) -> pl.DataFrame:
    """r_parallel and r_finish of every episode that assigned work, from the assignments (others earn 0)."""
    assigned = agents.filter(pl.col("agent_idx") > 0)
    # Copies of one order in one stage count once, whatever white space stands around them.
    width = (
        assigned.group_by(*KEY, "stage")
        .agg(pl.col("assigned_prompt").str.strip_chars().n_unique().alias("width"))
        .group_by(KEY)
        .agg(pl.col("width").max())
    )
    done = assigned.group_by(KEY).agg((pl.col("finished") & (pl.col("n_steps") > 0)).sum().alias("done"), pl.len())
    cap = max(n_cap, 1)
    return width.join(done, on=KEY).select(
        *KEY,
        (pl.col("width").clip(upper_bound=cap).cast(pl.Float64) / cap).alias("r_parallel"),
        (pl.col("done").cast(pl.Float64) / pl.col("len")).alias("r_finish"),
    )


def score(episodes: pl.DataFrame, agents: pl.DataFrame, rules: RewardRules) -> pl.DataFrame:
    """Every scored episode under `rules`: one row each, with `raw_*`, `weight_*` and `value_*` for each of PARTS, and
    `reward`, `baseline`, `advantage`, `zero_variance` (of its group) and the schedule's `stage`. The logged columns that
    say the same of the run's own rules go, the others stay. Groups that an infrastructure failure took out have no
    reward and are left out.
    """
    replaced = ["r_parallel", "r_finish", "lambda_parallel", "lambda_finish", "stage", "reward_form"]
    scored = episodes.filter(pl.col("reward").is_not_null()).drop(replaced)
    weights = pl.DataFrame(
        [(step, *rules.lambdas(step), rules.stage(step)) for step in scored["train_step"].unique().sort()],
        schema={"train_step": pl.Int32, "λ1": pl.Float64, "λ2": pl.Float64, "stage": pl.String},
        orient="row",
    )
    frame = scored.join(bonuses(agents, rules.n_cap), on=KEY, how="left", maintain_order="left")
    frame = frame.join(weights, on="train_step", how="left", maintain_order="left")
    if rules.form == "k25":
        perf, perf_weight = pl.col("r_perf"), pl.lit(1.0)
    else:
        perf, perf_weight = pl.when("success").then("r_perf").otherwise(0.0), 1.0 - pl.col("λ1")
    frame = frame.with_columns(
        perf.alias("raw_perf"),
        pl.col("r_parallel").fill_null(0.0).alias("raw_parallel"),
        pl.col("r_finish").fill_null(0.0).alias("raw_finish"),
        perf_weight.alias("weight_perf"),
        pl.col("λ1").alias("weight_parallel"),
        pl.col("λ2").alias("weight_finish"),
    ).drop("r_parallel", "r_finish", "λ1", "λ2")
    names = [part.removeprefix("r_") for part in PARTS[:3]]
    frame = frame.with_columns((pl.col(f"raw_{n}") * pl.col(f"weight_{n}")).alias(f"value_{n}") for n in names)
    perf, parallel, finish = (pl.col(f"value_{n}") for n in names)
    frame = frame.with_columns((perf + parallel + finish).alias("raw_budget"))
    frame = budgeted(frame, agents, rules.toggle).with_columns(
        (pl.col("raw_budget") * pl.col("weight_budget")).alias("value_budget")
    )
    rewarded = frame.with_columns((pl.col("raw_budget") + pl.col("value_budget")).alias("reward"))
    return advantages(rewarded, rules.baseline, rules.scale)


def budgeted(frame: pl.DataFrame, agents: pl.DataFrame, toggle: dict[str, Any] | None) -> pl.DataFrame:
    """Adds `weight_budget`: −1 where all of an episode's reward is taken away, 0 elsewhere. The budgets are measured on
    the first steps, which must be in `frame`."""
    if toggle is None:
        return frame.with_columns(pl.lit(0.0).alias("weight_budget"))
    # The orchestrator's own tokens, and the budget of its class of tasks: a nearest rank.
    drawn = agents.filter(pl.col("agent_idx") == 0).select(*KEY, pl.col("tokens_out").alias("drawn"))
    frame = frame.join(drawn, on=KEY, how="left", maintain_order="left")
    task = ["task_kind", "n_items"]
    measured = frame.filter(pl.col("success") & (pl.col("train_step") < toggle["estimate_steps"]))
    rank = (pl.len() * toggle["percentile"]).ceil().cast(pl.Int64).clip(lower_bound=1) - 1
    budgets = measured.group_by(task).agg(pl.col("drawn").sort().get(rank).alias("budget"))
    frame = frame.join(budgets, on=task, how="left", maintain_order="left")
    step = pl.col("train_step").cast(pl.Int64)
    binds = (step >= toggle["estimate_steps"]) & (step // toggle["phase_steps"] % 2 == 0)
    well = pl.col("raw_budget").mean().over(GROUP) >= toggle["mean_limit"] - BUDGET_ROUNDING
    over = (pl.col("drawn") > pl.col("budget")).fill_null(False)
    weight = pl.when(binds & well & over).then(-1.0).otherwise(0.0)
    return frame.with_columns(weight.alias("weight_budget")).drop("drawn", "budget")


def advantages(frame: pl.DataFrame, baseline: str, scale: str = "none") -> pl.DataFrame:
    """Adds (or replaces) `baseline`, `advantage` and `zero_variance`, from `reward` within each group. A group whose
    rewards are all equal, or that has one episode, teaches nothing: its advantages are 0."""
    reward, n = pl.col("reward"), pl.len().over(GROUP)
    total = reward.sum().over(GROUP)
    compared = total / n if baseline == "mean" else (total - reward) / (n.cast(pl.Int64) - 1)
    equal = reward.n_unique().over(GROUP) == 1
    difference = reward - pl.col("baseline")
    if scale == "std":
        # Of the rewards, with n − 1; a group of one has none.
        deviation = reward.std(ddof=1).over(GROUP).fill_null(0.0)
        difference = pl.when("zero_variance").then(0.0).otherwise(difference / (deviation + STD_EPSILON))
    return frame.with_columns(
        equal.alias("zero_variance"), pl.when(equal).then(reward).otherwise(compared).alias("baseline")
    ).with_columns(difference.alias("advantage"))


def order_pairs(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """All pairs of episodes of one group, under two scorings of the same episodes: `order_before` and `order_after`
    are 1 where the first has the higher reward, −1 where the second has, 0 where both have the same."""
    both = before.select(*GROUP, "episode_id", "reward").join(
        after.select(*KEY, pl.col("reward").alias("reward_after")), on=KEY
    )
    pairs = both.join(both, on=GROUP, suffix="_2").filter(pl.col("episode_id") < pl.col("episode_id_2"))

    def order(column: str) -> pl.Expr:
        difference = pl.col(column) - pl.col(f"{column}_2")
        return pl.when(difference.abs() < TIE).then(0).otherwise(difference.sign()).cast(pl.Int8)

    return pairs.select(
        *GROUP,
        pl.col("episode_id").alias("first"),
        pl.col("episode_id_2").alias("second"),
        order("reward").alias("order_before"),
        order("reward_after").alias("order_after"),
    ).sort(*GROUP, "first", "second")


def agreement(pairs: pl.DataFrame, by: list[str] = GROUP) -> pl.DataFrame:
    """How far two orders agree, from `order_pairs`: the number of `pairs`, those `flipped`, `ties_broken` and
    `ties_made`, and Kendall's τ-b (`tau`; null where an order has ties alone)."""
    before, after = pl.col("order_before").cast(pl.Int64), pl.col("order_after").cast(pl.Int64)
    untied = ((before != 0).sum() * (after != 0).sum()).cast(pl.Float64).sqrt()
    return (
        pairs.group_by(by, maintain_order=True)
        .agg(
            pl.len().alias("pairs"),
            (before * after == -1).sum().alias("flipped"),
            ((before == 0) & (after != 0)).sum().alias("ties_broken"),
            ((before != 0) & (after == 0)).sum().alias("ties_made"),
            pl.when(untied > 0).then((before * after).sum() / untied).alias("tau"),
        )
    )
