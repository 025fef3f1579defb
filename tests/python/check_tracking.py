"""Reads what a run's sinks wrote with the clients that it is for, and compares every value with metrics.jsonl: with
TensorBoard's reader, with the W&B client's own messages, and by letting `wandb sync` upload it to a server on this
machine that notes what it gets.

Usage: check_tracking.py RUN [OURS=THEIRS…]   the run's tracking has both sinks; names that its style changes
"""

import datetime
import http.server
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import threading
import zlib

import tensorboard
import wandb
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from wandb.proto import wandb_internal_pb2

# Keys of a line that are no figures but the x axes.
AXES = ("step", "timestamp")


def read(path: pathlib.Path, aliases: dict[str, str]) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{aliases.get(k, k): v for k, v in line.items() if v is not None} for line in lines]


def check_tensorboard(run: pathlib.Path, lines: list[dict]) -> int:
    reader = EventAccumulator(str(run / "tensorboard"), size_guidance={SCALARS: 0})
    reader.Reload()
    series: dict[str, list] = {}
    for line in lines:
        for name, value in line.items():
            if name not in AXES and isinstance(value, (int, float)):
                single = struct.unpack("f", struct.pack("f", value))[0]
                series.setdefault(name, []).append((line["timestamp"], line["step"], single))
    assert sorted(reader.Tags()["scalars"]) == sorted(series), "tags"
    for name, wanted in series.items():
        found = [(event.wall_time, event.step, event.value) for event in reader.Scalars(name)]
        assert found == wanted, (name, found, wanted)
    return sum(map(len, series.values()))


def records(path: pathlib.Path) -> list:
    """The records of a W&B offline file: LevelDB's log behind seven bytes, checked chunk by chunk."""
    data = path.read_bytes()
    assert data[:7] == b":W&B" + struct.pack("<HB", 0xBEE1, 0), data[:7]
    found, begun, at = [], b"", 7
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, at)
        chunk = data[at + 7 : at + 7 + length]
        assert len(chunk) == length <= left - 7 and kind in (1, 2, 3, 4), at
        assert zlib.crc32(bytes([kind]) + chunk) == crc, f"checksum at {at}"
        begun += chunk
        at += 7 + length
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(begun))
            begun = b""
    assert not begun
    return found


def row_of(items) -> dict:
    return {item.nested_key[0]: json.loads(item.value_json) for item in items}


def wanted_row(line: dict) -> dict:
    row = {name: value for name, value in line.items() if name not in AXES}
    return row | {"_step": line["step"], "_timestamp": line["timestamp"]}


def check_records(run: pathlib.Path, lines: dict[tuple, dict]) -> tuple[list[pathlib.Path], list[dict]]:
    """The run's files and the lines in them. A file that was uploaded keeps its lines when the run goes on from an
    earlier step, so they may be of an earlier launch."""
    paths, told = sorted(run.glob("wandb/offline-run-*/run-*.wandb")), []
    config = json.loads((run / "config.resolved.json").read_text())
    begin = datetime.datetime.fromisoformat(json.loads((run / "parl-run.json").read_text())["made_at"]).timestamp()
    for path in paths:
        found = records(path)
        kinds = [record.WhichOneof("record_type") for record in found]
        rows = (len(found) - 3) // 2
        assert kinds == ["header", "run"] + ["history", "summary"] * rows + ["exit"], kinds
        assert [record.num for record in found] == list(range(1, len(found) + 1))
        about = found[1].run
        if path == paths[-1]:
            assert {item.nested_key[0]: json.loads(item.value_json) for item in about.config.update} == config
        assert about.display_name == config["run"]["name"] and about.run_id == path.stem.removeprefix("run-")
        assert path.parent.name.endswith("-" + about.run_id) and found[-1].exit.exit_code == 0
        for history, summary in zip(found[2:-1:2], found[3:-1:2]):
            row = row_of(history.history.item)
            assert row == row_of(summary.summary.update)
            line = lines[row["_step"], row["attempt"]]
            assert history.history.step.num == row["_step"]
            assert abs(row.pop("_runtime") - (line["timestamp"] - begin)) < 1e-3
            assert row == wanted_row(line), (row, line)
            told.append(line)
    assert [line["step"] for line in told] == list(range(len(told)))
    return [path.parent for path in paths], told


class Server(http.server.ThreadingHTTPServer):
    """Answers what the client asks while it uploads a run, and keeps what it sends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs, self.history, self.ends, self.files = [], {}, [], {}

    def handle_error(self, *_) -> None:
        """The client cuts connections when it is done."""

    def graphql(self, request: dict) -> dict:
        values = request["variables"]
        if request["operationName"] == "UpsertBucket":
            self.runs.append(values)
            project = {"id": "p", "name": values["project"], "entity": {"id": "e", "name": "someone"}}
            bucket = {"id": "b", "name": values["name"], "displayName": values["displayName"], "description": None,
                      "config": values["config"], "sweepName": None, "project": project,
                      # The client appends to the rows that there are.
                      "historyLineCount": len(self.history)}
            return {"upsertBucket": {"bucket": bucket, "inserted": not self.history}}
        if request["operationName"] == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/files/{name}"} for name in values["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def stream(self, sent: dict) -> None:
        rows = sent.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        for i, row in enumerate(rows["content"]):
            self.history[rows["offset"] + i] = json.loads(row)
        if sent.get("complete"):
            self.ends.append(sent["exitcode"])


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        answer = {}
        if self.path == "/graphql":
            answer = {"data": self.server.graphql(json.loads(body))}
        elif self.path.endswith("/file_stream"):
            self.server.stream(json.loads(body))
        elif self.command == "PUT":
            self.server.files[self.path.rsplit("/", 1)[-1]] = body
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_) -> None:
        pass


def check_sync(folders: list[pathlib.Path], config: dict, lines: list[dict]) -> None:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        environment |= {"HOME": home, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "NO_PROXY": "127.0.0.1",
                        "WANDB_ERROR_REPORTING": "false", "XDG_CACHE_HOME": home, "XDG_CONFIG_HOME": home}
        sync = [sys.executable, "-m", "wandb", "sync", "--include-synced", *map(str, folders)]
        done = subprocess.run(sync, env=environment, cwd=home, timeout=50, capture_output=True, text=True)
    assert done.returncode == 0 and "Finished syncing" in done.stderr, (done.stdout, done.stderr)
    server.shutdown()
    first = server.runs[0]
    told = config["tracking"]["wandb"]
    assert folders[0].name.endswith("-" + first["name"]) and first["displayName"] == config["run"]["name"], first
    assert len({run["name"] for run in server.runs}) == 1
    assert (first["project"], first["groupName"], first["tags"]) == (told["project"], told["group"], told["tags"] or None)
    uploaded = json.loads(server.runs[-1]["config"])
    uploaded = {name: entry["value"] for name, entry in uploaded.items() if name != "_wandb"}
    assert uploaded == config
    assert sorted(server.history) == list(range(len(lines))), "rows are missing, or begin at another place"
    for at, line in enumerate(lines):
        row = server.history[at]
        row.pop("_runtime")
        assert row == wanted_row(line), (row, line)
    assert server.ends == [0] * len(folders), server.ends
    summary = json.loads(server.files["wandb-summary.json"])
    last = wanted_row(lines[-1])
    assert {name: summary[name] for name in last} == last, summary


def main(run: pathlib.Path, aliases: dict[str, str]) -> None:
    lines = read(run / "metrics.jsonl", aliases)
    assert lines and [line["step"] for line in lines] == list(range(len(lines)))
    aside = [line for path in run.glob("quarantine/*/metrics.jsonl") for line in read(path, aliases)]
    points = check_tensorboard(run, lines)
    folders, told = check_records(run, {(line["step"], line["attempt"]): line for line in aside + lines})
    assert len(told) == len(lines)
    check_sync(folders, json.loads((run / "config.resolved.json").read_text()), told)
    print(f"{len(lines)} steps, {points} values: TensorBoard {tensorboard.__version__} reads them, and W&B's client "
          f"{wandb.__version__} reads and uploads them from {len(folders)} files")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve(), dict(alias.split("=") for alias in sys.argv[2:]))
