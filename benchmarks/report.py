"""What was measured, as Markdown and as a chart."""

import datetime as dt
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.measure import Result
from benchmarks.workloads import WORKLOADS

__all__ = ["write"]

_PACKAGES = (
    "sqlaudit",
    "sqlalchemy",
    "sqlalchemy-continuum",
    "sqlalchemy-history",
    "sqlalchemy-audit-trail",
    "postgresql-audit",
    "psycopg",
    "asyncpg",
    "aiosqlite",
)


def write(folder: Path, results: Sequence[Result], servers: dict[str, str], command: str) -> None:
    """Write the table, the chart and what they were made of to *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = _facts(servers, command)
    raw = {"facts": facts, "results": [result.as_json() for result in results]}
    (folder / "benchmarks.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    (folder / "benchmarks.md").write_text(_markdown(results, facts), encoding="utf-8")
    _chart(folder / "benchmarks.png", results, facts)


def _facts(servers: dict[str, str], command: str) -> dict[str, str]:
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except ModuleNotFoundError:
            installed[package] = "this checkout" if package == "sqlaudit" else "not installed"
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        **servers,
        **installed,
        "command": command,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# --- figures ---------------------------------------------------------------------------------------------------------


def ratios(result: Result, base: Result | None) -> list[float]:
    """Return how often longer it took than *base*, turn by turn: what the machine did then met both."""
    if base is None:
        return []
    return [own / other for own, other in zip(result.seconds, base.seconds, strict=False)]


def _quartiles(figures: list[float]) -> tuple[float, float]:
    if len(figures) < 2:
        return figures[0], figures[0]
    low, _, high = statistics.quantiles(figures, n=4, method="inclusive")
    return low, high


def _short(figure: float) -> str:
    return f"{figure:.2f}" if figure < 10 else f"{figure:.0f}"


class _Table:
    """The results of one driver."""

    def __init__(self, driver: str, results: Sequence[Result]) -> None:
        self.driver = driver
        self.of = {(result.workload, result.contestant): result for result in results if result.driver == driver}
        self.workloads = [*dict.fromkeys(workload for workload, _ in self.of)]
        self.contestants = [*dict.fromkeys(contestant for _, contestant in self.of)]
        if "plain" in self.contestants:
            # It has no part in the first workload that only reads trails.
            self.contestants.sort(key=lambda name: name != "plain")

    def base(self, workload: str) -> Result | None:
        return self.of.get((workload, "plain"), self.of.get((workload, "floor")))

    def ratio(self, result: Result) -> str:
        if result.error is not None:
            return f"crashed: {result.error.split(':')[0]}"
        found = ratios(result, self.base(result.workload))
        if not found:
            return f"{statistics.median(result.seconds) * 1000:,.0f} ms" if result.seconds else "–"
        low, high = _quartiles(found)
        text = f"{_short(statistics.median(found))} <sub>{_short(low)}–{_short(high)}</sub>"
        if result.contestant != "plain" and result.expected and not result.inspection.changes:
            text = f"nothing recorded ({text})"
        elif result.contestant != "plain" and result.inspection.changes != result.expected:
            text += " ⚠"
        return text

    def plain(self, result: Result) -> str:
        if result.error is not None or not result.seconds:
            return "–"
        return f"{statistics.median(result.seconds) * 1000:,.1f}"

    def cpu(self, result: Result) -> str:
        base = self.base(result.workload)
        if base is None or result.error is not None:
            return "–"
        own, other = ([run.cpu_seconds for run in each.runs if run.cpu_seconds] for each in (result, base))
        return _short(statistics.median(own) / statistics.median(other)) if own and other else "–"

    def statements(self, result: Result) -> str:
        count = result.inspection.statements
        return "–" if count is None else f"{count:,}"

    def memory(self, result: Result) -> str:
        peak = result.inspection.peak_bytes
        return "–" if peak is None else f"{peak / 1e6:.1f}"

    def trail(self, result: Result) -> str:
        outcome = result.inspection
        if not outcome.changes or outcome.trail_bytes is None:
            return "–"
        return f"{outcome.trail_bytes / outcome.changes:,.0f}"

    def recorded(self, result: Result) -> str:
        if result.contestant == "plain" or result.workload == "W5":
            return "–"
        if result.error is not None:
            return f"`{result.error}`"
        return f"{result.inspection.changes:,} of {result.expected:,}"

    def render(self, cell: Callable[[Result], str]) -> list[str]:
        lines = [
            f"| workload | {' | '.join(self.contestants)} |",
            f"|---|{'--:|' * len(self.contestants)}",
        ]
        for workload in self.workloads:
            cells = [
                cell(self.of[workload, contestant]) if (workload, contestant) in self.of else "–"
                for contestant in self.contestants
            ]
            lines.append(f"| {workload} {WORKLOADS[workload].title} | {' | '.join(cells)} |")
        return [*lines, ""]


def _tables(results: Sequence[Result]) -> list[_Table]:
    return [_Table(driver, results) for driver in dict.fromkeys(result.driver for result in results)]


# --- Markdown --------------------------------------------------------------------------------------------------------


_HEAD = """# What auditing costs

Written by `{command}`. All contestants ran in turns, each in a process of its own,
each run on a fresh database. A figure is the median of how many times longer a run took than plain SQLAlchemy's of the
same turn; small, the quartiles. *Floor* is plain SQLAlchemy and one Core INSERT per flush (executemany, in the same
transaction) of JSON rows that were prepared before the clock started. W5 is compared with the floor's SELECT of the
rows, since plain SQLAlchemy has no history. ⚠: another number of changes was recorded than were made.
"""


def _markdown(results: Sequence[Result], facts: dict[str, str]) -> str:
    parts = [_HEAD.format(command=facts["command"]), "| | |", "|---|---|"]
    parts += [f"| {name} | {value} |" for name, value in facts.items() if name != "command"]
    parts.append("")
    for table in _tables(results):
        sizes = {result.workload: result.size for result in table.of.values()}
        told = ", ".join(f"{workload}: {size:,}" for workload, size in sizes.items())
        parts += [f"## {table.driver}", "", f"Objects: {told}.", "", "Times plain SQLAlchemy:", ""]
        parts += table.render(table.ratio)
        for title, cell in (
            ("Milliseconds, median", table.plain),
            ("Times plain SQLAlchemy, CPU time of the client alone", table.cpu),
            ("Statements sent", table.statements),
            ("Peak memory, MB (tracemalloc, in a run that was not timed)", table.memory),
            ("Bytes of trail per change, indexes included", table.trail),
            ("Changes recorded, of those made", table.recorded),
        ):
            parts += ["<details><summary>" + title + "</summary>", "", *table.render(cell), "</details>", ""]
    return "\n".join(parts)


# --- the chart -------------------------------------------------------------------------------------------------------


def _chart(path: Path, results: Sequence[Result], facts: dict[str, str]) -> None:
    # An extra of this command alone.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    tables = _tables(results)
    figure, axes = plt.subplots(len(tables), 1, figsize=(13, 4.2 * len(tables)), squeeze=False, layout="constrained")
    for axis, table in zip(axes[:, 0], tables, strict=True):
        _bars(axis, table)
    title = "Times plain SQLAlchemy, logarithmic (W5: times the floor)"
    figure.suptitle(f"{title} · {facts['date']} · SQLAlchemy {facts['sqlalchemy']}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axis: Any, table: _Table) -> None:
    contestants = [name for name in table.contestants if name != "plain"]
    width = 0.86 / max(len(contestants), 1)
    for place, contestant in enumerate(contestants):
        for row, workload in enumerate(table.workloads):
            result = table.of.get((workload, contestant))
            found = [] if result is None or result.error else ratios(result, table.base(workload))
            if result is None or not found:
                continue
            silent = result.expected and not result.inspection.changes
            axis.bar(
                row - 0.43 + (place + 0.5) * width,
                statistics.median(found),
                width * 0.92,
                color=f"C{place}",
                alpha=0.25 if silent else 1.0,
                hatch="///" if silent else None,
            )
        axis.bar(0, 0, color=f"C{place}", label=contestant)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_yscale("log")
    axis.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    labels = [f"{name}\n{fill(WORKLOADS[name].title, 17)}" for name in table.workloads]
    axis.set_xticks(range(len(table.workloads)), labels, fontsize=8)
    axis.set_title(f"{table.driver} (pale: nothing was recorded; missing: it crashed)", fontsize=10)
    axis.legend(fontsize=7, ncols=2, loc="upper right")
