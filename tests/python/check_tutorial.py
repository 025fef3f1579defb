"""Executes the commands of docs/tutorial.md, block by block, in a scratch folder.

usage: check_tutorial.py TRAINER SCRATCH
"""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial.md"


def main(trainer: str, scratch: pathlib.Path) -> None:
    scratch.mkdir(parents=True)
    for name in ("configs", "docs"):
        (scratch / name).symlink_to(ROOT / name)
    # The page's own command builds first; here the binary is built already.
    (scratch / "scripts").mkdir()
    (scratch / "scripts" / "trainer").symlink_to(trainer)
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)
    assert blocks, f"{PAGE} has no commands"
    for number, block in enumerate(blocks, 1):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=scratch, capture_output=True, text=True, env=os.environ
        )
        if done.returncode != 0:
            sys.exit(f"block {number} of {PAGE.name} failed:\n{block}\n{done.stdout}\n{done.stderr}")
    print(f"{len(blocks)} blocks of commands ran")


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
