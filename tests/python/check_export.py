"""Opens a run's exports with the readers that they are for, and compares them with the log that they are from.

Usage: check_export.py RUN

RUN/export must hold all four formats of the same episodes. Harbor's models and polars are required. The verifiers
library is used when it can be imported (it is large: hundreds of megabytes with what it needs) and pandas and datasets likewise;
what was not used is said. Perfetto has no reader that a package ships, so traces are held against its documented rules.
"""

import importlib.util
import json
import pathlib
import sys

import duckdb
import polars


class Log:
    """What the run's own tables say of the exported episodes."""

    def __init__(self, run: pathlib.Path, ids: set[str]) -> None:
        database = duckdb.connect()

        def rows(table: str, columns: str) -> list[tuple]:
            files = str(run / "trajectories" / "v1" / table / "*" / "*.parquet")
            query = f"SELECT episode_id, {columns} FROM read_parquet('{files}')"
            return [row for row in database.execute(query).fetchall() if row[0] in ids]

        columns = "train_step, reward, advantage, n_assigned, critical_steps, n_stages, task_kind"
        self.episodes = {row[0]: row[1:] for row in rows("episodes", columns)}
        assert set(self.episodes) == ids, "an exported episode is not in the log"
        self.agents = rows("agents", "agent_idx, on_critical_path")
        self.steps = rows("steps", "agent_idx, n_prompt, n_completion, len(tool_calls)")
        self.tokens = {row[0]: row[2:] for row in rows("tokens", "branch_idx, token_ids, loss_mask, logprobs, advantages") if row[1] == 0}
        self.rewards: dict[str, dict[str, tuple[float, float]]] = {}
        for episode, component, raw, value in rows("rewards", "component, raw, value"):
            self.rewards.setdefault(episode, {})[component] = (raw, value)
        self.trainable = {row[0] for row in rows("agents", "agent_idx, trainable") if row[1] == 0 and row[2]}


def chrome_trace(run: pathlib.Path, log: Log) -> str:
    """The trace event format as Perfetto documents it: known phases, named threads, slices that nest, bound flows."""
    counts = {"X": 0, "s": 0, "M": 0}
    seen: set[str] = set()
    for path in sorted((run / "export" / "chrome-trace").glob("*.json")):
        trace = json.loads(path.read_text())
        events = trace["traceEvents"]
        threads: dict[tuple[int, int], list[tuple[int, int, str]]] = {}
        named: set[tuple[int, int]] = set()
        titles: dict[int, str] = {}
        flows: dict[int, dict[str, dict]] = {}
        for event in events:
            assert event["ph"] in {"X", "M", "s", "f"}, event
            assert all(isinstance(event[key], int) for key in ("pid", "tid", "ts")), event
            counts[event["ph"]] = counts.get(event["ph"], 0) + 1
            thread = event["pid"], event["tid"]
            if event["ph"] == "M":
                if event["name"] == "thread_name":
                    named.add(thread)
                elif event["name"] == "process_name":
                    titles[event["pid"]] = event["args"]["name"]
            elif event["ph"] == "X":
                assert event["dur"] > 0 and event["ts"] >= 0, event
                threads.setdefault(thread, []).append((event["ts"], event["ts"] + event["dur"], event["name"]))
            else:
                assert event["ph"] not in flows.setdefault(event["id"], {}), f"flow {event['id']} has two ends of a kind"
                flows[event["id"]][event["ph"]] = event
        assert set(threads) <= named, "a thread has no name"
        for thread, slices in threads.items():
            # A stable sort by time, as the importer sorts: what stands first in the file is opened first.
            slices.sort(key=lambda s: s[0])
            stack: list[tuple[int, int, str]] = []
            for piece in slices:
                while stack and stack[-1][1] <= piece[0]:
                    stack.pop()
                assert not stack or piece[1] <= stack[-1][1], f"{path.name}: {thread}: {piece} crosses {stack[-1]}"
                stack.append(piece)
        for number, ends in flows.items():
            assert set(ends) == {"s", "f"}, f"flow {number} has one end"
            tail, point = ends["s"], ends["f"]
            assert tail["ts"] <= point["ts"] and point["bp"] == "e", (tail, point)
            assert (tail["cat"], tail["name"]) == (point["cat"], point["name"]), (tail, point)
            for end in (tail, point):
                held = threads[end["pid"], end["tid"]]
                assert any(s[0] <= end["ts"] < s[1] for s in held), f"no slice holds {end}"
        for pid, title in titles.items():
            episode = title.split(" ")[0]
            seen.add(episode)
            spawned = sum(1 for ends in flows.values() if ends["s"]["pid"] == pid and ends["s"]["name"] == "spawn")
            _, _, _, assigned, critical, stages, _ = log.episodes[episode]
            assert spawned == assigned, f"{episode}: {spawned} flows out, {assigned} assignments"
            path_of = [e for e in events if e["pid"] == pid and e.get("cat") == "critical" and "critical_steps" in e["args"]]
            assert len(path_of) == stages and sum(e["args"]["critical_steps"] for e in path_of) == critical, episode
    assert seen == set(log.episodes)
    calls = len(log.steps) + sum(step[4] for step in log.steps)
    assert counts["X"] >= calls, "not every model call and tool call is a slice"
    return f"{counts['X']} slices nest, {counts['s']} flows bind, critical paths add up (no reader of Perfetto's own was used)"


def atif(run: pathlib.Path, log: Log) -> str:
    """Harbor's own models, and what they do not ask: references resolve, and tokens are the log's."""
    from harbor.models.trajectories import Trajectory

    files = sorted((run / "export" / "atif").glob("*/*.json"))
    assert {path.stem for path in files} == set(log.episodes)
    drawn = referred = 0
    for path in files:
        whole = Trajectory.model_validate_json(path.read_text())
        assert whole.schema_version == "ATIF-v1.8" and whole.trajectory_id == path.stem
        embedded = {sub.trajectory_id for sub in whole.subagent_trajectories or []}
        results = [r for s in whole.steps if s.observation for r in s.observation.results]
        references = [ref.trajectory_id for r in results for ref in r.subagent_trajectory_ref or []]
        assert sorted(references) == sorted(embedded), f"{path.stem}: {references} against {embedded}"
        referred += len(references)
        assert len(embedded) == log.episodes[path.stem][3]
        if path.stem in log.trainable:
            ids, mask, logprobs, _ = log.tokens[path.stem]
            metrics = [s.metrics for s in whole.steps if s.metrics]
            ours = [i for m in metrics for i in m.completion_token_ids]
            assert ours == [i for i, own in zip(ids, mask) if own], f"{path.stem}: other tokens were drawn"
            assert [p for m in metrics for p in m.logprobs] == [p for p, own in zip(logprobs, mask) if own]
            for m in metrics:
                assert m.prompt_token_ids == ids[: m.prompt_tokens]
            drawn += len(ours)
    return f"{len(files)} trajectories pass Harbor's models; {referred} references resolve, {drawn} drawn tokens are the log's"


def trl_parquet(run: pathlib.Path, log: Log) -> str:
    """polars, DuckDB, and where they are installed pandas and datasets."""
    pattern = str(run / "export" / "trl-parquet" / "completions_*.parquet")
    frame = polars.read_parquet(pattern)
    assert set(frame["episode_id"]) == set(log.episodes) and frame.height == len(log.episodes)
    assert {"step", "prompt", "completion", "advantage"} <= set(frame.columns)
    for row in frame.iter_rows(named=True):
        step, reward, advantage, *_ = log.episodes[row["episode_id"]]
        assert (row["step"], row["reward"], row["advantage"]) == (step, reward, advantage), row["episode_id"]
        for component, (raw, _) in log.rewards.get(row["episode_id"], {}).items():
            assert row[component] == raw, (row["episode_id"], component)
        assert [m["role"] for m in row["prompt"]] == ["system", "user"] and row["completion"][0]["role"] == "assistant"
        for message in row["completion"]:
            for call in message["tool_calls"] or []:
                json.loads(call["function"]["arguments"])
    (counted,) = duckdb.execute(f"SELECT count(*) FROM read_parquet('{pattern}') WHERE len(completion) > 0").fetchone()
    assert counted == frame.height
    read = ["polars", "DuckDB"]
    if importlib.util.find_spec("pandas"):
        import pandas

        files = sorted((run / "export" / "trl-parquet").glob("*.parquet"))
        assert sum(len(pandas.read_parquet(path)) for path in files) == frame.height
        read.append("pandas")
    if importlib.util.find_spec("datasets"):
        import datasets

        table = datasets.load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(run / "datasets"))
        assert table.num_rows == frame.height and table[0]["completion"][0]["role"] == "assistant"
        read.append("datasets")
    return f"{frame.height} rows read by {', '.join(read)}"


def verifiers_jsonl(run: pathlib.Path, log: Log) -> str:
    """The library's own loader, or without it the same claims held against the lines as they stand."""
    folders = sorted((run / "export" / "verifiers-jsonl").glob("step_*"))
    own = importlib.util.find_spec("verifiers") is not None
    if own:
        import verifiers.v1 as vf
        from verifiers.v1.utils.trace_store import read_episodes

        read = [episode for folder in folders for episode in read_episodes(folder, vf.WireTrace)]
        episodes = [json.loads(episode.model_dump_json(context={"float_decimals": None})) for episode in read]
        for episode, plain in zip(read, episodes):
            for trace, row in zip(episode.traces, plain["traces"]):
                assert trace.num_branches == 1 and len(trace.branches[0].calls) == len(trace.calls), trace.id
                row["reward"] = trace.reward
                row["token_ids"] = trace.branches[0].token_ids
                row["mask"] = trace.branches[0].sampled_mask
                row["logprobs"] = trace.branches[0].logprobs
                row["advantages"] = trace.branches[0].advantages
    else:
        lines = [line for folder in folders for line in (folder / "traces.jsonl").read_text().splitlines()]
        episodes = [json.loads(line) for line in lines]
        for episode in episodes:
            for trace in episode["traces"]:
                nodes = trace["nodes"]
                assert [node["parent"] for node in nodes] == [None, *range(len(nodes) - 1)][: len(nodes)]
                assert all(0 <= call["node"] < len(nodes) and nodes[call["node"]]["sampled"] for call in trace["calls"])
                trace["reward"] = sum(r["score"] * r["weight"] for r in trace["rewards"].values())
                trace["token_ids"] = [i for node in nodes for i in node.get("token_ids", [])]
                trace["mask"] = [m for node in nodes for m in node.get("mask", [])]
                for name in ("logprobs", "advantages"):
                    trace[name] = []
                    for node in nodes:
                        values = iter(node.get(name) or [])
                        trace[name] += [next(values) if drawn and node.get(name) else 0.0 for drawn in node.get("mask", [])]
                        assert next(values, None) is None, "more values than drawn tokens"
    assert [episode["id"] for episode in episodes] == sorted(log.episodes)
    trained = 0
    for episode in episodes:
        step, reward, _, assigned, *_ = log.episodes[episode["id"]]
        assert episode["run"]["work"]["step"] == step and len(episode["traces"]) == assigned + 1
        lead = episode["traces"][-1]
        assert reward is None or abs(lead["reward"] - reward) < 1e-12, episode["id"]
        assert not any(trace["agent"]["trainable"] for trace in episode["traces"][:-1]), episode["id"]
        if episode["id"] in log.trainable:
            ids, mask, logprobs, advantages = log.tokens[episode["id"]]
            assert lead["token_ids"] == ids and lead["mask"] == mask, f"{episode['id']}: the context is another one"
            assert lead["logprobs"] == logprobs and (advantages is None or lead["advantages"] == advantages)
            trained += sum(mask)
    reader = "the verifiers library" if own else "this program alone (the verifiers library is not installed)"
    return f"{len(episodes)} episodes read by {reader}; contexts, log-probs and advantages of {trained} drawn tokens are the log's"


def main(run: pathlib.Path) -> None:
    log = Log(run, {path.stem for path in (run / "export" / "atif").glob("*/*.json")})
    assert log.episodes, "nothing is exported"
    for check in (chrome_trace, atif, trl_parquet, verifiers_jsonl):
        print(f"{check.__name__}: {check(run, log)}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
