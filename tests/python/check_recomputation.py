"""Compares the notebooks' Python with what the trainer logged, to 1e-12: for a trained run, and for scripted runs that
it makes under other rules. It also feeds the Python broken logs and hostile text.

Usage: check_recomputation.py RUN; `PARL_TRAINER` names the trainer's binary.
"""

import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import polars as pl

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "notebooks"))

import parl_log
import parl_rewards
import parl_transcript

BOUND = 1e-12
STEPS = 12
LINE = "{type: linear, from: 0.2, to: 0.0, steps: 9}"

# What each scripted run changes. All draw the same episodes, so the log of the first, weighed again by the rules of
# another, must give what the trainer gave there.
VARIANTS = {
    "linear": [f"rewards.lambda_parallel={LINE}", f"rewards.lambda_finish={LINE}"],
    "cosine": ["rewards.lambda_parallel={type: cosine, from: 0.05, to: 0.3, steps: 7}"],
    "exponential": ["rewards.lambda_finish={type: exponential, from: 0.3, to: 0.01, steps: 10}"],
    "stages": [
        "rewards.lambda_parallel={type: stages, stages: [{until_step: 3, value: 0.3}, {until_step: 8, value: 0.1}], "
        "then: 0}",
        f"rewards.lambda_finish={LINE}",
    ],
    "constant": [
        "rewards.lambda_parallel={type: constant, value: 0.1}",
        "rewards.lambda_finish={type: constant, value: 0.3}",
    ],
    "leave one out": ["rewards.baseline=leave_one_out", f"rewards.lambda_parallel={LINE}"],
    "over the spread": ["rewards.scale=std", f"rewards.lambda_parallel={LINE}"],
    "others, over the spread": [
        "rewards.scale=std",
        "rewards.baseline=leave_one_out",
        f"rewards.lambda_finish={LINE}",
    ],
    # What nobody chose is what the objective names.
    "as GRPO": ["learner.objective={type: grpo}", f"rewards.lambda_parallel={LINE}"],
    "as RLOO": ["learner.objective={type: rloo}"],
    "toggle": [
        "rewards.toggle={phase_steps: 2, mean_limit: 0.5, percentile: 0.5, estimate_steps: 4}",
        f"rewards.lambda_parallel={LINE}",
    ],
    "wide cap": ["rewards.n_cap=11", f"rewards.lambda_parallel={LINE}"],
    "blog": ["rewards.form=blog", f"rewards.lambda_parallel={LINE}", "rewards.baseline=leave_one_out"],
    "blog, stages": [
        "rewards.form=blog",
        "rewards.lambda_parallel={type: stages, stages: [{until_step: 5, value: 0.4}], then: 0.02}",
    ],
}


def scripted_run(folder: pathlib.Path, settings: list[str]) -> parl_log.Run:
    command = [
        *[os.environ["PARL_TRAINER"], "run", "--config", str(ROOT / "configs" / "scripted.yaml")],
        *["--run-dir", str(folder), f"run.max_steps={STEPS}", "run.final_eval_tasks=0"],
        # Agents that fail make rewards differ within groups.
        *["rollout.subagent.outage_rate=0.3", "rollout.tasks_per_step=5", "rollout.group_size=5"],
        *["rewards.lambda_sum_limit=0.6", *settings],
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return parl_log.open_run(folder)


def compare(scored: pl.DataFrame, run: parl_log.Run) -> float:
    """The largest difference between a scoring in Python and what `run` has logged; the names must be the same."""
    episodes = run.episodes.filter(pl.col("reward").is_not_null())
    assert scored["episode_id"].to_list() == episodes["episode_id"].to_list()
    both = scored.join(episodes, on=parl_rewards.KEY, suffix="_logged", maintain_order="left")
    names = ["perf", "parallel", "finish"]
    if run.config["rewards"].get("toggle"):
        names.append("budget")
    else:
        assert "r_budget" not in run.rewards["component"] and (scored["weight_budget"] == 0).all()
    for part, name in [(f"r_{name}", name) for name in names]:
        rows = run.rewards.filter(pl.col("component") == part)
        values = [pl.col(c).alias(f"{c}_{name}_logged") for c in ("raw", "weight", "value")]
        rows = rows.select(*parl_rewards.KEY, *values)
        both = both.join(rows, on=parl_rewards.KEY, how="left", maintain_order="left")
    assert both.select((pl.col("stage") == pl.col("stage_logged")).all()).item()
    columns = ["reward", "advantage"]
    columns += [f"{c}_{name}" for c in ("raw", "weight", "value") for name in names]
    pairs = [(c, f"{c}_logged") for c in columns]
    # The episodes table has the bonuses and weights too.
    pairs += [("raw_parallel", "r_parallel"), ("raw_finish", "r_finish")]
    pairs += [("weight_parallel", "lambda_parallel"), ("weight_finish", "lambda_finish")]
    differences = both.select([(pl.col(a) - pl.col(b)).abs().alias(f"{a}|{b}") for a, b in pairs])
    assert differences.null_count().sum_horizontal().item() == 0, differences.null_count()
    worst = {name: differences[name].max() for name in differences.columns}
    assert all(value <= BOUND for value in worst.values()), worst
    return max(worst.values())


def check_run(run: parl_log.Run) -> float:
    scored = parl_rewards.score(run.episodes, run.agents, parl_rewards.RewardRules.of(run.config))
    # A log in which nothing differs would prove nothing.
    assert (scored["value_parallel"] > 0).any() and (scored["advantage"].abs() > BOUND).any()
    assert run.sql("SELECT * FROM check_failures").is_empty()
    told = run.metrics.sort("step")["frac_reward_zero_std"]
    counted = scored.group_by("train_step").agg(
        pl.col("group_id").filter("zero_variance").n_unique() / pl.col("group_id").n_unique()
    )
    # Without dropped groups, both speak of the same groups.
    assert run.metrics["groups/dropped"].sum() == 0
    assert (counted.sort("train_step")["group_id"] - told).abs().max() <= BOUND
    return compare(scored, run)


def check_advantages_of_tokens(run: parl_log.Run) -> None:
    """What the learner was given, in single precision: an episode's advantage on each token that it drew."""
    drawn = (
        run.tokens.select(*parl_rewards.KEY, "loss_mask", pl.col("advantages").alias("given"))
        .explode("loss_mask", "given")
        .filter("loss_mask")
    )
    scored = parl_rewards.score(run.episodes, run.agents, parl_rewards.RewardRules.of(run.config))
    both = drawn.join(scored.select(*parl_rewards.KEY, pl.col("advantage").cast(pl.Float32)), on=parl_rewards.KEY)
    assert both.height == drawn.height > 0
    assert both.select((pl.col("given") - pl.col("advantage")).abs().max()).item() <= 1e-7


def check_corners() -> None:
    """What runs seldom hold: equal rewards whose mean rounds, a group of one, copies of one order."""
    equal = pl.DataFrame({"train_step": [0] * 8, "group_id": [*"aaaaaaab"], "reward": [0.1] * 8})
    for baseline, scale in itertools.product(("mean", "leave_one_out"), ("none", "std")):
        found = parl_rewards.advantages(equal, baseline, scale)
        assert found["zero_variance"].all() and found["advantage"].to_list() == [0.0] * 8, found
    agents = pl.DataFrame(
        {
            "train_step": [0] * 5,
            "episode_id": ["e"] * 5,
            "agent_idx": range(5),
            "stage": [None, 0, 0, 0, 1],
            "assigned_prompt": ["task", "a", " a\u2003", "b", "c"],
            "finished": [True, True, True, False, True],
            "n_steps": [9, 2, 0, 3, 1],
        }
    )
    (found,) = parl_rewards.bonuses(agents, 4).to_dicts()
    assert (found["r_parallel"], found["r_finish"]) == (2 / 4, 2 / 4), found


def check_orders() -> None:
    """Two groups by hand: one whose order turns, one in which a tie is broken."""

    def frame(rewards: list[float]) -> pl.DataFrame:
        groups = ["a", "a", "a", "b", "b"]
        return pl.DataFrame(
            {"train_step": [0] * 5, "group_id": groups, "episode_id": list("vwxyz"), "reward": rewards}
        )

    pairs = parl_rewards.order_pairs(frame([0.3, 0.2, 0.1, 0.5, 0.5]), frame([0.3, 0.1, 0.2, 0.5, 0.4]))
    assert pairs.height == 4
    found = parl_rewards.agreement(pairs).to_dicts()
    keys = ("group_id", "pairs", "flipped", "ties_broken", "ties_made")
    assert [tuple(row[k] for k in keys) for row in found] == [("a", 3, 1, 0, 0), ("b", 1, 0, 1, 0)], found
    # (2 − 1) / 3 by the definition of τ; an order of ties alone has none.
    assert abs(found[0]["tau"] - 1 / 3) <= BOUND and found[1]["tau"] is None, found
    # 0.1 + 0.2 is not 0.3 in binary, but no one earned more.
    rounding = parl_rewards.order_pairs(frame([0.1 + 0.2, 0.3, 0.3, 0.0, 0.0]), frame([0.0] * 5))
    assert rounding["order_before"].abs().max() == 0


def check_refusals(scratch: pathlib.Path) -> None:
    """Each fault is refused by a text that names the file and the value."""

    def manifest(change):
        def damage(run: pathlib.Path) -> None:
            path = run / "trajectories" / "v1" / "manifests" / "step_000001.json"
            raw = json.loads(path.read_text())
            change(raw)
            path.write_text(json.dumps(raw))

        return damage

    def table(change):
        return lambda run: change(run / "trajectories/v1/rewards/step_000001/part-r0000-000.parquet")

    def set_rows(raw: dict) -> None:
        raw["files"][4]["rows"] = 7

    def leave(raw: dict) -> None:
        raw["files"][4]["path"] = "../../../outside.parquet"

    cases = {
        "schema_version 2.0; this module reads 1.x": manifest(lambda raw: raw.update(schema_version="2.0")),
        "step_000001.json: not a step's manifest": manifest(lambda raw: raw.pop("files")),
        "expected ['agents', 'episodes', 'rewards', 'steps', 'tokens']": manifest(lambda raw: raw["files"].pop()),
        "outside the log": manifest(leave),
        "rows, its manifest promises 7": manifest(set_rows),
        "part-r0000-000.parquet: missing": table(lambda path: path.unlink()),
        "bytes, its manifest promises": table(lambda path: path.write_bytes(path.read_bytes()[:-1])),
        "not a Parquet file": table(lambda path: path.write_bytes(b"x" * path.stat().st_size)),
        "step 1 has no manifest, but step 2 has": lambda run: (
            run / "trajectories/v1/manifests/step_000001.json"
        ).unlink(),
        "no run with a `trajectories` folder": lambda run: shutil.rmtree(run / "trajectories"),
        "this module reads layout v1": lambda run: (run / "trajectories/v1").rename(run / "trajectories/v2"),
        "metrics.jsonl: not one JSON object a line": lambda run: (run / "metrics.jsonl").write_text("{]\n"),
        "config.resolved.json: cannot be read": lambda run: (run / "config.resolved.json").unlink(),
    }
    for number, (text, damage) in enumerate(cases.items()):
        copy = scratch / f"damaged-{number}"
        shutil.copytree(parl_log.EXAMPLE_RUN, copy)
        damage(copy)
        try:
            run = parl_log.open_run(copy)
            _ = run.rewards, run.metrics, run.config
        except parl_log.LogError as error:
            assert text in str(error), (text, str(error))
        else:
            raise AssertionError(f"not refused: {text}")

    newer = scratch / "newer"
    shutil.copytree(parl_log.EXAMPLE_RUN, newer)
    manifest(lambda raw: raw.update(schema_version="1.9"))(newer)
    (newer / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "half')
    run = parl_log.open_run(newer)
    assert run.rewards.height > 0 and run.metrics.height == 1
    assert not run.has("tokens") and run.has("steps")
    os.environ.pop("PARL_RUN", None)
    example = parl_log.open_run()
    os.environ["PARL_RUN"] = str(parl_log.EXAMPLE_RUN.relative_to(ROOT))
    assert example.folder == parl_log.EXAMPLE_RUN == parl_log.open_run().folder

    rules = json.loads((parl_log.EXAMPLE_RUN / "config.resolved.json").read_text())["rewards"]
    for key, value in [("form", "k26"), ("baseline", "median"), ("scale", "range"), ("lambda_finish", {"type": "linaer"})]:
        try:
            parl_rewards.RewardRules.of({"rewards": {**rules, key: value}})
        except ValueError as error:
            assert str(value if isinstance(value, str) else value["type"]) in str(error)
        else:
            raise AssertionError(f"not refused: {key} {value}")


def check_hostile_text() -> None:
    """Markup of a model's is shown, not obeyed; what cannot be seen is shown by number."""
    hostile = "</pre><script>alert(1)</script>\u202e\x1b[2J\x00 & \"'"
    shown = parl_transcript.plain(hostile)
    assert "<" not in shown and '"' not in shown and "\x1b" not in shown and "\u202e" not in shown, shown
    assert "&lt;script&gt;" in shown and "⟨U+202E⟩" in shown and "⟨U+0000⟩" in shown, shown
    assert parl_transcript.plain("x" * 5000).endswith("(3000 more characters)")

    run = parl_log.open_run(parl_log.EXAMPLE_RUN)
    busy = run.episodes.sort("n_assigned").row(-1, named=True)["episode_id"]
    # The frames of a run stand in its dictionary once they were read.
    texts = [pl.col(c).replace_strict({}, default=hostile).alias(c) for c in ("name", "finish_reason")]
    vars(run)["agents"] = run.agents.with_columns(texts)
    message = pl.struct(role=pl.lit(hostile), content=pl.lit(hostile), tool_call_id=pl.lit(hostile))
    vars(run)["steps"] = run.steps.with_columns(pl.concat_list(message).alias("messages_delta"))
    page = parl_transcript.transcript(run, busy)
    assert page.count("&lt;script&gt;") > 4 and "<script" not in page and "</pre><" in page
    assert page.count("<details") == page.count("</details>") > 2
    # polars' own tables, which the notebooks show too.
    assert "<script>" not in pl.DataFrame({"x": [hostile]})._repr_html_()


def main(trained: pathlib.Path) -> None:
    check_corners()
    check_orders()
    check_hostile_text()
    run = parl_log.open_run(trained)
    worst = check_run(run)
    check_advantages_of_tokens(run)
    episodes = run.episodes.height
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        check_refusals(scratch)
        runs = {name: scripted_run(scratch / name, settings) for name, settings in VARIANTS.items()}
        base = runs["linear"]
        assert base.episodes["r_parallel"].n_unique() > 2 and base.episodes["r_finish"].n_unique() > 2
        assert not base.metrics["frac_reward_zero_std"].is_in([0.0, 1.0]).all()
        named = {name: (run.config["rewards"]["baseline"], run.config["rewards"]["scale"]) for name, run in runs.items()}
        assert named["linear"] == ("mean", "none") and named["as GRPO"] == ("mean", "std"), named
        taken = runs["toggle"].rewards.filter((pl.col("component") == "r_budget") & (pl.col("value") < 0))
        assert taken["train_step"].unique().sort().to_list() == [4, 5, 8, 9], taken
        assert named["as RLOO"] == ("leave_one_out", "none"), named
        for run in runs.values():
            rules = parl_rewards.RewardRules.of(run.config)
            again = parl_rewards.score(base.episodes, base.agents, rules)
            worst = max(worst, check_run(run), compare(again, run))
            episodes += run.episodes.height
    print(f"{1 + len(runs)} runs, {episodes} episodes: rewards, parts, weights and advantages in Python are the "
          f"trainer's, largest difference {worst:.1e}; each run's rules weigh another's log as the trainer would have")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
