"""A table that is written all the time moves from one capture to the other: nothing is lost, nothing told twice."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from children import make_engine
from conformance_models import Account, Base, begin_auditing
from conformance_setup import Maker, changes_by_row, truth_by_row
from databases import Database
from observing import stored_trail
from sqlaudit import Capture, SQLAuditConfig, create_audit_tables, set_config
from witness import watch_rows

CHILDREN = Path(__file__).parent.parent / "children.py"
ACCOUNT = Base.metadata.tables["account"]
TRACKED = {"id", "owner", "balance", "note"}


@contextlib.asynccontextmanager
async def starting(database: Database) -> AsyncIterator[Process]:
    """Give the process that starts writers, each with the capture that it is told."""
    starter = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILDREN), "fork", database.async_url, stdin=PIPE, stdout=PIPE
    )
    try:
        yield starter
    finally:
        starter.kill()
        await starter.wait()


async def start(starter: Process, engine: AsyncEngine, capture: Capture) -> int:
    """Start a writer, and return its id when it has written."""
    assert starter.stdin is not None
    assert starter.stdout is not None
    starter.stdin.write(f"{capture}\n".encode())
    await starter.stdin.drain()
    writer = int(await asyncio.wait_for(starter.stdout.readline(), 60))
    await until_written(engine, f"process {writer}")
    return writer


async def until_written(engine: AsyncEngine, who: str | None) -> None:
    """Wait until the trail has something new of somebody."""
    begun = len(await stored_trail(engine))
    async with asyncio.timeout(60):
        while who not in {change.changed_by for change in (await stored_trail(engine))[begun:]}:  # noqa: ASYNC110 no event
            await asyncio.sleep(0.05)


async def write_raw(engine: AsyncEngine) -> None:
    """Write, until cancelled, as a client that has never heard of sqlaudit."""
    while True:
        with contextlib.suppress(OperationalError):
            async with engine.begin() as connection:
                await connection.execute(text("UPDATE account SET balance = balance + 1 WHERE id = 1"))
                await connection.execute(text("UPDATE account SET note = 'raw' WHERE note IS NULL AND id % 4 = 0"))
        await asyncio.sleep(0.02)


async def test_a_table_moves_to_triggers_and_back(maker: Maker, engine: AsyncEngine, database: Database) -> None:
    """Processes of the old and the new code, and others, write at every step; the trail tells what the witness saw."""
    await begin_auditing(engine, maker)
    async with engine.begin() as connection:
        await connection.run_sync(watch_rows, ACCOUNT)
    async with maker() as session:
        session.add(Account(id=1, owner="owner 1"))
        await session.commit()
    own = make_engine(database.async_url)
    writers: list[int] = []
    async with starting(database) as starter:
        try:
            writers.append(await start(starter, engine, Capture.SESSION))
            writers.append(await start(starter, engine, Capture.BOTH))
            os.kill(writers.pop(0), signal.SIGKILL)
            set_config(SQLAuditConfig(capture=Capture.BOTH))
            await create_audit_tables(own, metadata=Base.metadata)
            raw = asyncio.create_task(write_raw(own))
            await until_written(engine, None)
            await until_written(engine, f"process {writers[0]}")
            writers.append(await start(starter, engine, Capture.TRIGGERS))
            await until_written(engine, f"process {writers[0]}")
            os.kill(writers.pop(0), signal.SIGKILL)
            writers.append(await start(starter, engine, Capture.BOTH))
            await until_written(engine, f"process {writers[0]}")
            os.kill(writers.pop(0), signal.SIGKILL)
            raw.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await raw
            set_config(SQLAuditConfig(capture=Capture.SESSION))
            await create_audit_tables(own, metadata=Base.metadata)
            writers.append(await start(starter, engine, Capture.SESSION))
            await until_written(engine, f"process {writers[0]}")
        finally:
            for writer in writers:
                os.kill(writer, signal.SIGKILL)
    await own.dispose()
    await asyncio.sleep(0.5)

    trail, truth = await changes_by_row(maker, Account), await truth_by_row(maker, Account, only=TRACKED)
    assert trail == truth
    assert len(trail) > 10
