"""The ASGI middleware under real servers and frameworks: what a raw SELECT finds in the trail."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from sqlalchemy import text

from databases import Database

TESTS = Path(__file__).parents[1]
SECONDS_TO_START = 120
SECONDS_TO_STOP = 30

SERVERS: Mapping[str, Callable[[str, str], list[str]]] = {
    "uvicorn": lambda app, port: ["uvicorn", app, "--port", port],
    "hypercorn": lambda app, port: ["hypercorn", app, "--bind", f"127.0.0.1:{port}"],
    "granian": lambda app, port: ["granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", port, app],
}
FRAMEWORKS = ["fastapi", "starlette", "litestar"]
PREFIX = "/v1/customers"


@dataclass(frozen=True, slots=True)
class Stored:
    """A change as it stands in the trail."""

    name: str
    changed_by: str | None
    facts: Mapping[str, Any]


@contextlib.contextmanager
def serving(server: str, framework: str, database: Database, folder: Path) -> Iterator[str]:
    """Run an application under a server, in a process of its own, and give its address as soon as it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log = folder / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", *SERVERS[server](f"asgi_apps.{framework}_app:app", port)],
            cwd=TESTS,
            env={**os.environ, "DATABASE_URL": database.async_url},
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            wait_until_it_answers(f"http://127.0.0.1:{port}/", process, log)
            yield f"127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return as soon as the server answers; fail if it ends before, or takes too long."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url)
            return
        time.sleep(0.05)
    pytest.fail(f"The server doesn't answer after {SECONDS_TO_START} s:\n{log.read_text()}")


def stored(database: Database) -> list[Stored]:
    """Return the trail as it is stored, in the order of its ids, read without the library."""
    engine = database.make_engine()
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT changed_by, context, new_values FROM sqlaudit_change ORDER BY id")).all()
    engine.dispose()
    return [Stored(document(row.new_values)["name"], row.changed_by, document(row.context) or {}) for row in rows]


def document(value: Any) -> Any:
    """Return a JSON column, which some drivers give as text."""
    return json.loads(value) if isinstance(value, str) else value


async def eventually(database: Database, count: int) -> list[Stored]:
    """Return the trail when it has *count* changes: what a background task writes comes after the answer."""
    deadline = time.monotonic() + SECONDS_TO_STOP
    while len(changes := stored(database)) < count and time.monotonic() < deadline:  # noqa: ASYNC110 another process
        await asyncio.sleep(0.05)
    assert len(changes) == count
    return changes


def headers(user: str, request_id: str = "r-1") -> dict[str, str]:
    """Return the headers of a request that *user* makes."""
    return {"X-Token": f"token of {user}", "X-Request-Id": request_id, "User-Agent": "a browser"}


# --- every framework under every server ------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("server", SERVERS)
async def test_requests_and_websockets_are_put_down_to_their_users(
    server: str, framework: str, database: Database, tmp_path: Path
) -> None:
    """An endpoint, a background task and a WebSocket: user and facts stand in the trail, and the id in the answer."""
    with serving(server, framework, database, tmp_path) as address:
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as client:
            now = await client.post(f"{PREFIX}/state/one", headers=headers("olena", "r-1"))
            later = await client.post(f"{PREFIX}/background/two", headers=headers("petro", "r-2"))
            await eventually(database, 2)
        async with websockets.connect(
            f"ws://{address}{PREFIX}/socket/inna", additional_headers={"X-Request-Id": "r-3"}, user_agent_header="ws"
        ) as connection:
            for name in ("three", "four"):
                await connection.send(name)
                assert await connection.recv() == name
            assert connection.response is not None
            # granian leaves the headers out of its answer to a handshake.
            returned = None if server == "granian" else "r-3"
            assert connection.response.headers.get("x-request-id") == returned

    assert (now.is_success, later.is_success) == (True, True), (now.text, later.text)
    assert [answer.headers.get_list("x-request-id") for answer in (now, later)] == [["r-1"], ["r-2"]]
    asked = {"client_address": "127.0.0.1", "method": "POST", "user_agent": "a browser"}
    listened = {"client_address": "127.0.0.1", "method": "WEBSOCKET", "user_agent": "ws", "request_id": "r-3"}
    assert stored(database) == [
        Stored("one", "olena", {**asked, "request_id": "r-1", "path": f"{PREFIX}/state/{{name}}"}),
        Stored("two", "petro", {**asked, "request_id": "r-2", "path": f"{PREFIX}/background/{{name}}"}),
        Stored("three", "inna", {**listened, "path": f"{PREFIX}/socket/{{user}}"}),
        Stored("four", "inna", {**listened, "path": f"{PREFIX}/socket/{{user}}"}),
    ]


# --- users at the same time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("server", SERVERS)
async def test_users_at_the_same_time_are_never_mixed(server: str, database: Database, tmp_path: Path) -> None:
    """Hundreds of requests at once, identified in every way: each change is put down to who asked for it."""
    ways = ["state", "async-dependency", "async-generator", "sync-dependency", "sync-generator", "thread", "stream"]
    asked = [
        (way, user, f"{user} by {way} {number}")
        for way, user, number in itertools.product(ways, ["olena", "petro"], range(15))
    ]
    with serving(server, "fastapi", database, tmp_path) as address:
        async with httpx.AsyncClient(
            base_url=f"http://{address}", timeout=120, limits=httpx.Limits(max_connections=20)
        ) as client:
            answers = await asyncio.gather(
                *(
                    client.post(f"{PREFIX}/{way}/{name}", headers=headers(user, name.replace(" ", "-")))
                    for way, user, name in asked
                )
            )

    assert {answer.status_code for answer in answers} == {200}
    assert sorted(
        (each.name, each.changed_by, each.facts["request_id"], each.facts["path"]) for each in stored(database)
    ) == sorted((name, user, name.replace(" ", "-"), f"{PREFIX}/{way}/{{name}}") for way, user, name in asked)


# --- FastAPI ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_every_way_in_which_fastapi_writes(database: Database, tmp_path: Path) -> None:
    """Threads, background tasks, streams, teardowns, mounted applications: all have the user of their request."""
    ways = ["sync-endpoint", "background", "sync-background", "stream", "teardown", "part", "failing"]
    paths = {way: f"{PREFIX}/{way}/{{name}}" for way in ways} | {"part": "/part/customers/{name}"}
    with serving("uvicorn", "fastapi", database, tmp_path) as address:
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as client:
            for number, way in enumerate(ways, start=1):
                path = paths[way].format(name=way)
                answer = await client.post(path, headers=headers(f"user of {way}", way))
                assert answer.status_code == (500 if way == "failing" else 200), answer.text
                await eventually(database, number)

    asked = {"client_address": "127.0.0.1", "method": "POST", "user_agent": "a browser"}
    assert stored(database) == [
        Stored(way, f"user of {way}", {**asked, "request_id": way, "path": paths[way]}) for way in ways
    ]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_what_a_thread_sets_in_its_copy_of_the_context_is_lost(database: Database, tmp_path: Path) -> None:
    """The documentation says so of plain dependencies that use audit_context instead of identify; here it is so."""
    ways = ["lost-in-sync-dependency", "lost-in-sync-generator"]
    with serving("uvicorn", "fastapi", database, tmp_path) as address:
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as client:
            for way in ways:
                answer = await client.post(f"{PREFIX}/{way}/{way}", headers=headers("olena"))
                assert answer.status_code == 200

    assert [(each.name, each.changed_by) for each in stored(database)] == [(way, None) for way in ways]
