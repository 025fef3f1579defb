"""A model of our own on real questions: its figures, and where each reference string that it missed was lost."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))
import parl_log  # noqa: E402
from tables import table  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TRAINER = str(ROOT / "scripts/trainer")
LAYERS = [flag for name in ("fanoutqa", "fanoutqa_train") for flag in ("--config", str(ROOT / f"configs/{name}.yaml"))]
CAUSES = (
    "on no page of the corpus",
    "its page was never opened",
    "opened, but not in the sub-agent's message",
    "told to the orchestrator, but not in its answer",
)
"""Where a missing string was lost, from first to last."""

MESSAGES = """
SELECT s.episode_id, s.agent_idx, m.role, m.content
FROM steps s, unnest(s.messages_delta) AS u(m)
WHERE m.role IN ('tool', 'assistant')
"""


@dataclass(frozen=True)
class Evaluation:
    """One policy on all held-out questions."""

    loose: float
    strict: float
    critical: float
    agents: float
    missed: Counter
    """Missing reference strings by cause."""
    strings: int


def words(text: object) -> str:
    """Close to the metric's spelling, for telling where a string is; the score itself is the trainer's."""
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", str(text).lower())
    plain = re.sub(r"(?<!\d)\.|\.(?!\d)", "", plain)
    return " " + " ".join(re.sub(r"[^\w.]+", " ", plain).split()) + " "


def strings(reference: object) -> list[str]:
    """The strings that the metric looks for: list items, and a map's keys and values."""
    if isinstance(reference, dict):
        return [s for key, value in reference.items() for s in (str(key), *strings(value))]
    if isinstance(reference, list):
        return [s for item in reference for s in strings(item)]
    return [str(reference)]


def cause(wanted: str, corpus: list[str], opened: list[str], told: list[str]) -> str:
    """The first place on its way to the answer where a string is not."""
    for place, name in ((corpus, CAUSES[0]), (opened, CAUSES[1]), (told, CAUSES[2])):
        if not any(wanted in text for text in place):
            return name
    return CAUSES[3]


def evaluate(data: Path, place: Path, more: list[str]) -> Evaluation:
    """Runs `trainer eval` on every held-out question and reads its log."""
    shutil.rmtree(place, ignore_errors=True)
    environment = os.environ | {"PARL_FANOUTQA": str(data)}
    keep = ["--json", "--tasks", "1000", "--run-dir", str(place)]
    done = subprocess.run([TRAINER, "eval", *LAYERS, *keep, *more], check=True, stdout=subprocess.PIPE, env=environment)
    figures = json.loads(done.stdout)["all"]
    run = parl_log.open_run(place)
    tasks = {t["id"]: t for t in map(json.loads, (data / "tasks.jsonl").read_text().splitlines())}
    corpus = [words(json.loads(line)["text"]) for line in (data / "corpus.jsonl").read_text().splitlines()]
    messages = run.sql(MESSAGES).rows()
    missed: Counter = Counter()
    total = 0
    for episode, task, answer in run.sql("SELECT episode_id, task_id, answer FROM episodes").rows():
        mine = [(agent, role, words(text)) for of, agent, role, text in messages if of == episode]
        opened = [text for agent, role, text in mine if role == "tool"]
        told = [text for agent, role, text in mine if role == "tool" and agent == 0]
        given = words(answer or "")
        wanted = strings(next(t for key, t in tasks.items() if task.endswith(key))["answer"])
        total += len(wanted)
        missed.update(cause(words(w), corpus, opened, told) for w in wanted if words(w) not in given)
    shutil.rmtree(place)
    return Evaluation(figures["r_perf"], figures["success"], figures["critical_steps"], figures["agents"], missed, total)


def write(data: Path, runs: Path, out: Path) -> None:
    """Makes what is missing, measures, and writes the page."""
    model, run, kept = runs / "model", runs / "run", runs / "kept"
    environment = os.environ | {"PARL_FANOUTQA": str(data)}
    runs.mkdir(parents=True, exist_ok=True)
    if not (model / "origin.json").is_file():
        subprocess.run([TRAINER, "sft", *LAYERS, "--out", str(model)], check=True, env=environment)
    seats = [f"rollout.{seat}.policy.model={model}" for seat in ("orchestrator", "subagent")]
    if not (run / "final_eval.json").is_file():
        more = ["--resume"] if (run / "checkpoints").is_dir() else ["--clean"]
        subprocess.run([TRAINER, "run", *LAYERS, "--run-dir", str(run), *seats, *more], check=True, env=environment)
    scripts = ["rollout.subagent.policy={type: scripted, script: serial}", "rollout.orchestrator.max_context_tokens=200000",
               "rollout.orchestrator.max_new_tokens=100000", "rollout.subagent.max_context_tokens=50000",
               "rollout.subagent.max_new_tokens=20000"]
    roomy = scripts[1:3]
    found = {
        "scripts, a human's questions and titles": evaluate(data, kept, ["--policy", "human", *scripts, "tasks.questions=human"]),
        "scripts, copied words": evaluate(data, kept, ["--policy", "human", *scripts]),
        "script, this model's sub-agents": evaluate(data, kept, ["--policy", "human", *seats[1:], *roomy]),
        "this model at the start": evaluate(data, kept, seats),
        "this model after training": evaluate(data, kept, ["--checkpoint", str(run), *seats[1:]]),
    }
    percent = lambda x: f"{100 * x:.1f} %"
    rows = [[name, percent(e.loose), percent(e.strict), f"{e.critical:.1f}", f"{e.agents:.1f}"] for name, e in found.items()]
    lost = [[name, *(percent(e.missed[c] / e.strings) for c in CAUSES)] for name, e in found.items()]
    origin = json.loads((model / "origin.json").read_text())
    steps = len((run / "metrics.jsonl").read_text().splitlines())
    config = json.loads((model / "config.json").read_text())
    out.write_text(f"""# Real questions, from nothing

Written by `scripts/real_questions`; no figure is typed. {platform.machine()}, {os.cpu_count()} cores.

FanOutQA's public questions (Zhu et al., 2024; CC BY-SA 4.0), split by a hash of their ids. The corpus is not Wikipedia but
the facts that the annotators took from it, page by page, with the annotators' own questions before them, so search is
far easier than in the benchmark, and no figure here compares with a published one.

The model ({config['hidden_size']} wide, {config['num_hidden_layers']} layers, {config['vocab_size']} token ids) goes on from the shipped one, which was made from nothing in
the generated world. It knows nothing of this one: no text but the training questions and this corpus' words. So it is
shown what can be done by copying (`tasks.questions: copied`): the question itself is the first search, names out of what
was found are the next, and the answer is all that was found. Most words of its demonstrations are swapped for others
(`sft.swapped_share`), or it would learn the few training questions by heart. Its warm start took {origin['tokens'] / 1e6:.1f} M tokens, the run
{steps} steps.

All held-out questions, temperature 0.6; *loose* is the share of reference strings in the answer, *all found* the share of
questions without a missing one.

{table(['', 'loose', 'all found', 'critical steps', 'agents'], rows)}

## Where the missing strings were lost

Share of all reference strings, by the first place on their way to the answer where they are missing.

{table(['', *CAUSES], lost)}

The second row is the most that copying can reach here: what it loses are entities whose name is not what finds their page,
and questions that need more than names.
""")
    print(f"wrote {out}")
