"""The runs: all contestants by turns, so that a slow minute of the machine is everybody's."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from benchmarks.contestants import CONTESTANTS
from benchmarks.worker import Outcome
from benchmarks.workloads import WORKLOADS

__all__ = ["Plan", "Result", "measure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure."""

    url: str
    workloads: tuple[str, ...]
    contestants: tuple[str, ...]
    repeat: int
    scale: float
    budget: float
    """Seconds that a contestant may take for one workload before it isn't repeated any more; twice it is, at least."""
    log: str


@dataclass(slots=True)
class Result:
    """What one contestant has shown in one workload."""

    driver: str
    workload: str
    contestant: str
    size: int
    expected: int
    inspection: Outcome
    runs: list[Outcome] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        """Why there is no result."""
        return next((run.error for run in (self.inspection, *self.runs) if run.error is not None), None)

    @property
    def seconds(self) -> list[float]:
        """The measured times, in the order of the runs."""
        return [run.seconds for run in self.runs if run.seconds is not None]

    def as_json(self) -> dict[str, Any]:
        """Return everything, to be stored."""
        return asdict(self)


class _Worker:
    """The other end of a worker's pipe."""

    def __init__(self, name: str, url: str, log: str) -> None:
        self._log = Path(log).open("a", encoding="utf-8")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(  # noqa: S603 (ourselves)
            [sys.executable, "-m", "benchmarks.worker", name, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, workload: str, size: int, *, inspect: bool) -> Outcome:
        if self._process.stdin is None or self._process.stdout is None:
            return Outcome(error="no pipe")
        try:
            command = {"workload": workload, "size": size, "inspect": inspect}
            print(json.dumps(command), file=self._process.stdin, flush=True)
            return Outcome(**json.loads(self._process.stdout.readline()))
        except (BrokenPipeError, json.JSONDecodeError):
            return Outcome(error="the process has ended; the log says why")

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._log.close()


def measure(plan: Plan, report: Callable[[str], None]) -> list[Result]:
    """Run what *plan* says, and return what was seen, in its order."""
    url = make_url(plan.url)
    kind, driver = url.get_backend_name(), url.get_driver_name()
    names = [name for name in plan.contestants if kind in CONTESTANTS[name][2]]
    results: list[Result] = []
    workers = {name: _Worker(name, plan.url, plan.log) for name in names}
    try:
        for name in plan.workloads:
            workload = WORKLOADS[name]
            if workload.run is None and driver != "asyncpg":
                continue
            size = max(round(workload.size * plan.scale), 100)
            of_workload = {
                contestant: Result(
                    driver,
                    name,
                    contestant,
                    size,
                    workload.changes(size),
                    # The inspection comes first, and warms caches, too.
                    workers[contestant].ask(name, size, inspect=True),
                )
                for contestant in names
                if not (workload.fixture == "history" and contestant == "plain")
            }
            _repeat(plan, workers, name, of_workload)
            results.extend(of_workload.values())
            for result in of_workload.values():
                best = min(result.seconds, default=None)
                took = result.error if best is None else f"{best:.3f} s"
                report(f"{driver} {name} {result.contestant}: {took}, {result.inspection.changes} changes")
    finally:
        for worker in workers.values():
            worker.close()
    return results


def _repeat(plan: Plan, workers: dict[str, _Worker], name: str, results: dict[str, Result]) -> None:
    for turn in range(plan.repeat):
        order = [*results][turn % len(results) :] + [*results][: turn % len(results)]
        for contestant in order:
            result = results[contestant]
            spent = sum(result.seconds)
            if result.error is None and (spent < plan.budget or len(result.runs) < 2):
                result.runs.append(workers[contestant].ask(name, result.size, inspect=False))
