"""The CRM of examples/, to which auditing was added by the documentation alone, under a real server."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from databases import Database
from integration.test_fastapi_app import free_port
from observing import StoredChange, read_trail

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS_TO_START = 240
SECONDS_TO_STOP = 60
ROOT, ANN = "1", "2"


@pytest.fixture(name="client")
async def _client(database: Database, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of a server of its own, with the users 1 (root-key) and 2 (ann)."""
    with running_crm(database.async_url, tmp_path / "server.log") as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await send(client, "POST", "/users", {"name": "Ann", "api_key": "ann"})
            yield client


async def test_what_users_do_is_in_the_trail(client: httpx.AsyncClient, database: Database) -> None:
    """Inheritance, collections, many-to-many, JSON, money, statements, soft and hard deletion: row by row."""
    await send(client, "POST", "/teams", {"name": "North", "members": [1, 2]})
    acme = {"name": "Acme", "addresses": [{"street": "Main 1", "city": "Kyiv"}]}
    await send(client, "POST", "/companies", acme, user="ann")
    await send(client, "POST", "/people", {"name": "Jane", "company_id": 1, "birthday": "1990-01-02"}, user="ann")
    await send(client, "PATCH", "/parties/1", {"vat_number": "UA1", "name": "Acme Ltd"}, reason="they wrote")
    await send(client, "PATCH", "/parties/1", {"addresses": [{"street": "Main 2", "city": "Lviv"}]})
    await send(client, "PUT", "/parties/1/tags", ["vip", "north"])
    await send(client, "PUT", "/parties/1/tags", ["vip"], user="ann")
    await send(client, "POST", "/products", {"name": "Tea", "price": "2.50"})
    await send(client, "POST", "/deals", {"party_id": 1, "title": "Tea", "custom": {"a": 1}})
    await send(client, "PUT", "/deals/1/lines", [{"product_id": 1, "quantity": 10}])
    await send(client, "PATCH", "/deals/1", {"stage": "offer", "custom": {"b": 2}}, user="ann")
    assert await send(client, "POST", "/deals/reassign", {"from_user": 1, "to_user": 2}) == 1
    await send(client, "POST", "/activities", {"kind": "call", "party_id": 1, "text": "agreed", "minutes": 7})
    await send(client, "DELETE", "/parties/2", user="ann")
    await send(client, "DELETE", "/deals/1", reason="a test")

    trail = stored(database)

    # In which order SQLAlchemy writes the rows of a collection is its own business.
    told = Counter((each.operation, each.resource_type, each.resource_id, each.changed_by) for each in trail)
    assert told == Counter(
        [
            ("insert", "User", ROOT, "setup"),
            ("insert", "User", ANN, ROOT),
            ("insert", "Team", "1", ROOT),
            ("insert", "team_member", "[1,1]", ROOT),
            ("insert", "team_member", "[1,2]", ROOT),
            ("insert", "Party", "1", ANN),
            ("insert", "Company", "1", ANN),
            ("insert", "Address", "1", ANN),
            ("insert", "Party", "2", ANN),
            ("insert", "Person", "2", ANN),
            ("update", "Party", "1", ROOT),
            ("update", "Company", "1", ROOT),
            ("insert", "Address", "2", ROOT),
            ("delete", "Address", "1", ROOT),
            ("insert", "Tag", "1", ROOT),
            ("insert", "Tag", "2", ROOT),
            ("insert", "party_tag", "[1,1]", ROOT),
            ("insert", "party_tag", "[1,2]", ROOT),
            ("delete", "party_tag", "[1,2]", ANN),
            ("insert", "Product", "1", ROOT),
            ("insert", "Deal", "1", ROOT),
            ("update", "Deal", "1", ROOT),
            ("insert", "DealLine", "[1,1]", ROOT),
            ("update", "Deal", "1", ANN),
            ("update", "Deal", "1", ROOT),
            ("insert", "Activity", "1", ROOT),
            ("update", "Party", "2", ANN),
            ("delete", "DealLine", "[1,1]", ROOT),
            ("delete", "Deal", "1", ROOT),
        ]
    )
    assert {each.reason for each in trail} == {None, "they wrote", "a test"}
    assert "root-key" not in str(trail)
    _, by_lines, by_json, by_statement, _ = [each for each in trail if each.resource_type == "Deal"]
    assert (by_lines.old_values or {})["amount"] == "0.00"
    assert (by_lines.new_values or {})["amount"] == "25.00"
    assert (by_json.old_values or {})["custom"] == {"a": 1}
    assert (by_json.new_values or {})["custom"] == {"a": 1, "b": 2}
    assert (by_statement.old_values or {})["owner_id"] == 1
    assert (by_statement.new_values or {})["owner_id"] == 2

    party = await send(client, "GET", "/parties/1/history")
    of_acme = {("Party", "1"), ("Company", "1"), ("Address", "1"), ("Address", "2"), ("Tag", "1"), ("Tag", "2")}
    assert [each["change_id"] for each in party] == [
        each.id
        for each in reversed(trail)
        if (each.resource_type, each.resource_id) in of_acme or each.resource_type == "party_tag"
    ]
    deal = await send(client, "GET", "/deals/1/history")
    assert Counter(each["resource_type"] for each in deal) == {"Deal": 5, "DealLine": 2}
    everything = await send(client, "GET", "/audit?limit=100")
    assert [each["change_id"] for each in everything] == [each.id for each in reversed(trail)]
    assert everything[-1]["fields"]["api_key"] == [None, "<masked>"]
    assert everything[-1]["changed_by"] == "setup"
    of_ann = await send(client, "GET", "/audit?by=2")
    assert [each["change_id"] for each in of_ann] == [each.id for each in reversed(trail) if each.changed_by == ANN]


async def test_a_deal_of_then_is_shown_and_restored(client: httpx.AsyncClient, database: Database) -> None:
    """An earlier state is shown, and writing it back is a change of its own; whoever has no key changes nothing."""
    await send(client, "POST", "/companies", {"name": "Acme"})
    await send(client, "POST", "/deals", {"party_id": 1, "title": "Tea", "custom": {"a": 1}})
    then = stored(database)[-1].id
    await send(client, "PATCH", "/deals/1", {"title": "Coffee", "custom": {"a": 2}}, user="ann")

    shown = await send(client, "GET", f"/deals/1/as-of?at={then}")
    await send(client, "POST", f"/deals/1/restore?at={then}", user="ann")

    assert (shown["title"], shown["custom"], shown["lines"]) == ("Tea", {"a": 1}, [])
    refused = await client.post("/companies", json={"name": "Acme"})
    await send(client, "GET", "/audit")  # notes when the user was last seen, which nobody tracks
    assert refused.status_code == 401
    last = stored(database)[-1]
    assert (last.operation, last.changed_by) == ("update", ANN)
    assert (last.old_values or {})["title"] == "Coffee"
    assert (last.new_values or {})["title"] == "Tea"
    engine = database.make_engine()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT title FROM deal")) == "Tea"
    engine.dispose()


async def test_requests_at_once_have_their_own_users(client: httpx.AsyncClient, database: Database) -> None:
    """Sixty requests of two users at once: each company says who made it, and the trail says the same."""
    keys = {ROOT: "root-key", ANN: "ann"}
    made = [(user, f"of {user}, number {number}") for number in range(30) for user in (ROOT, ANN)]

    await asyncio.gather(*(send(client, "POST", "/companies", {"name": name}, user=keys[user]) for user, name in made))

    told = [
        (each.changed_by, (each.new_values or {})["name"]) for each in stored(database) if each.resource_type == "Party"
    ]
    assert sorted(told, key=str) == sorted(made)


async def send(
    client: httpx.AsyncClient, method: str, path: str, body: Any = None, *, user: str = "root-key", reason: str = ""
) -> Any:
    """Send a request that must succeed; return its answer."""
    headers = {"X-Api-Key": user} | ({"X-Reason": reason} if reason else {})
    answer = await client.request(method, path, json=body, headers=headers)
    assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
    return answer.json() if answer.content else None


def stored(database: Database) -> list[StoredChange]:
    """Return what is committed of the trail, read without the library."""
    engine = database.make_engine()
    try:
        with engine.connect() as connection:
            return read_trail(connection)
    finally:
        engine.dispose()


@contextlib.contextmanager
def running_crm(database_url: str, log: Path) -> Iterator[str]:
    """Run the CRM in a process of its own, and give its address as soon as it answers."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "crm.api:app", "--app-dir", str(EXAMPLES), "--port", str(port)]
    environment = {**os.environ, "DATABASE_URL": database_url}
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=log.parent, env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            wait_until_it_answers(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=SECONDS_TO_STOP)
    assert "Traceback" not in log.read_text(), log.read_text()


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return as soon as the server answers; fail if it ends before, or never does."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{url}/docs", timeout=SECONDS_TO_START)
            return
        time.sleep(0.1)
    pytest.fail(f"The CRM doesn't answer:\n{log.read_text()}")
