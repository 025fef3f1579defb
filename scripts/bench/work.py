"""The work of a benchmark: shapes and tokens, our programs, and what they ran on."""
import datetime
import os
import platform
import random
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS = 4, 8, 64, 64
# Ids below are special to the peers' tokenizer.
FIRST_WORD = 4
SHAPES = {
    "tiny": {"vocab": 4096, "hidden": 256, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 64, "ffn": 704},
    "small": {"vocab": 8192, "hidden": 512, "layers": 8, "heads": 8, "kv_heads": 2, "head_dim": 64, "ffn": 1408},
}
QWEN2 = {"max_positions": 4096, "rope_theta": 10000.0, "rms_eps": 1e-6, "qkv_bias": True, "qk_norm": False,
         "tied_head": True}


def say(text):
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def make_work(shape, dtype, threads, repetitions, prompts=PROMPTS, group=GROUP, prompt_tokens=PROMPT_TOKENS,
              new_tokens=NEW_TOKENS, apart=False):
    """For the program `bench` and the peers'; random tokens, always the same. The sequences to learn from are such as a
    step draws: those of a group begin with its prompt. Where they are `apart`, no two of them begin alike."""
    draws = random.Random(0)

    def tokens(count):
        return [draws.randrange(FIRST_WORD, shape["vocab"]) for _ in range(count)]

    def repetition():
        asked = [tokens(prompt_tokens) for _ in range(prompts)]
        begun = [tokens(prompt_tokens) if apart else prompt for prompt in asked for _ in range(group)]
        return {"prompts": asked, "sequences": [prompt + tokens(new_tokens) for prompt in begun]}

    return {"shape": shape | QWEN2, "dtype": dtype, "threads": threads, "group": group, "new_tokens": new_tokens,
            "repetitions": [repetition() for _ in range(repetitions)]}


def build(targets):
    """The folder of our programs, after `targets` (arguments of cargo) were built as scripts/trainer builds: the same
    features, so the same libraries."""
    try:
        made = subprocess.run([ROOT / "scripts/setup"], check=True, stdout=subprocess.PIPE, text=True)
        for line in made.stdout.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            os.environ[name] = "".join(shlex.split(value))
        subprocess.run(["cargo", "build", "--manifest-path", ROOT / "Cargo.toml", "--release", "--locked", "--quiet",
                        "--workspace", *targets], check=True, stdout=sys.stderr)
    except (subprocess.CalledProcessError, OSError) as error:
        say(f"error: no program to measure: {error}")
        sys.exit(3)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count(), "memory_gib": round(gib, 1)}


def commit(root=ROOT):
    described = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True,
                               check=False)
    return described.stdout.strip()


def today():
    return datetime.date.today().isoformat()
