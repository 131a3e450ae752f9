"""
The trails that earlier releases made are brought to what this one writes, and what they tell stays readable.

Whoever changes the trail's table fails here until the change bears its version, as sqlaudit/tables.py says; the new
schema is then frozen beside the older ones, with its release.
"""

import pytest
from sqlalchemy import Engine, Numeric, String, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from conformance_setup import Maker
from databases import Database
from observing import stored_trail
from sqlaudit import (
    SQLAuditConfig,
    audit_context,
    check_audit_tables,
    create_audit_tables,
    get_resource_changes,
    register_hooks,
    set_config,
    track_table,
    trail_table,
    upgrade_audit_tables,
    upgrade_audit_tables_sync,
)
from sqlaudit._upgrades import statements_between, version_there
from sqlaudit.exceptions import TrailMissingError, TrailOutdatedError, TrailVersionError
from sqlaudit.tables import change_table, newest_version
from sqlaudit.timetravel import get_resource_snapshot
from trail_releases import NEWEST, NEXT, RELEASES, catalogue, make_frozen_trail, release_next


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(Base):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    balance: Mapped[float] = mapped_column(Numeric(10, 2))


async def begin_with(engine: AsyncEngine, release: str) -> None:
    """Make the trail of *release*, and the customer that it tells of."""
    async with engine.begin() as connection:
        await connection.run_sync(make_frozen_trail, release)
        await connection.run_sync(Customer.metadata.tables["customer"].create)
        await connection.execute(text("INSERT INTO customer (id, name, balance) VALUES (1, 'Jane', 1.5)"))


async def catalogue_of(engine: AsyncEngine, table: str = "sqlaudit_change") -> list[str]:
    """Return what the database says of the trail's table."""
    async with engine.connect() as connection:
        return await connection.run_sync(catalogue, table)


async def run_between(engine: AsyncEngine, from_version: int, to_version: int) -> None:
    """Make one version of the trail's schema of another."""
    async with engine.begin() as connection:
        for statement in statements_between(change_table, from_version, to_version, engine.dialect):
            await connection.execute(statement)


async def catalogue_of_new(engine: AsyncEngine) -> list[str]:
    """Return what the database says of a trail that is made anew, in the place of the one there."""
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS sqlaudit_change"))
    await create_audit_tables(engine)
    return await catalogue_of(engine)


@pytest.mark.parametrize("release", RELEASES)
async def test_upgraded_trail_is_the_one_that_is_made_anew(engine: AsyncEngine, release: str) -> None:
    """A trail of an earlier release that is upgraded has the very columns, indexes and comments of a new one."""
    await begin_with(engine, release)

    await upgrade_audit_tables(engine)
    await upgrade_audit_tables(engine)
    await check_audit_tables(engine)

    upgraded = await catalogue_of(engine)
    assert upgraded
    assert upgraded == await catalogue_of_new(engine)


async def test_first_version_stays_as_it_was_released(engine: AsyncEngine) -> None:
    """What migrations make as version 1 is what 0.1.0 made, whatever release runs them."""
    await begin_with(engine, "0_1_0")
    released = await catalogue_of(engine)
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE sqlaudit_change"))

    await run_between(engine, 0, 1)

    assert await catalogue_of(engine) == released


@pytest.mark.parametrize("is_next", [False, True], ids=["this release", "the next one"])
@pytest.mark.parametrize("release", RELEASES)
async def test_older_changes_survive_and_are_read(
    engine: AsyncEngine, maker: Maker, monkeypatch: pytest.MonkeyPatch, release: str, *, is_next: bool
) -> None:
    """What an earlier release wrote is there to the letter, is told as ever, and goes on with what is changed now."""
    await begin_with(engine, release)
    before = await stored_trail(engine)
    if is_next:
        release_next(monkeypatch)
    set_config(SQLAuditConfig(session_factory=maker, trail=trail_table()))
    register_hooks(maker)

    await upgrade_audit_tables(engine)
    async with maker() as session:
        customer = await session.get_one(Customer, 1)
        customer.name = "Janet"
        with audit_context(user_id=44):
            await session.commit()
        names = await get_resource_changes(Customer, 1, session, "name", sort_direction="asc")
        first = await get_resource_snapshot(Customer, 1, session=session, at=before[0].id)
        deleted = await get_resource_changes(Customer, 2, session, "name", sort_direction="asc")

    assert [(each.old_value, each.new_value, each.changed_by, each.impersonated_by) for each in names] == [
        (None, "Joan", "42", None),
        ("Joan", "Jane", "43", "42"),
        ("Jane", "Janet", "44", None),
    ]
    assert (names[0].reason, names[0].context) == ("GDPR request 17", {"request_id": "r-1"})
    assert first.state is not None
    assert first.state["name"] == "Joan"
    assert [(str(each.operation), each.old_value, each.new_value) for each in deleted] == [
        ("insert", None, "Olena O'Hara"),
        ("delete", "Olena O'Hara", None),
    ]
    async with engine.connect() as connection:
        kept = (await connection.execute(text("SELECT id, changed_by FROM sqlaudit_change ORDER BY id"))).all()
    assert [tuple(row) for row in kept[:-1]] == [(each.id, each.changed_by) for each in before]
    assert kept[-1].id > before[-1].id


async def test_next_release_finds_its_upgrade_missing(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trail that lacks a later column is told to be outdated, with the remedy, until it is upgraded."""
    await create_audit_tables(engine)
    release_next(monkeypatch)
    config = SQLAuditConfig(trail=trail_table())

    with pytest.raises(TrailOutdatedError, match=r"lacks tenant;.*upgrade_audit_tables\(engine\)"):
        await check_audit_tables(engine, config=config)
    await upgrade_audit_tables(engine, config=config)
    await check_audit_tables(engine, config=config)

    upgraded = await catalogue_of(engine)
    assert any("tenant" in line for line in upgraded)
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE sqlaudit_change"))
    await create_audit_tables(engine, config=config)
    assert upgraded == await catalogue_of(engine)


async def test_this_release_writes_to_the_trail_of_the_next(
    engine: AsyncEngine, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a new release is rolled out, processes of the one before go on writing to the upgraded trail, and start."""
    await begin_with(engine, RELEASES[-1])
    set_config(SQLAuditConfig(session_factory=maker))
    register_hooks(maker)
    with monkeypatch.context() as next_one:
        release_next(next_one)
        await upgrade_audit_tables(engine, config=SQLAuditConfig(trail=trail_table()))
    upgraded = await catalogue_of(engine)

    await check_audit_tables(engine)
    await upgrade_audit_tables(engine)
    async with maker() as session:
        (await session.get_one(Customer, 1)).name = "Janet"
        await session.commit()
        names = await get_resource_changes(Customer, 1, session, "name")

    assert [each.new_value for each in names] == ["Janet", "Jane", "Joan"]
    assert await catalogue_of(engine) == upgraded


async def test_upgrade_and_the_way_back(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up and down again is what was there; from nothing, step by step, is what is made at once."""
    await create_audit_tables(engine)
    today = await catalogue_of(engine)
    release_next(monkeypatch)

    await run_between(engine, NEWEST, NEXT)
    upgraded = await catalogue_of(engine)
    await run_between(engine, NEXT, NEWEST)

    assert await catalogue_of(engine) == today
    await run_between(engine, NEWEST, 0)
    assert await catalogue_of(engine) == await catalogue_of(engine, "another") != today
    await run_between(engine, 0, NEXT)
    assert await catalogue_of(engine) == upgraded


@pytest.mark.parametrize("done", ["column", "index"])
async def test_upgrade_that_was_interrupted_is_completed(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, done: str
) -> None:
    """What is there of an upgrade already, as MariaDB leaves it or somebody made it beforehand, is left alone."""
    await create_audit_tables(engine)
    release_next(monkeypatch)
    config = SQLAuditConfig(trail=trail_table())
    statements = statements_between(change_table, NEWEST, NEXT, engine.dialect)
    async with engine.begin() as connection:
        for statement in statements[: 1 if done == "column" else -1]:
            await connection.execute(statement)

    await upgrade_audit_tables(engine, config=config)

    async with engine.connect() as connection:
        assert await connection.run_sync(version_there, change_table) == NEXT


async def test_version_is_told_by_what_is_there(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No table is version 0; an index of the first version that somebody dropped doesn't matter."""

    async def version() -> int:
        async with engine.connect() as connection:
            return await connection.run_sync(version_there, change_table)

    assert await version() == 0
    await create_audit_tables(engine)
    async with engine.begin() as connection:
        on = " ON sqlaudit_change" if engine.dialect.name == "mariadb" else ""
        await connection.execute(text(f"DROP INDEX sqlaudit_change_actor{on}"))
    assert await version() == NEWEST == newest_version()
    release_next(monkeypatch)
    assert await version() == NEWEST


@pytest.mark.parametrize("versions", [(0, NEXT), (-1, NEWEST), (NEXT, 0)])
async def test_unknown_version_is_refused(engine: AsyncEngine, versions: tuple[int, int]) -> None:
    """A version that only a later release knows is refused before anything is done, with the remedy."""
    with pytest.raises(TrailVersionError, match=r"sqlaudit_change.*install the release") as raised:
        await run_between(engine, *versions)

    assert raised.value.newest == NEWEST


async def test_trail_that_is_missing_or_another_table_is_not_upgraded(engine: AsyncEngine) -> None:
    """An upgrade neither makes a trail nor changes a table that isn't one."""
    with pytest.raises(TrailMissingError, match="sqlaudit_change"):
        await upgrade_audit_tables(engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE sqlaudit_change (id INTEGER PRIMARY KEY, reason VARCHAR(9))"))
    before = await catalogue_of(engine)

    with pytest.raises(TrailOutdatedError, match=r"lacks transaction_id, recorded_at.*another table"):
        await upgrade_audit_tables(engine)

    assert await catalogue_of(engine) == before


def test_upgrade_by_synchronous_code(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin takes an Engine, or a Connection, whose transaction it leaves open; the plain name takes them, too."""
    engine: Engine = database.make_engine()
    with engine.begin() as connection:
        make_frozen_trail(connection, "0_1_0")
    release_next(monkeypatch)
    config = SQLAuditConfig(trail=trail_table())

    with engine.connect() as connection:
        upgrade_audit_tables_sync(connection, config=config)
        assert connection.in_transaction()
        connection.rollback()
    upgrade_audit_tables(engine, config=config)

    with engine.connect() as connection:
        assert version_there(connection, change_table) == NEXT
    engine.dispose()
