"""Opens a run's trajectory log: the five tables, the metrics and the config, as polars frames and in DuckDB.

What belongs to a run is what its step manifests name; no folder is searched for Parquet files. `docs/log.md` of the
project documents every column.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

TABLES = ("episodes", "agents", "steps", "tokens", "rewards")
"""The tables of a log."""

SCHEMA_MAJOR = 1
"""The layout that this module reads. Minor versions only add nullable columns."""

HERE = Path(__file__).resolve().parent
EXAMPLE_RUN = HERE / "example_run"
"""A small run that ships with the notebooks."""


class LogError(Exception):
    """A log that cannot be read as it stands; the text names the file, the value and what was expected."""


@dataclass(frozen=True)
class Part:
    """A file of one step, as its manifest promises it."""

    path: Path
    rows: int
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """A sealed step."""

    train_step: int
    parts: dict[str, Part]
    """One a table."""


@dataclass(frozen=True)
class Run:
    """A run's log. Tables are read, and checked against the manifests, when they are first asked for."""

    folder: Path
    manifests: tuple[Manifest, ...]
    """One a sealed training step, from step 0, without a gap."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config."""
        return _json(self.folder / "config.resolved.json")

    @cached_property
    def metrics(self) -> pl.DataFrame:
        """`metrics.jsonl`: one row a step, null where a step lacks a key. A run that is being written may end in half
        a line, which is left out."""
        path = self.folder / "metrics.jsonl"
        lines = _text(path).splitlines(keepends=True)
        try:
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            raise LogError(f"{path}: not one JSON object a line: {error}") from error
        return pl.from_dicts(rows, infer_schema_length=None)

    @cached_property
    def episodes(self) -> pl.DataFrame:
        """One row a rollout."""
        return self._read("episodes")

    @cached_property
    def agents(self) -> pl.DataFrame:
        """One row an assignment; `agent_idx` 0 is the orchestrator."""
        return self._read("agents")

    @cached_property
    def steps(self) -> pl.DataFrame:
        """One row a model call."""
        return self._read("steps")

    @cached_property
    def tokens(self) -> pl.DataFrame:
        """One row a context of the orchestrator's seat."""
        return self._read("tokens")

    @cached_property
    def rewards(self) -> pl.DataFrame:
        """One row a reward component."""
        return self._read("rewards")

    @cached_property
    def database(self) -> duckdb.DuckDBPyConnection:
        """DuckDB with the five tables as views, and on them the views and checks of `scripts/views.sql`. A table that
        was left out of a copy of the run has no view."""
        connection = duckdb.connect()
        for table in TABLES:
            if self.has(table):
                paths = ", ".join("'" + str(p.path).replace("'", "''") + "'" for p in self.parts(table))
                files = f"read_parquet([{paths}], union_by_name = true, hive_partitioning = false)"
                connection.execute(f"CREATE VIEW {table} AS SELECT * FROM {files}")
        for statement in duckdb.extract_statements(_text(HERE.parent / "views.sql")):
            # The tables are there already, by their manifests.
            if "read_parquet(" not in statement.query:
                connection.execute(statement)
        return connection

    def sql(self, query: str) -> pl.DataFrame:
        """Answers a query in DuckDB."""
        return pl.DataFrame(self.database.sql(query))

    def has(self, table: str) -> bool:
        """Whether any file of a table is here; a copy for looking at may leave a whole table out."""
        return any(m.parts[table].path.exists() for m in self.manifests)

    def parts(self, table: str) -> list[Part]:
        """A table's files, in the order of steps, each of the length that its manifest promises.

        Raises LogError for a file that is missing or has another length.
        """
        parts = [m.parts[table] for m in self.manifests]
        for part in parts:
            if not part.path.is_file():
                raise LogError(f"{part.path}: missing, though its step's manifest names it")
            if part.path.stat().st_size != part.size_bytes:
                found = part.path.stat().st_size
                raise LogError(f"{part.path}: {found} bytes, its manifest promises {part.size_bytes}")
        return parts

    def _read(self, table: str) -> pl.DataFrame:
        frames = []
        for part in self.parts(table):
            try:
                frame = pl.read_parquet(part.path, glob=False, hive_partitioning=False)
            except (pl.exceptions.PolarsError, OSError) as error:
                raise LogError(f"{part.path}: not a Parquet file that can be read: {error}") from error
            if frame.height != part.rows:
                raise LogError(f"{part.path}: {frame.height} rows, its manifest promises {part.rows}")
            frames.append(frame)
        # Steps of a newer minor version may have more columns.
        return pl.concat(frames, how="diagonal")

    def __repr__(self) -> str:
        episodes = sum(m.parts["episodes"].rows for m in self.manifests)
        return f"{self.folder.name}: {len(self.manifests)} steps, {episodes} episodes"


def open_run(folder: str | os.PathLike[str] | None = None) -> Run:
    """Opens a run's folder: the one given, else the one that the environment variable `PARL_RUN` names, else the small
    example. A relative folder is looked for from here and from the project's root.

    Raises LogError when there is no log, a step is missing or the layout is of another major version.
    """
    wanted = Path(folder or os.environ.get("PARL_RUN") or EXAMPLE_RUN)
    candidates = [wanted.absolute(), HERE.parents[1] / wanted]
    found = next((c for c in candidates if (c / "trajectories").is_dir()), None)
    if found is None:
        raise LogError(f"{wanted}: no run with a `trajectories` folder there (PARL_RUN names the run's folder)")
    log = found / "trajectories" / f"v{SCHEMA_MAJOR}"
    if not (log / "manifests").is_dir():
        raise LogError(f"{log}: not there; this module reads layout v{SCHEMA_MAJOR}")
    paths = sorted(p for p in (log / "manifests").iterdir() if p.name.startswith("step_") and p.suffix == ".json")
    manifests = tuple(_manifest(log, path) for path in paths)
    if not manifests:
        raise LogError(f"{log / 'manifests'}: no step is sealed yet")
    for expected, manifest in enumerate(manifests):
        if manifest.train_step != expected:
            raise LogError(f"{log / 'manifests'}: step {expected} has no manifest, but step {manifest.train_step} has")
    return Run(found, manifests)


def _manifest(log: Path, path: Path) -> Manifest:
    raw = _json(path)
    try:
        version = str(raw["schema_version"])
        if version.split(".")[0] != str(SCHEMA_MAJOR):
            raise LogError(f"{path}: schema_version {version}; this module reads {SCHEMA_MAJOR}.x")
        parts = {f["table"]: Part(log / f["path"], int(f["rows"]), int(f["bytes"])) for f in raw["files"]}
        manifest = Manifest(int(raw["train_step"]), parts)
    except (KeyError, TypeError, ValueError) as error:
        raise LogError(f"{path}: not a step's manifest: {error!r}") from error
    if set(parts) != set(TABLES):
        raise LogError(f"{path}: names the tables {sorted(parts)}, expected {sorted(TABLES)}")
    for part in parts.values():
        if not part.path.resolve().is_relative_to(log.resolve()):
            raise LogError(f"{path}: names {part.path}, which is outside the log")
    return manifest


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LogError(f"{path}: cannot be read: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise LogError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise LogError(f"{path}: not a JSON object")
    return value
