"""The FastAPI example under a real server: what several users do at once is put down to the right one."""

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from databases import Database

EXAMPLE = Path(__file__).parents[2] / "examples" / "fastapi_app"
SECONDS_TO_START = 30
SECONDS_TO_STOP = 30
EDITS_PER_USER = 150


@dataclass(frozen=True, slots=True)
class Edit:
    """An edit whose own content says who made it."""

    user: str
    number: int

    @property
    def note(self) -> str:
        return f"edited by {self.user} #{self.number}"

    @property
    def request_id(self) -> str:
        return f"{self.user}-{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChange:
    """A row of the trail, read without the library."""

    operation: str
    resource_id: str
    changed_by: str | None
    context: Mapping[str, Any] | None
    old_values: Mapping[str, Any] | None
    new_values: Mapping[str, Any] | None


@pytest.fixture(name="client")
async def _client(database: Database, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    with running_app(database.async_url, tmp_path / "server.log") as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield client


async def test_concurrent_edits_are_put_down_to_the_users_who_made_them(
    client: httpx.AsyncClient, database: Database
) -> None:
    """Hundreds of edits of the same and of different rows at once: each is in the trail once, under its own user."""
    created = [await create(client, user, name=f"created by {user}") for user in ("7", "8", "7", "8")]
    of_seven, of_eight, *shared = created
    edits = [
        (Edit(user, number), own if number % 3 == 0 else shared[number % 2])
        for user, own in (("7", of_seven), ("8", of_eight))
        for number in range(EDITS_PER_USER)
    ]
    random.Random(17).shuffle(edits)

    answers = await asyncio.gather(*(send(client, edit, customer_id) for edit, customer_id in edits))

    assert [answer.status_code for answer in answers] == [200] * len(edits)
    inserts, updates = divided(stored_changes(database))
    assert {each.resource_id: each.changed_by for each in inserts} == dict(
        zip(map(str, created), ("7", "8", "7", "8"), strict=True)
    )
    assert sorted(told(each) for each in updates) == sorted(
        (str(customer_id), edit.note, edit.user, edit.request_id) for edit, customer_id in edits
    )
    assert number_of_turns([each for each in updates if each.resource_id == str(shared[0])]) > 10


async def test_concurrent_edits_of_a_row_are_told_in_the_order_in_which_they_happened(
    client: httpx.AsyncClient, database: Database
) -> None:
    """Each edit of a row begins with what the one before left, and the last one left what is in the row."""
    customer_id = await create(client, "7", name="wanted by all")
    edits = [Edit(user, number) for number in range(EDITS_PER_USER) for user in ("7", "8")]

    await asyncio.gather(*(send(client, edit, customer_id) for edit in edits))

    _, updates = divided(stored_changes(database))
    assert len(updates) == len(edits)
    assert [each.old_values for each in updates] == [{"note": None}, *(each.new_values for each in updates[:-1])]
    assert updates[-1].new_values == {"note": note_of(database, customer_id)}


async def test_the_history_of_a_customer_is_answered_newest_first(client: httpx.AsyncClient) -> None:
    """The history tells of the deleted customer who did what, and in which request."""
    customer_id = await create(client, "olena", name="Jane")
    await send(client, Edit("petro", 1), customer_id)
    await client.delete(f"/customers/{customer_id}", headers={"X-User-Id": "olena"})

    answer = await client.get(f"/customers/{customer_id}/history")

    assert answer.status_code == 200
    history: list[dict[str, Any]] = answer.json()
    timestamps = [dt.datetime.fromisoformat(entry.pop("timestamp")) for entry in history]
    assert timestamps == sorted(timestamps, reverse=True)
    assert all(timestamp.utcoffset() is not None for timestamp in timestamps)
    assert history == [
        entry("delete", "olena", "id", customer_id, None),
        entry("delete", "olena", "name", "Jane", None),
        entry("delete", "olena", "note", "edited by petro #1", None),
        entry("update", "petro", "note", None, "edited by petro #1", request_id="petro-1"),
        entry("insert", "olena", "id", None, customer_id),
        entry("insert", "olena", "name", None, "Jane"),
        entry("insert", "olena", "note", None, None),
    ]


async def test_a_customer_that_never_was_has_no_history(client: httpx.AsyncClient) -> None:
    """Asking for the history of nothing is answered with 404."""
    answer = await client.get("/customers/17/history")

    assert answer.status_code == 404


@pytest.mark.parametrize("headers", [{}, {"X-User-Id": ""}], ids=["without a header", "with an empty header"])
async def test_whoever_says_no_name_changes_nothing(
    client: httpx.AsyncClient, database: Database, headers: dict[str, str]
) -> None:
    """Anonymous requests are answered with 401, and leave neither a change nor a trail; the app goes on."""
    customer_id = await create(client, "7", name="Jane")
    path = f"/customers/{customer_id}"

    answers = [
        await client.post("/customers", json={"name": "Joe"}, headers=headers),
        await client.patch(path, json={"note": "x"}, headers=headers),
        await client.delete(path, headers=headers),
    ]

    assert [answer.status_code for answer in answers] == [401, 401, 401]
    assert answers[0].json() == {"detail": "Say who you are in the X-User-Id header."}
    assert note_of(database, customer_id) is None
    assert len(stored_changes(database)) == 1
    assert (await send(client, Edit("8", 1), customer_id)).status_code == 200


# --- the server ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running_app(database_url: str, log: Path) -> Iterator[str]:
    """Run the example in a process of its own, and give its address as soon as it answers."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(EXAMPLE), "--port", url.rpartition(":")[2]]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=log.parent, env={**os.environ, "DATABASE_URL": database_url}, stdout=output, stderr=output
        ) as process,
    ):
        try:
            wait_until_it_answers(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert "Traceback" not in log.read_text(), log.read_text()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return as soon as the server answers; fail if it ends before, or takes too long."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{url}/openapi.json")
            return
        time.sleep(0.05)
    pytest.fail(f"The app doesn't answer after {SECONDS_TO_START} s:\n{log.read_text()}")


async def create(client: httpx.AsyncClient, user: str, *, name: str) -> int:
    """Create a customer as *user*, and return its id."""
    answer = await client.post("/customers", json={"name": name}, headers={"X-User-Id": user})
    assert answer.status_code == 201, answer.text
    customer_id: int = answer.json()["id"]
    return customer_id


async def send(client: httpx.AsyncClient, edit: Edit, customer_id: int) -> httpx.Response:
    """Make *edit*, and return the answer."""
    return await client.patch(
        f"/customers/{customer_id}",
        json={"note": edit.note},
        headers={"X-User-Id": edit.user, "X-Request-Id": edit.request_id},
    )


def entry(operation: str, user: str, field: str, old: Any, new: Any, **context: str) -> dict[str, Any]:
    """Return what the history endpoint says of a field change, but for the time."""
    return {
        "operation": operation,
        "changed_by": user,
        "field_name": field,
        "old_value": old,
        "new_value": new,
        "reason": None,
        "context": context,
    }


# --- the witness -----------------------------------------------------------------------------------------------------


def stored_changes(database: Database) -> list[StoredChange]:
    """Return the trail as it is stored, in the order of its ids."""
    query = (
        "SELECT operation, resource_id, changed_by, context, old_values, new_values FROM sqlaudit_change ORDER BY id"
    )
    engine = database.make_engine()
    with engine.connect() as connection:
        rows = connection.execute(text(query)).all()
    engine.dispose()
    return [
        StoredChange(
            operation=row.operation,
            resource_id=row.resource_id,
            changed_by=row.changed_by,
            context=document(row.context),
            old_values=document(row.old_values),
            new_values=document(row.new_values),
        )
        for row in rows
    ]


def document(stored: Any) -> Any:
    """Return a JSON column, which some drivers give as text."""
    return json.loads(stored) if isinstance(stored, str) else stored


def note_of(database: Database, customer_id: int) -> str | None:
    """Return what stands in the customer's row."""
    engine = database.make_engine()
    with engine.connect() as connection:
        note: str | None = connection.execute(
            text("SELECT note FROM customer WHERE id = :id"), {"id": customer_id}
        ).scalar_one()
    engine.dispose()
    return note


def divided(changes: list[StoredChange]) -> tuple[list[StoredChange], list[StoredChange]]:
    """Return the inserts and the updates among *changes*, which are nothing else."""
    inserts = [each for each in changes if each.operation == "insert"]
    updates = [each for each in changes if each.operation == "update"]
    assert len(inserts) + len(updates) == len(changes)
    return inserts, updates


def told(change: StoredChange) -> tuple[str, str, str | None, str]:
    """Return which row got which note, by whom and in which request, as the trail has it."""
    assert change.new_values is not None
    assert change.context is not None
    assert change.new_values.keys() == {"note"}
    assert change.context.keys() == {"request_id"}
    return change.resource_id, change.new_values["note"], change.changed_by, change.context["request_id"]


def number_of_turns(changes: list[StoredChange]) -> int:
    """Return how often the user isn't the one of the change before."""
    return sum(one.changed_by != other.changed_by for one, other in itertools.pairwise(changes))
