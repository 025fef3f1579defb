"""Opens a run's log with the readers that researchers use, and recomputes what it claims.

Usage: check_log.py RUN
"""

import json
import pathlib
import sys

import duckdb
import polars

TABLES = ["episodes", "agents", "steps", "tokens", "rewards"]


def main(run: pathlib.Path) -> None:
    views = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "views.sql"
    manifests = [json.loads(p.read_text()) for p in sorted(run.glob("trajectories/v1/manifests/*.json"))]
    assert manifests, "the run has no sealed step"

    # The views use paths below the run's folder.
    import os

    os.chdir(run)
    database = duckdb.connect()
    database.execute(views.read_text())
    for table in TABLES:
        promised = sum(f["rows"] for m in manifests for f in m["files"] if f["table"] == table)
        (counted,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
        frame = polars.read_parquet(f"trajectories/v1/{table}/*/*.parquet")
        assert promised == counted == frame.height > 0, (table, promised, counted, frame.height)
        assert frame.select("run_id", "attempt", "train_step", "episode_id").null_count().sum_horizontal().item() == 0

    failures = database.execute("SELECT * FROM check_failures").fetchall()
    assert not failures, failures[:5]
    (scored,) = database.execute("SELECT count(*) FROM episodes WHERE reward IS NOT NULL").fetchone()
    assert scored > 0

    # Advantages: each group's sum to nothing.
    worst = database.execute(
        "SELECT max(abs(s)) FROM (SELECT sum(advantage) AS s FROM episodes GROUP BY train_step, group_id)"
    ).fetchone()[0]
    assert worst < 1e-9, worst

    # A call is asked for, then computed, then complete. A long one is computed for most of that time, not just at its end.
    (disordered, long, lasting) = database.execute(
        "SELECT count(*) FILTER (NOT (t_queue_ms <= t_start_ms AND t_start_ms <= t_end_ms)),"
        " count(*) FILTER (n_completion >= 50),"
        " count(*) FILTER (n_completion >= 50 AND t_end_ms - t_start_ms > (t_end_ms - t_queue_ms) / 2) FROM steps"
    ).fetchone()
    assert disordered == 0 and lasting > long / 2, (disordered, long, lasting)

    # Token rows: lists of one length, log-probs only where a token was drawn.
    tokens = polars.read_parquet("trajectories/v1/tokens/*/*.parquet")
    lengths = tokens.select(polars.col("token_ids", "loss_mask", "logprobs", "advantages").list.len())
    assert all(len(set(row)) == 1 for row in lengths.rows())
    off_mask = (
        tokens.select("loss_mask", "logprobs").explode("loss_mask", "logprobs").filter(~polars.col("loss_mask"))
    )
    assert off_mask["logprobs"].abs().max() == 0.0
    print(f"{len(manifests)} steps, {scored} scored episodes: DuckDB {duckdb.__version__} and polars "
          f"{polars.__version__} read all five tables; rewards and steps recompute")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
