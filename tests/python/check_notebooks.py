"""Executes every notebook on given runs, and on the example that ships with them; fails at the first error.

Usage: check_notebooks.py [RUN…]
"""

import asyncio
import os
import pathlib
import re
import sys
import tempfile
import time

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "notebooks"
# Kernels at a time: most of a notebook's time goes to starting one.
KERNELS = 2
CELL_SECONDS = 120
# What Jupyter paints its error texts with.
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


async def execute(path: pathlib.Path, run: str, turn: asyncio.Semaphore) -> str | None:
    """Executes a notebook; what went wrong, if anything."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if any(cell.outputs or cell.execution_count for cell in cells):
        return f"{path.name}: stored with outputs; clear them"
    async with turn:
        # Sockets in a folder instead of ports, which another program may take between choosing and binding.
        sockets = tempfile.mkdtemp(dir=os.environ["JUPYTER_RUNTIME_DIR"])
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/k")
        client = NotebookClient(
            notebook, km=kernel, timeout=CELL_SECONDS, resources={"metadata": {"path": str(NOTEBOOKS)}}
        )
        begin = time.monotonic()
        try:
            await client.async_execute(env={**os.environ, "PARL_RUN": run})
        except CellExecutionError as error:
            return f"{path.name} on {run or 'the example'}:\n{COLOUR.sub('', str(error))}"
        finally:
            # The client ends only kernels that it made itself.
            await kernel.shutdown_kernel(now=True)
    shown = sum(1 for cell in cells for output in cell.outputs if "text/html" in output.get("data", {}))
    print(f"{path.name} on {pathlib.Path(run).name or 'the example'}: {len(cells)} cells, {shown} pictures and tables, "
          f"{time.monotonic() - begin:.1f} s", flush=True)
    return None if shown else f"{path.name}: showed nothing"


async def main(runs: list[str]) -> None:
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert paths, NOTEBOOKS
    turn = asyncio.Semaphore(KERNELS)
    faults = await asyncio.gather(*[execute(path, run, turn) for run in ["", *runs] for path in paths])
    found = [fault for fault in faults if fault]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    given = [str(pathlib.Path(run).resolve()) for run in sys.argv[1:]]
    # Nothing of the user's settings is read, nothing is left behind.
    with tempfile.TemporaryDirectory(prefix="nb") as folder:
        for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            os.environ[variable] = f"{folder}/{variable}"
            os.mkdir(os.environ[variable])
        asyncio.run(main(given))
