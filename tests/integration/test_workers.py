"""Jobs under real workers and brokers: what a raw SELECT finds in the trail is who asked for them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.signals import before_task_publish
from sqlalchemy import text
from taskiq import InMemoryBroker

from databases import Database
from sqlaudit import AuditContext, audit_context, get_audit_context
from sqlaudit.context import asked_context
from sqlaudit.exceptions import ContextError
from sqlaudit.integrations import celery as celery_integration
from sqlaudit.integrations.taskiq import AuditTaskiqMiddleware

TESTS = Path(__file__).parents[1]
SECONDS_TO_WORK = 180


@dataclass(frozen=True, slots=True, order=True)
class Stored:
    """A change as it stands in the trail."""

    name: str
    changed_by: str | None
    impersonated_by: str | None
    reason: str | None
    facts: Mapping[str, Any]


@contextlib.contextmanager
def working(worker: list[str], client: str, environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """Let a program ask for jobs, and a worker do them until the block ends."""
    everything = {**os.environ, **environment}
    prepare = (
        "import asyncio; from asgi_apps.shop import lifespan\nasync def main():\n async with lifespan(None): pass\n"
        "asyncio.run(main())"
    )
    # Imported, not run with -m: taskiq would name the jobs of a main module after the path of its file.
    for program in (prepare, f"from {client} import main; main()"):
        subprocess.run([sys.executable, "-c", program], cwd=TESTS, env=everything, check=True, timeout=SECONDS_TO_WORK)
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", *worker],
            cwd=TESTS,
            env=everything,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield
        finally:
            # With its children, and without asking: an idle worker of taskiq 0.13 doesn't wake up when it is asked.
            os.killpg(process.pid, signal.SIGKILL)


def trail_of(database: Database, count: int, log: Path, done: str) -> list[Stored]:
    """Return the trail when it has *count* changes and the worker's log says *done*."""
    deadline = time.monotonic() + SECONDS_TO_WORK
    while time.monotonic() < deadline:
        changes = stored(database)
        if len(changes) >= count and done in log.read_text():
            return changes
        time.sleep(0.1)
    pytest.fail(f"There are {len(stored(database))} changes, not {count}:\n{log.read_text()}")


def stored(database: Database) -> list[Stored]:
    """Return the trail as it is stored, read without the library, by name."""
    engine = database.make_engine()
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT changed_by, impersonated_by, reason, context, new_values FROM sqlaudit_change ORDER BY id")
        ).all()
    engine.dispose()
    changes = [
        Stored(
            json.loads(row.new_values)["name"],
            row.changed_by,
            row.impersonated_by,
            row.reason,
            json.loads(row.context or "{}"),
        )
        for row in rows
    ]
    return sorted(changes, key=lambda change: change.name)


REFUSED = "What came with the job is a str"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_jobs_of_taskiq(database: Database, redis_url: str, tmp_path: Path) -> None:
    """On coroutines and threads, tried again, asked for by jobs: the job has the context that it was asked for with."""
    environment = {
        "DATABASE_URL": database.async_url,
        "QUEUE_URL": redis_url,
        "QUEUE": f"sqlaudit-{uuid.uuid4().hex}",
    }
    worker = ["taskiq", "worker", "worker_apps.taskiq_app:broker", "--workers", "1"]
    log = tmp_path / "worker.log"

    with working(worker, "worker_apps.taskiq_app", environment, log):
        changes = trail_of(database, 8, log, REFUSED)

    def job(name: str) -> str:
        return f"worker_apps.taskiq_app:{name}"

    asked_for = next(change for change in changes if change.name == "nested asked for")
    own_id = asked_for.facts["job_id"]
    failing = Stored("failing", "petro", None, None, {"job_id": "job-3", "job_name": job("write_and_fail")})
    assert own_id != "job-4"
    assert changes == [
        failing,
        failing,
        failing,
        Stored(
            "nested asked for",
            "petro",
            None,
            None,
            {"job_id": own_id, "job_name": job("write"), "parent_job_id": "job-4"},
        ),
        Stored("nested asking", "petro", None, None, {"job_id": "job-4", "job_name": job("ask_for_another")}),
        Stored("nobody", None, None, None, {"job_id": "job-5", "job_name": job("write")}),
        Stored("plain", "olena", "admin", "import", {"request_id": "r-1", "job_id": "job-1", "job_name": job("write")}),
        Stored(
            "thread",
            "olena",
            "admin",
            "import",
            {"request_id": "r-1", "job_id": "job-2", "job_name": job("write_in_thread")},
        ),
    ]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("broker", ["redis_url", "rabbitmq_url"])
def test_jobs_of_celery(database: Database, broker: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Tried again, asked for by jobs, in chains, at once: the job has the context that it was asked for with."""
    queue = f"sqlaudit-{uuid.uuid4().hex}"
    environment = {
        "DATABASE_URL": database.async_url,
        "QUEUE_URL": request.getfixturevalue(broker),
        "QUEUE": queue,
    }
    worker = [
        "celery",
        "-A",
        "worker_apps.celery_app",
        "worker",
        "-c",
        "1",
        "-Q",
        queue,
        "--without-gossip",
        "--without-mingle",
    ]
    log = tmp_path / "worker.log"

    with working(worker, "worker_apps.celery_app", environment, log):
        changes = trail_of(database, 10, log, REFUSED)

    def job(name: str) -> str:
        return f"worker_apps.celery_app.{name}"

    own_id = next(change for change in changes if change.name == "nested asked for").facts["job_id"]
    failing = Stored("failing", "petro", None, None, {"job_id": "job-3", "job_name": job("write_and_fail")})
    eager = {"job_id": "job-7-inner", "job_name": job("write")}
    assert own_id != "job-4"
    assert changes == [
        Stored("eager inner", "petro", None, None, eager),
        Stored("eager outer", "petro", None, None, {"job_id": "job-7", "job_name": job("run_another_at_once")}),
        failing,
        failing,
        Stored("first", "petro", None, None, {"job_id": "job-8", "job_name": job("write")}),
        Stored(
            "nested asked for",
            "petro",
            None,
            None,
            {"job_id": own_id, "job_name": job("write"), "parent_job_id": "job-4"},
        ),
        Stored("nested asking", "petro", None, None, {"job_id": "job-4", "job_name": job("ask_for_another")}),
        Stored("nobody", None, None, None, {"job_id": "job-5", "job_name": job("write")}),
        Stored("plain", "olena", "admin", "import", {"request_id": "r-1", "job_id": "job-1", "job_name": job("write")}),
        Stored("second", "petro", None, None, {"job_id": "job-9", "job_name": job("write"), "parent_job_id": "job-8"}),
    ]


# --- jobs that run at once, in the process that asks for them --------------------------------------------------------


async def test_a_job_of_taskiq_that_runs_at_once_leaves_the_context_as_it_was() -> None:
    """A broker in memory runs the job within the caller's own task."""
    broker = InMemoryBroker(await_inplace=True).with_middlewares(AuditTaskiqMiddleware())
    seen: list[AuditContext] = []

    @broker.task(task_name="inner")
    async def inner() -> None:
        seen.append(get_audit_context())

    @broker.task(task_name="outer")
    async def outer() -> None:
        await inner.kicker().with_task_id("job-2").kiq()
        seen.append(get_audit_context())
        raise RuntimeError

    with audit_context(user_id=1, ticket="T-1") as around:
        await outer.kicker().with_task_id("job-1").kiq()
        assert get_audit_context() == around

    assert seen == [
        AuditContext(
            user_id=1, facts={"ticket": "T-1", "job_id": "job-2", "job_name": "inner", "parent_job_id": "job-1"}
        ),
        AuditContext(user_id=1, facts={"ticket": "T-1", "job_id": "job-1", "job_name": "outer"}),
    ]


@pytest.fixture(name="eager")
def _eager() -> Iterator[Celery]:
    app = Celery("eager", set_as_current=False)
    app.conf.task_always_eager = True
    celery_integration.install()
    celery_integration.install()
    yield app
    celery_integration.uninstall()


def test_an_eager_job_of_celery_has_the_context_of_its_caller(eager: Celery) -> None:
    """So do its retries; afterwards the caller has its own back, also if the job failed."""
    seen: list[AuditContext] = []

    @eager.task(bind=True, name="job", max_retries=1)
    def job(self: Any) -> None:
        seen.append(get_audit_context())
        raise self.retry(exc=RuntimeError(), countdown=0)

    with audit_context(user_id=1) as around:
        job.apply_async(task_id="job-1")
        assert get_audit_context() == around

    assert seen == [AuditContext(user_id=1, facts={"job_id": "job-1", "job_name": "job"})] * 2


def test_without_the_signals_a_job_has_no_facts(eager: Celery) -> None:
    """What was installed can be removed."""
    seen: list[AuditContext] = []
    celery_integration.uninstall()

    @eager.task(name="job")
    def job() -> None:
        seen.append(get_audit_context())

    job.delay()

    assert seen == [AuditContext()]


def test_a_job_whose_context_can_not_be_believed_writes_nothing(eager: Celery) -> None:
    """A job whose context can't be believed is run, and refuses to write under nobody's name."""
    seen: list[str] = []

    @eager.task(name="job")
    def job() -> None:
        with pytest.raises(ContextError) as refusal:
            get_audit_context()
        seen.append(str(refusal.value))

    job.apply(headers={"sqlaudit": "forged"}, task_id="job-1")

    assert len(seen) == 1
    assert "the job job job-1: What came with the job is a str" in seen[0]
    assert get_audit_context() == AuditContext()


def test_a_context_that_could_not_be_taken_is_told_to_the_job(eager: Celery) -> None:
    """Celery swallows what a signal raises: what went wrong where the job was asked for is raised where it writes."""
    headers: dict[str, Any] = {"id": "job-1"}

    def fail() -> AuditContext:
        raise LookupError("no such session")

    with asked_context(fail):
        before_task_publish.send(sender="job", headers=headers)

    @eager.task(name="job")
    def job() -> None:
        with pytest.raises(ContextError, match="LookupError: no such session"):
            get_audit_context()

    job.apply(headers=json.loads(json.dumps(headers)), throw=True)
