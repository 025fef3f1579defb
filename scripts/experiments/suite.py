"""Runs that are compared: what differs between them, and how they are made, several at a time and only once."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


@dataclass(frozen=True)
class Start:
    """A model that runs begin with, made from the shipped one by a recipe."""

    config: str
    """Name of its config."""
    both_seats: bool
    """Whether it is the frozen sub-agents' model too; the shipped one is otherwise."""


@dataclass(frozen=True)
class Arm:
    """One of the runs that are compared."""

    name: str
    overlays: tuple[str, ...] = ()
    """Names of configs over the scene's."""


@dataclass(frozen=True)
class Scene:
    """What the runs of a comparison share."""

    name: str
    title: str
    overlays: tuple[str, ...]
    arms: tuple[Arm, ...]
    start: Start | None = None


def config_flags(scene: Scene, arm: Arm) -> list[str]:
    """`--config` for every layer, in their order."""
    names = ["parl", "ablation", *scene.overlays, *arm.overlays]
    return [flag for name in names for flag in ("--config", str(CONFIGS / f"{name}.yaml"))]


def overrides(scene: Scene, runs: Path) -> list[str]:
    """Where the scene's models are, for the command line."""
    if scene.start is None:
        return []
    model = runs / "starts" / scene.name
    seats = ["orchestrator", "subagent"] if scene.start.both_seats else ["orchestrator"]
    return [f"rollout.{seat}.policy.model={model}" for seat in seats]


def folder(runs: Path, scene: Scene, arm: Arm, seed: int) -> Path:
    """Of one run."""
    return runs / f"{scene.name}-{arm.name}-seed{seed}"


class Workshop:
    """Makes starts and runs that are not there yet, `jobs` at a time; a run that was stopped goes on."""

    def __init__(self, runs: Path, jobs: int):
        self.runs = runs
        self.jobs = jobs
        # A thread count changes no bit of a run (design of the learner and the engine), so jobs share the cores.
        self.threads = max(1, (os.cpu_count() or 1) // jobs)

    def _trainer(self, name: str, arguments: list[str]) -> None:
        log = self.runs / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"RAYON_NUM_THREADS": str(self.threads)}
        with log.open("a") as out:
            done = subprocess.run(
                [str(ROOT / "scripts/trainer"), *arguments], stdout=out, stderr=subprocess.STDOUT, env=environment,
                check=False,
            )
        if done.returncode != 0:
            raise SystemExit(f"{name} ended with code {done.returncode}; {log} says why")

    def start(self, scene: Scene) -> None:
        """Makes the scene's start, if it has one of its own."""
        made = self.runs / "starts" / scene.name
        if scene.start is None or (made / "origin.json").is_file():
            return
        print(f"making the start of {scene.name}", flush=True)
        recipe = str(CONFIGS / f"{scene.start.config}.yaml")
        self._trainer(f"start-{scene.name}", ["sft", "--config", recipe, "--out", str(made)])

    def run(self, scene: Scene, arm: Arm, seed: int) -> None:
        """Makes or finishes one run."""
        place = folder(self.runs, scene, arm, seed)
        done = place.with_suffix(".done")
        if done.is_file():
            return
        began = time.monotonic()
        more = ["--resume"] if (place / "checkpoints").is_dir() else ["--clean"]
        own = [f"run.seed={seed}", f"run.name={place.name}", f"learner.threads={self.threads}"]
        flags = config_flags(scene, arm)
        self._trainer(place.name, ["run", *flags, "--run-dir", str(place), *own, *overrides(scene, self.runs), *more])
        done.write_text("")
        print(f"{place.name}: {(time.monotonic() - began) / 60:.1f} min", flush=True)

    def make(self, scenes: list[Scene], seeds: list[int]) -> None:
        """All runs: seed after seed, so that whole comparisons are there early."""
        (self.runs / "starts").mkdir(parents=True, exist_ok=True)
        for scene in scenes:
            self.start(scene)
        work = [(scene, arm, seed) for seed in seeds for scene in scenes for arm in scene.arms]
        with ThreadPoolExecutor(self.jobs) as pool:
            for future in [pool.submit(self.run, *one) for one in work]:
                future.result()
