"""A worker without trainers: `python dummy_worker.py URL FILE`. Claims and finishes jobs as fast as it can, by the
verbs of a real one, until the queue is empty and FILE.stop exists; writes into FILE how long each claim took.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from api.core import workers
from api.core.jobs import attempts, queue_order
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.store.local import LocalStore
from api.core.sweeper import Sweeper


def main(url: str, out: Path) -> None:
    engine, worker = db.make_engine(url), new_id("wrk")
    with db.transaction(engine) as s:
        workers.register(s, worker, host="dummy", pid=0, slots=1)
    claimed: list[tuple[str, float]] = []
    sweeper = Sweeper(engine, LocalStore(out.parent / "blobs"), None, lease_s=60.0)
    sweeper._collect_at = float("inf")
    sweep_at = time.monotonic() + 5
    while True:
        asked_at = time.perf_counter()
        with db.transaction(engine) as s:
            claim = attempts.claim(s, worker, queue_order.Free(1, 0), lease_s=60.0)
        took_s = time.perf_counter() - asked_at
        if time.monotonic() > sweep_at:
            sweep_at = time.monotonic() + 5
            sweeper.sweep()
        if claim is None:
            if out.with_suffix(".stop").exists():
                break
            time.sleep(0.1)
            continue
        claimed.append((claim.job_id, took_s))
        with db.transaction(engine) as s:
            attempts.beat(s, claim.job_id, claim.attempt, worker, lease_s=60.0)
        with db.transaction(engine) as s:
            attempts.finish(s, claim.job_id, claim.attempt, [], "e" * 64)
    out.write_text(json.dumps(claimed))
    engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
