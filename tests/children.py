"""
Application processes of the tests' own: ``python children.py obey URL SHIFT``, or ``fork URL``.

Each writes audited accounts: when it is told to on its standard input, or until it is killed.
"""

import asyncio
import datetime as dt
import itertools
import os
import random
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from sqlalchemy import event, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from conformance_models import Account
from sqlaudit import Capture, SQLAuditConfig, audit_context, recorder, register_hooks, set_config


def shift_clock(seconds: float, *, frozen: bool) -> None:
    """Let this process's clock be wrong by so many seconds, and stand still if *frozen*."""
    began = time.time()

    def now() -> float:
        return (began if frozen else time.time()) + seconds

    class Shifted(dt.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return dt.datetime.fromtimestamp(now(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return dt.datetime.fromtimestamp(now(), dt.UTC).replace(tzinfo=None)

    module: Any = recorder
    module.dt = types.SimpleNamespace(**{**vars(dt), "datetime": Shifted})
    module.time = types.SimpleNamespace(**{**vars(time), "time": now, "time_ns": lambda: int(now() * 1e9)})


def make_engine(url: str) -> AsyncEngine:
    """Return an engine whose transactions wait for each other on SQLite, too."""
    if not url.startswith("sqlite"):
        return create_async_engine(url)
    engine = create_async_engine(url, connect_args={"timeout": 30})

    @event.listens_for(engine.sync_engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine.sync_engine, "begin")
    def _(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def say(word: str) -> None:
    """Answer on the standard output."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def obey(maker: async_sessionmaker[AsyncSession]) -> None:
    """Change accounts 1 to 3 for each line of the input, which names their new balance; say so when it is committed."""
    for line in sys.stdin:
        async with maker() as session:
            for number in (1, 2, 3):
                account = await session.get_one(Account, number)
                account.balance = int(line)
            await session.flush()
            await session.execute(update(Account).values(note=line.strip()))
            await session.commit()
        say("done")


async def go_on(maker: async_sessionmaker[AsyncSession]) -> None:
    """Commit transactions of every kind until this process is killed."""
    random_ = random.Random(os.getpid())
    for turn in itertools.count():
        async with maker() as session:
            try:
                first = turn * 4 + 10_000 * (os.getpid() % 100_000)
                session.add_all([Account(id=first + n, owner=f"{first + n}") for n in range(3)])
                await session.flush()
                await session.execute(update(Account).where(Account.id == first).values(balance=turn + 1))
                savepoint = await session.begin_nested()
                session.add(Account(id=first + 3, owner=f"{first + 3}"))
                await session.flush()
                await (savepoint.rollback() if random_.random() < 0.5 else savepoint.commit())
                gone = await session.get_one(Account, first + 1)
                await session.delete(gone)
                await (session.rollback() if random_.random() < 0.2 else session.commit())
            except OperationalError:
                await session.rollback()


async def audited(
    program: Callable[[async_sessionmaker[AsyncSession]], Any], url: str, who: str, capture: Capture = Capture.SESSION
) -> None:
    """Run a program with audited sessions."""
    maker = async_sessionmaker(make_engine(url))
    set_config(SQLAuditConfig(capture=capture))
    register_hooks(maker)
    with audit_context(user_id=f"process {who}"):
        await program(maker)
    await maker.kw["bind"].dispose()


def fork(url: str) -> None:
    """
    Start a process that goes on for each line of the input, which may name its capture, and say its id.

    Importing would take longer than its life.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            asyncio.run(audited(go_on, url, str(os.getpid()), Capture(line.strip() or "session")))
            os._exit(1)
        say(str(child))


def main(program: str, url: str, shift: str = "0") -> None:
    """Run one of the programs; *shift* ends in "frozen" if the clock stands still."""
    if program == "fork":
        fork(url)
        return
    shift_clock(float(shift.removesuffix("frozen")), frozen=shift.endswith("frozen"))
    asyncio.run(audited(obey, url, shift))


if __name__ == "__main__":
    main(*sys.argv[1:])
