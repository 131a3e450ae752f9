"""``python -m benchmarks``: measure what auditing costs, and write docs/benchmarks.md, .png and .json."""

import argparse
import sys
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

from benchmarks.contestants import CONTESTANTS
from benchmarks.measure import Plan, Result, measure
from benchmarks.report import write
from benchmarks.workloads import WORKLOADS

_SERVER = "postgres@127.0.0.1:5432/postgres"
_DATABASES = (
    "sqlite+pysqlite://",
    "sqlite+aiosqlite://",
    f"postgresql+psycopg://{_SERVER}",
    f"postgresql+asyncpg://{_SERVER}",
)


def main() -> None:
    """Measure and report."""
    arguments = _parse()
    scale = 0.02 if arguments.small else arguments.scale
    results: list[Result] = []
    servers: dict[str, str] = {}
    for url in arguments.database or _DATABASES:
        servers |= _server(url)
        plan = Plan(
            url=url,
            workloads=tuple(arguments.workloads.split(",")) if arguments.workloads else tuple(WORKLOADS),
            contestants=tuple(arguments.contestants.split(";")) if arguments.contestants else tuple(CONTESTANTS),
            repeat=arguments.repeat,
            scale=scale,
            budget=arguments.budget,
            log=arguments.log,
        )
        results += measure(plan, _tell)
    write(Path(arguments.output), results, servers, " ".join(["python -m benchmarks", *sys.argv[1:]]))


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--database",
        action="append",
        metavar="URL",
        help="may be repeated; PostgreSQL's role must be allowed to CREATE DATABASE",
    )
    parser.add_argument("--workloads", help="such as W1,W3; all of them by default")
    parser.add_argument("--contestants", help=f"separated by semicolons; of {'; '.join(CONTESTANTS)}")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="0.2 is a fifth of the objects")
    parser.add_argument("--small", action="store_true", help="a fiftieth: does everything work?")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds per contestant and workload")
    parser.add_argument("--output", default="docs")
    parser.add_argument("--log", default="/dev/null", help="what the workers write to stderr")
    return parser.parse_args()


def _server(url: str) -> dict[str, str]:
    if make_url(url).get_backend_name() == "sqlite":
        engine, query = create_engine("sqlite://"), "SELECT sqlite_version()"
    else:
        engine, query = create_engine(make_url(url).set(drivername="postgresql+psycopg")), "SHOW server_version"
    with engine.connect() as connection:
        found = {engine.dialect.name: str(connection.scalar(text(query)))}
    engine.dispose()
    return found


if __name__ == "__main__":
    main()
