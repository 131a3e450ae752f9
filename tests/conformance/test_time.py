"""Law 4, the clock: the database's, in UTC, to the microsecond, never backwards; shown in a zone."""

import asyncio
import contextlib
import datetime as dt
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from conformance_models import Account, Maker, begin_auditing, create_tables
from databases import Database
from observing import StoredChange, stored_trail
from sqlaudit import FieldChange, SQLAuditConfig, get_resource_changes, register_hooks, set_config

CHILDREN = Path(__file__).parent.parent / "children.py"


@contextlib.asynccontextmanager
async def process(database: Database, shift: str) -> AsyncIterator[Process]:
    """Give an application process whose clock is wrong by *shift* seconds."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILDREN), "obey", database.async_url, shift, stdin=PIPE, stdout=PIPE
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def tell(child: Process, balance: int) -> None:
    """Let a process write, and wait until it has."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{balance}\n".encode())
    await child.stdin.drain()
    assert await asyncio.wait_for(child.stdout.readline(), 60) == b"done\n"


async def server_clock(engine: AsyncEngine) -> dt.datetime:
    """Return the database server's clock."""
    now = "clock_timestamp()" if engine.dialect.name == "postgresql" else "utc_timestamp(6)"
    async with engine.connect() as connection:
        read: dt.datetime = (await connection.execute(text(f"SELECT {now}"))).scalar_one()
    return read if read.tzinfo is not None else read.replace(tzinfo=dt.UTC)


def times(trail: Iterable[StoredChange], *, resource_id: str | None = None) -> list[dt.datetime]:
    """Return when the changes were recorded, of one resource if it is named, in the order of their ids."""
    return [each.recorded_at for each in trail if resource_id in (None, each.resource_id)]


# --- two processes, two clocks ---------------------------------------------------------------------------------------


def client_clocks(trail: Iterable[StoredChange], who: str) -> list[float]:
    """Return the seconds since 1970 that the clock of a process showed, which its transaction ids begin with."""
    return [int(each.transaction_id[:12], 16) / 1000 for each in trail if each.changed_by == who]


async def test_processes_whose_clocks_differ_by_an_hour(database: Database, engine: AsyncEngine, maker: Maker) -> None:
    """Two processes an hour apart change the same rows in turns: along the ids, the time never runs back."""
    await begin_auditing(engine, maker)
    async with maker() as session:
        session.add_all([Account(id=number, owner=f"owner {number}") for number in (1, 2, 3)])
        await session.commit()
    began = None if database.kind == "sqlite" else await server_clock(engine)

    shifts = ("1800", "-1800frozen")
    async with process(database, shifts[0]) as ahead, process(database, shifts[1]) as behind:
        for turn in range(6):
            await tell((ahead, behind)[turn % 2], turn + 1)

    trail = (await stored_trail(engine))[3:]
    assert len(trail) == 6 * 6
    assert [each.changed_by for each in trail[::6]] == [f"process {shifts[turn % 2]}" for turn in range(6)]
    for number in ("1", "2", "3"):
        told = [each for each in trail if each.resource_id == number]
        balances = [(each.new_values or {}).get("balance") for each in told]
        assert [each for each in balances if each is not None] == [1, 2, 3, 4, 5, 6]
        assert times(told) == sorted(times(told))
    assert times(trail) == sorted(times(trail))
    apart = min(client_clocks(trail, "process 1800")) - max(client_clocks(trail, "process -1800frozen"))
    assert 3590 < apart < 3700
    if began is not None:
        assert began <= times(trail)[0]
        assert times(trail)[-1] <= await server_clock(engine)
    else:
        assert times(trail)[0].timestamp() > dt.datetime.now(dt.UTC).timestamp() + 1700


# --- the session's time zone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
async def test_zone_of_the_connection_does_not_matter(database: Database, engine: AsyncEngine) -> None:
    """Connections in far zones record the same instants, and read the same, as those in UTC do."""
    await create_tables(engine)
    set_config(SQLAuditConfig())
    makers: list[async_sessionmaker[AsyncSession]] = []
    far = {"postgresql": ("Pacific/Kiritimati", "America/Anchorage"), "mariadb": ("+13:00", "-09:30")}[database.kind]
    for zone in (None, *far):
        own = database.make_async_engine()
        if zone is not None:
            setting = "timezone TO" if database.kind == "postgresql" else "time_zone ="

            def set_zone(connection: Any, _: Any, setting: str = f"SET {setting} '{zone}'") -> None:
                cursor = connection.cursor()
                cursor.execute(setting)
                cursor.close()

            event.listen(own.sync_engine, "connect", set_zone)
        makers.append(async_sessionmaker(own))
        register_hooks(makers[-1])

    before = await server_clock(engine)
    for number, maker in enumerate(makers * 2, 1):
        async with maker() as session:
            session.add(Account(id=number, owner=f"{number}"))
            await session.commit()
    after = await server_clock(engine)

    recorded = times(await stored_trail(engine))
    assert before <= recorded[0]
    assert recorded == sorted(recorded)
    assert recorded[-1] <= after
    for maker in makers:
        async with maker() as session:
            changes = await get_resource_changes(
                Account, session=session, filter_fields="id", sort_direction="asc", filter_date_range=(before, after)
            )
            assert [each.timestamp for each in changes] == recorded
            assert {each.timestamp.utcoffset() for each in changes} == {dt.timedelta(0)}
        await maker.kw["bind"].dispose()


async def test_times_are_in_utc_with_microseconds(engine: AsyncEngine, maker: Maker) -> None:
    """What is stored is the instant in UTC, whatever zone is configured, and retrieval gives it to the microsecond."""
    await begin_auditing(engine, maker, time_zone="Asia/Kathmandu")
    before = dt.datetime.now(dt.UTC)
    async with maker() as session:
        for number in range(1, 11):
            session.add(Account(id=number, owner=f"{number}"))
            await session.flush()
        await session.commit()
        changes = await get_resource_changes(Account, session=session, filter_fields="id", sort_direction="asc")
    after = dt.datetime.now(dt.UTC)

    recorded = times(await stored_trail(engine))
    # The tests' servers run on this machine.
    assert before <= recorded[0] <= recorded[-1] <= after
    assert any(each.microsecond % 1000 for each in recorded)
    assert [each.timestamp for each in changes] == recorded
    assert {each.timestamp.utcoffset() for each in changes} == {dt.timedelta(hours=5, minutes=45)}


# --- shown in a zone, summer and winter ------------------------------------------------------------------------------


async def record_at(engine: AsyncEngine, maker: Maker, *moments: str) -> None:
    """Record an account for each moment, in UTC, that plain SQL then puts into the trail."""
    async with maker() as session:
        session.add_all([Account(id=number, owner=f"{number}") for number in range(1, len(moments) + 1)])
        await session.commit()
    offset = "+00" if engine.dialect.name == "postgresql" else ""
    async with engine.begin() as connection:
        for number, moment in enumerate(moments, 1):
            await connection.execute(
                text(f"UPDATE sqlaudit_change SET recorded_at = '{moment}{offset}' WHERE resource_id = '{number}'")
            )


async def found(
    session: AsyncSession, *, between: tuple[dt.datetime | None, dt.datetime | None] | None = None
) -> list[FieldChange]:
    """Return the changes of ids in a range of time, oldest first."""
    return await get_resource_changes(
        Account, session=session, filter_fields="id", filter_date_range=between, sort_direction="asc"
    )


KYIV = (
    "Europe/Kyiv",
    [
        ("2026-03-29 00:59:59.999999", "2026-03-29T02:59:59.999999+02:00"),
        ("2026-03-29 01:00:00.000000", "2026-03-29T04:00:00+03:00"),
        ("2026-10-25 00:30:00.000001", "2026-10-25T03:30:00.000001+03:00"),
        ("2026-10-25 01:30:00.000001", "2026-10-25T03:30:00.000001+02:00"),
    ],
)
NEW_YORK = (
    "America/New_York",
    [
        ("2026-03-08 06:59:59.999999", "2026-03-08T01:59:59.999999-05:00"),
        ("2026-03-08 07:00:00.000000", "2026-03-08T03:00:00-04:00"),
        ("2026-11-01 05:30:00.000001", "2026-11-01T01:30:00.000001-04:00"),
        ("2026-11-01 06:30:00.000001", "2026-11-01T01:30:00.000001-05:00"),
    ],
)


@pytest.mark.parametrize(("zone", "moments"), [KYIV, NEW_YORK], ids=["Kyiv", "New York"])
async def test_times_are_shown_in_the_zone_of_their_season(
    engine: AsyncEngine, maker: Maker, zone: str, moments: list[tuple[str, str]]
) -> None:
    """Times come in the configured zone with the offset of their season; the hour that comes twice is told apart."""
    await begin_auditing(engine, maker, time_zone=zone)
    await record_at(engine, maker, *(stored for stored, _ in moments))

    async with maker() as session:
        changes = await found(session)

    assert [each.timestamp.isoformat() for each in changes] == [shown for _, shown in moments]
    assert {each.timestamp.tzinfo for each in changes} == {ZoneInfo(zone)}


@pytest.mark.parametrize("zone", ["Europe/Kyiv", "America/New_York"])
async def test_naive_ends_of_a_range_are_in_the_configured_zone(engine: AsyncEngine, maker: Maker, zone: str) -> None:
    """A naive datetime in the hour that comes twice is of the first one, with fold=1 of the second; both ends count."""
    twice = dt.datetime(2026, 10, 25, 3, 30) if zone == "Europe/Kyiv" else dt.datetime(2026, 11, 1, 1, 30)  # noqa: DTZ001
    first = twice.replace(tzinfo=ZoneInfo(zone)).astimezone(dt.UTC)
    second = first + dt.timedelta(hours=1)
    tick = dt.timedelta(microseconds=1)
    await begin_auditing(engine, maker, time_zone=zone)
    moments = [first - tick, first, first + tick, second - tick, second, second + tick]
    await record_at(engine, maker, *(f"{each:%Y-%m-%d %H:%M:%S.%f}" for each in moments))

    async def ids(start: dt.datetime | None, end: dt.datetime | None) -> list[int]:
        async with maker() as session:
            return [each.resource_id for each in await found(session, between=(start, end))]

    again = twice.replace(fold=1)
    assert await ids(twice, twice) == [2]
    assert await ids(again, again) == [5]
    assert await ids(twice, again) == [2, 3, 4, 5]
    assert await ids(None, twice) == [1, 2]
    assert await ids(again, None) == [5, 6]
    assert await ids(first, second) == [2, 3, 4, 5]
    far = dt.timezone(dt.timedelta(hours=14))
    assert await ids(first.astimezone(far), again) == [2, 3, 4, 5]


async def test_naive_end_in_the_hour_that_is_left_out(engine: AsyncEngine, maker: Maker) -> None:
    """A naive datetime in the hour that clocks skip in spring is an instant, too, and no error."""
    await begin_auditing(engine, maker, time_zone="Europe/Kyiv")
    await record_at(engine, maker, "2026-03-29 00:30:00", "2026-03-29 01:45:00")
    skipped = dt.datetime(2026, 3, 29, 3, 30)  # noqa: DTZ001

    async with maker() as session:
        assert [each.resource_id for each in await found(session, between=(skipped, None))] == [2]
        assert [each.resource_id for each in await found(session, between=(None, skipped))] == [1]


async def test_sorting_by_time_is_by_instants(engine: AsyncEngine, maker: Maker) -> None:
    """In the hour that comes twice, changes are sorted by when they were, not by what the clock on the wall said."""
    await begin_auditing(engine, maker, time_zone="Europe/Kyiv")
    await record_at(engine, maker, "2026-10-25 00:45:00", "2026-10-25 01:15:00", "2026-10-25 01:50:00")

    async with maker() as session:
        changes = await found(session)

    assert [each.resource_id for each in changes] == [1, 2, 3]
    assert [f"{each.timestamp:%H:%M %z}" for each in changes] == ["03:45 +0300", "03:15 +0200", "03:50 +0200"]
