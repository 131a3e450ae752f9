"""SQLModel, advanced-alchemy and fastapi-users: what their own idioms do to the rows is in the trail."""

import importlib.util
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from databases import Database
from observing import StoredChange, stored_trail
from programs import EXAMPLES, printed_by

MASKED = {"$masked": True}


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def plain(lines: list[str]) -> list[str]:
    """Return *lines* with each UUID and datetime as ``…``: they differ from run to run."""
    return [re.sub(r"UUID\([^)]*\)|datetime\.datetime\(.*?utc\)", "…", line) for line in lines]


async def test_sqlmodel(database: Database, engine: AsyncEngine, folder: Path) -> None:
    """`table=True` models with their links, through SQLModel's session: objects, `sqlmodel_update`, update, delete."""
    lines = plain(printed_by(EXAMPLES / "sqlmodel_heroes.py", folder, times=False, DATABASE_URL=database.async_url))

    # MariaDB's DATETIME has whole seconds: whether the second update is another one depends on the clock.
    assert [line for line in lines if line != "petro update updated_at: … -> …"] == [
        "olena insert name: None -> 'Deadpond'",
        "olena insert age: None -> None",
        "olena insert fee: None -> Decimal('9.90')",
        "olena insert power: None -> <Power.FLIGHT: 'flight'>",
        "olena insert updated_at: None -> None",
        "olena insert id: None -> …",
        "olena insert secret_name: None -> <masked>",
        "olena insert traits: None -> {}",
        "petro update age: None -> 30",
        "petro update updated_at: None -> …",
        "petro update traits: {} -> {'humour': 'dark'}",
        "petro update fee: Decimal('9.90') -> Decimal('10.90')",
        "petro update power: <Power.FLIGHT: 'flight'> -> <Power.STRENGTH: 'strength'>",
    ]
    trail = await stored_trail(engine)
    assert "Dive Wilson" not in repr(trail)
    assert counted(trail) == {
        ("olena", "insert Hero"): 1,
        ("olena", "insert HeroTeam"): 2,
        ("olena", "insert Team"): 2,
        ("petro", "update Hero"): 2,
        ("petro", "delete HeroTeam"): 2,
        ("petro", "delete Team"): 1,
    }


async def test_advanced_alchemy(database: Database, engine: AsyncEngine, folder: Path) -> None:
    """Repositories and services: one and many, upserts, many-to-many, deletes by id, by criterion and by cascade."""
    program = EXAMPLES / "advanced_alchemy_shop.py"

    lines = plain(printed_by(program, folder, times=False, DATABASE_URL=database.async_url))

    assert lines == [
        "olena insert email None -> 'joan@example.com'",
        "olena insert iban None -> 'UA21'",
        "olena insert settings None -> {'theme': 'dark'}",
        "olena insert seen_at None -> None",
        "olena update tags None -> …",
        "petro update iban 'UA21' -> 'UA22'",
        "petro update seen_at None -> …",
        "petro update email 'joan@example.com' -> 'joan@example.org'",
        "petro update email 'joan@example.org' -> 'j@example.org'",
        "petro update tags … -> None",
        "petro delete email 'j@example.org' -> None",
        "petro delete iban 'UA22' -> None",
        "petro delete settings {'theme': 'dark'} -> None",
        "petro delete seen_at … -> None",
    ]
    trail = await stored_trail(engine)
    # What EncryptedString encrypts is encrypted in the trail, too.
    assert not {"UA21", "UA22"} & set(json.dumps([[each.old_values, each.new_values] for each in trail]).split('"'))
    assert counted(trail) == {
        ("olena", "insert Customer"): 3,
        ("olena", "insert Order"): 3,
        ("olena", "insert Tag"): 1,
        ("olena", "insert customer_tag"): 1,
        ("petro", "update Customer"): 3,
        ("petro", "insert Customer"): 2,
        ("petro", "update Order"): 2,
        ("petro", "delete Order"): 3,
        ("petro", "delete customer_tag"): 1,
        ("petro", "delete Customer"): 1,
    }


def counted(trail: list[StoredChange]) -> dict[tuple[str | None, str], int]:
    """Return how many changes of which kind each actor made."""
    made = [(each.changed_by, f"{each.operation} {each.resource_type}") for each in trail]
    return {each: made.count(each) for each in made}


@pytest.fixture(name="users")
def _users(database: Database, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the example of fastapi-users, imported anew for the database."""
    monkeypatch.setenv("DATABASE_URL", database.async_url)
    spec = importlib.util.spec_from_file_location("fastapi_users_app", EXAMPLES / "fastapi_users_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(name="client")
async def _client(users: ModuleType) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(users.app)
    async with (
        users.app.router.lifespan_context(users.app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def register(client: httpx.AsyncClient, email: str) -> str:
    """Register somebody; return the id."""
    answer = await client.post("/auth/register", json={"email": email, "password": "first secret"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def login(client: httpx.AsyncClient, email: str) -> dict[str, str]:
    """Return the headers of somebody who has logged in."""
    answer = await client.post("/auth/login", data={"username": email, "password": "first secret"})
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


async def test_fastapi_users(client: httpx.AsyncClient, users: ModuleType, engine: AsyncEngine) -> None:
    """Who is logged in is the actor, of their own account and of others'; no hash of a password is in the trail."""
    joan = await register(client, "joan@example.com")
    admin = await register(client, "admin@example.com")
    async with users.async_session() as session:
        (await session.get_one(users.User, users.uuid.UUID(admin))).is_superuser = True
        await session.commit()
    as_joan, as_admin = await login(client, "joan@example.com"), await login(client, "admin@example.com")

    changes: list[tuple[dict[str, str], str, dict[str, Any]]] = [
        (as_joan, "me", {"password": "second secret"}),
        (as_joan, "me", {"email": "joan@example.org"}),
        (as_admin, joan, {"is_active": False}),
    ]
    for headers, whom, body in changes:
        answer = await client.patch(f"/users/{whom}", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
    history = (await client.get(f"/users/{joan}/history", headers=as_admin)).json()
    await client.delete(f"/users/{joan}", headers=as_admin)

    trail = [each for each in await stored_trail(engine) if each.resource_id == joan]
    assert [(each.operation, each.changed_by) for each in trail] == [
        ("insert", joan),
        ("update", joan),
        ("update", joan),
        ("update", admin),
        ("delete", admin),
    ]
    assert [each.new_values for each in trail[1:4]] == [
        {"hashed_password": MASKED},
        {"email": "joan@example.org"},
        {"is_active": False},
    ]
    assert trail[0].new_values is not None
    assert trail[0].new_values["hashed_password"] == MASKED
    assert "$argon2" not in repr(await stored_trail(engine))
    assert history[-3:] == [
        f"{joan} update hashed_password: <masked> -> <masked>",
        f"{joan} update email: joan@example.com -> joan@example.org",
        f"{admin} update is_active: True -> False",
    ]
