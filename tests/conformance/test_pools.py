"""Laws 5 and 6 where connections are shared: whatever the pool, nothing of one checkout is found by the next."""

import asyncio
import uuid
from typing import Any

import pytest
from sqlalchemy import AsyncAdaptedQueuePool, NullPool, delete, event, insert, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from conformance_models import Account, Base, Entry, Maker, begin_auditing
from databases import Database
from observing import stored_rows, stored_trail
from sqlaudit import (
    SQLAuditConfig,
    audit_context,
    bind_audit_context,
    clear_audit_context,
    get_resource_changes,
    register_hooks,
    set_audit_context,
)

ACCOUNT = Base.metadata.tables["account"]

only_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


def without_statement_cache(database: Database, **options: Any) -> AsyncEngine:
    """Return an engine as PgBouncer's transaction pooling needs it: no prepared statement outlives its transaction."""
    arguments: dict[str, Any] = {}
    if database.kind == "postgresql":
        arguments["connect_args"] = {
            "server_settings": {"search_path": search_path_of(database)},
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"__asyncpg_{uuid.uuid4()}__",
        }
    return database.make_async_engine(**arguments, **options)


def search_path_of(database: Database) -> str:
    """Return the schema of the test."""
    return database.async_url.rsplit("search_path", 1)[1].lstrip("=%3D")


def narrow(database: Database, **options: Any) -> AsyncEngine:
    """Return an engine with one connection, which every checkout gets in turn."""
    return database.make_async_engine(
        poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, pool_timeout=5, **options
    )


async def use(maker: Maker) -> None:
    """Write in each way, with a rollback, a savepoint, and an error between."""
    out = {"synchronize_session": False}
    async with maker() as session:
        session.add_all([Account(id=number, owner=f"owner {number}") for number in (1, 2, 3)])
        await session.commit()
        (await session.get_one(Account, 1)).balance = 1
        async with session.begin_nested():
            (await session.get_one(Account, 2)).balance = 2
        await session.commit()
        await session.execute(update(Account).where(Account.id == 3).values(balance=3), execution_options=out)
        await session.execute(insert(Account), [{"id": 4, "owner": "a"}, {"id": 5, "owner": "b"}])
        await session.commit()
        await session.execute(delete(Account).where(Account.id == 4), execution_options=out)
        await session.rollback()
        await session.execute(delete(Account).where(Account.id == 5), execution_options=out)
        await session.commit()


USED = [
    ("insert", "1"),
    ("insert", "2"),
    ("insert", "3"),
    ("update", "2"),
    ("update", "1"),
    ("update", "3"),
    ("insert", "4"),
    ("insert", "5"),
    ("delete", "5"),
]


async def told(engine: AsyncEngine) -> list[tuple[str, str]]:
    """Return operation and key of the stored changes."""
    return [(each.operation, each.resource_id) for each in await stored_trail(engine)]


@pytest.mark.parametrize("pool", ["null", "one", "no cache", "null, no cache"])
async def test_every_pool_gives_the_same_trail(database: Database, pool: str) -> None:
    """With a connection for each checkout, one for all, or none that keeps statements, the trail is the same."""
    if pool == "one":
        engine = narrow(database)
    elif pool == "null":
        engine = database.make_async_engine(poolclass=NullPool)
    else:
        engine = without_statement_cache(database, **({"poolclass": NullPool} if pool.startswith("null") else {}))
    maker = async_sessionmaker(engine)
    await begin_auditing(engine, maker)

    with audit_context(user_id=7):
        await use(maker)

    assert sorted(await told(engine)) == sorted(USED)
    assert {each.changed_by for each in await stored_trail(engine)} == {"7"}
    async with maker() as session:
        changes = await get_resource_changes(Account, session=session, filter_fields="id")
    assert len(changes) == 6
    await engine.dispose()


# --- one connection, one user after the other ------------------------------------------------------------------------


async def test_actor_does_not_stay_on_the_connection(database: Database) -> None:
    """Whoever had the connection before, a change bears the actor, reason and facts of its own moment, or none."""
    engine = narrow(database)
    maker = async_sessionmaker(engine)
    await begin_auditing(engine, maker)

    async def add(session: AsyncSession, number: int) -> None:
        session.add(Account(id=number, owner=f"{number}"))
        await session.commit()

    async with maker() as session:
        with audit_context(user_id="in a block", reason="because", ticket=5):
            await add(session, 1)
    async with maker() as session:
        await add(session, 2)
    async with maker() as session:
        bind_audit_context(session, user_id="of the session", reason="bound")
        await add(session, 3)
    async with maker() as session:
        await add(session, 4)
    set_audit_context(user_id="set")
    async with maker() as session:
        await add(session, 5)
    clear_audit_context()
    async with maker() as session:
        await add(session, 6)

    actors = [(each.changed_by, each.reason, each.context) for each in await stored_trail(engine)]
    nobody = (None, None, None)
    assert actors == [
        ("in a block", "because", {"ticket": 5}),
        nobody,
        ("of the session", "bound", None),
        nobody,
        ("set", None, None),
        nobody,
    ]
    await engine.dispose()


async def test_transaction_ids_do_not_stay_on_the_connection(database: Database) -> None:
    """Each transaction has an id of its own, also of one session, after a rollback, and on the same connection."""
    engine = narrow(database)
    maker = async_sessionmaker(engine)
    await begin_auditing(engine, maker)

    for number in range(1, 5):
        async with maker() as session:
            for part in range(2):
                session.add(Account(id=10 * number + part, owner=f"{number} {part}"))
                session.add(Account(id=100 * number + part, owner=f"{number} {part} again"))
                await session.commit()
                session.add(Account(id=9, owner="never"))
                await session.flush()
                await session.rollback()

    ids = [each.transaction_id for each in await stored_trail(engine)]
    assert len(ids) == 16
    assert len(set(ids)) == 8
    assert ids == sorted(ids)
    await engine.dispose()


async def test_hooks_do_not_stay_on_the_connection(database: Database) -> None:
    """What isn't audited isn't, on a connection that an audited session has had: another maker's sessions, and Core."""
    engine = narrow(database)
    maker, unaudited = async_sessionmaker(engine), async_sessionmaker(engine)
    await begin_auditing(engine, maker, require_user=True)

    with audit_context(user_id=1):
        async with maker() as session:
            session.add(Account(id=1, owner="a"))
            await session.execute(update(Account).values(balance=1))
            await session.commit()
    async with unaudited() as session:
        (await session.get_one(Account, 1)).balance = 2
        await session.flush()
        await session.execute(update(Account).values(balance=3))
        await session.execute(text("UPDATE account SET balance = 4"))
        await session.commit()
    async with engine.begin() as connection:
        await connection.execute(ACCOUNT.update().values(balance=5))
        await connection.execute(text("UPDATE account SET balance = 6"))

    assert await told(engine) == [("insert", "1"), ("update", "1")]
    assert await stored_rows(engine, "id, balance", "account") == [(1, 6)]
    await engine.dispose()


async def test_failed_transaction_leaves_nothing_for_the_next(database: Database) -> None:
    """After errors, a cancelled task and a session that was never closed properly, the next transaction starts anew."""
    engine = narrow(database)
    maker = async_sessionmaker(engine)
    await begin_auditing(engine, maker)

    async def fail(number: int) -> None:
        async with maker() as session:
            with audit_context(user_id=f"failing {number}"):
                session.add(Account(id=100 + number, owner="x"))
                await session.flush()
                await session.execute(update(Account).values(balance=number))
                if number == 1:
                    raise LookupError
                if number == 2:
                    await session.execute(insert(Account), [{"id": 100 + number, "owner": "y"}])
                if number == 3:
                    await asyncio.Event().wait()

    with pytest.raises(LookupError):
        await fail(1)
    with pytest.raises(IntegrityError):
        await fail(2)
    task = asyncio.create_task(fail(3))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await use(maker)
    assert sorted(await told(engine)) == sorted(USED)
    assert {each.changed_by for each in await stored_trail(engine)} == {None}
    await engine.dispose()


async def test_tasks_that_wait_for_the_connection_keep_their_actors(database: Database) -> None:
    """Many tasks with one connection between them: each change bears the actor of its task."""
    engine = narrow(database)
    maker = async_sessionmaker(engine)
    await begin_auditing(engine, maker)

    async def work(number: int) -> None:
        with audit_context(user_id=number, task=number):
            for turn in range(3):
                async with maker() as session:
                    session.add(Account(id=10 * number + turn, owner=f"{number} {turn}"))
                    await session.flush()
                    await asyncio.sleep(0)
                    await session.execute(update(Account).where(Account.id == 10 * number + turn).values(balance=1))
                    await session.commit()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for number in range(1, 6):
            group.create_task(work(number))

    trail = await stored_trail(engine)
    assert len(trail) == 30
    assert all(each.changed_by == str(int(each.resource_id) // 10) for each in trail)
    assert all(each.context == {"task": int(each.resource_id) // 10} for each in trail)
    await engine.dispose()


async def test_auditing_needs_no_second_connection(database: Database) -> None:
    """With an asynchronous callback, cascades and every capture, one connection is enough: nobody waits for another."""

    async def who() -> int:
        await asyncio.sleep(0)
        return 5

    engine = narrow(database)
    maker = async_sessionmaker(engine)
    await begin_auditing(engine, maker, get_user_id_callback=who, lock_rows=True, session_factory=maker)
    checkouts = 0

    @event.listens_for(engine.sync_engine, "checkout")
    def _(*_: Any) -> None:
        nonlocal checkouts
        checkouts += 1

    async with asyncio.timeout(30), maker() as session:
        session.add(Account(id=1, owner="a", entries=[Entry(line="b")]))
        await session.flush()
        await session.execute(update(Account).values(balance=1))
        await session.commit()

    assert checkouts == 1
    assert len(await get_resource_changes(Account, 1, filter_fields="balance")) == 2
    assert {each.changed_by for each in await stored_trail(engine)} == {"5"}
    await engine.dispose()


async def test_two_configurations_on_one_connection(database: Database) -> None:
    """Makers with configurations of their own, in turns on one connection, each keep to their own."""
    engine = narrow(database)
    first, second = async_sessionmaker(engine), async_sessionmaker(engine)
    await begin_auditing(engine, first, get_user_id_callback=lambda: "first")
    register_hooks(second, config=SQLAuditConfig(get_user_id_callback=lambda: "second"))

    for number, maker in enumerate((first, second, first, second), 1):
        async with maker() as session:
            session.add(Account(id=number, owner=f"{number}"))
            await session.commit()

    assert [each.changed_by for each in await stored_trail(engine)] == ["first", "second", "first", "second"]
    await engine.dispose()


# --- what the server keeps of a connection ---------------------------------------------------------------------------

STATE = {
    "postgresql": {
        "settings": "SELECT name, setting FROM pg_settings ORDER BY name",
        "prepared statements": "SELECT statement FROM pg_prepared_statements WHERE statement NOT LIKE '%pg_%'",
        "temporary tables": "SELECT relname FROM pg_class WHERE relpersistence = 't' "
        "AND relnamespace = pg_my_temp_schema()",
        "advisory locks": "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "channels": "SELECT pg_listening_channels()",
        "role": "SELECT current_user, session_user, current_schemas(true)",
    },
    "mariadb": {
        "variables": "SHOW SESSION VARIABLES",
        "user variables": "SELECT variable_name, variable_value FROM information_schema.user_variables",
        "temporary tables": "SELECT table_name FROM information_schema.tables "
        "WHERE table_schema = database() AND table_type LIKE '%TEMPORARY%'",
        "role": "SELECT current_user(), database()",
    },
    "sqlite": {
        "temporary tables": "SELECT name FROM sqlite_temp_master",
        "databases": "PRAGMA database_list",
        "foreign keys": "PRAGMA foreign_keys",
        "recursive triggers": "PRAGMA recursive_triggers",
        "functions": "SELECT DISTINCT name FROM pragma_function_list ORDER BY name",
    },
}

VOLATILE = {"timestamp", "last_insert_id", "identity", "insert_id", "rand_seed1", "rand_seed2", "last_gtid"} | {
    "error_count",
    "warning_count",
    "gtid_binlog_pos",
    "gtid_current_pos",
    "gtid_binlog_state",
}


async def state_of(connection: AsyncConnection) -> dict[str, list[tuple[Any, ...]]]:
    """Return what the server keeps of its connection, but for what every statement changes."""
    return {
        name: [tuple(row) for row in await connection.execute(text(query)) if row[0] not in VOLATILE]
        for name, query in STATE[connection.dialect.name].items()
    }


def different(before: dict[str, list[tuple[Any, ...]]], after: dict[str, list[tuple[Any, ...]]]) -> list[Any]:
    """Return what is in one of two states only."""
    return [(name, set(before[name]) ^ set(after[name])) for name in before if before[name] != after[name]]


async def test_nothing_is_left_on_the_servers_side(database: Database) -> None:
    """Settings, prepared statements, temporary tables, advisory locks, variables: the server has what it had before."""
    engine = without_statement_cache(
        database, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, pool_timeout=5
    )
    maker = async_sessionmaker(engine)
    await begin_auditing(engine, maker)
    async with engine.connect() as connection:
        before = await state_of(connection)

    with audit_context(user_id=7, reason="because", ticket=5):
        await use(maker)
        async with maker() as session:
            await session.get_one(Account, 1)
            quiet = await state_of(await session.connection())
            (await session.get_one(Account, 1)).balance = 9
            await session.flush()
            await session.execute(update(Account).values(note="x"))
            within = await state_of(await session.connection())
            await session.commit()
    async with engine.connect() as connection:
        after = await state_of(connection)

    assert different(before, after) == []
    assert different(quiet, within) == []
    await engine.dispose()


@only_postgresql
async def test_server_connection_that_forgets_everything_between_transactions(database: Database) -> None:
    """A server connection that is reset between transactions, as a pooler may do, is as good as any."""
    engine = without_statement_cache(
        database, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, pool_timeout=5
    )
    maker = async_sessionmaker(engine)
    await begin_auditing(engine, maker)
    schema = search_path_of(database)

    for number in range(1, 4):
        async with maker() as session:
            session.add(Account(id=number, owner=f"{number}"))
            await session.flush()
            await session.execute(update(Account).where(Account.id == number).values(balance=number))
            await session.commit()
        async with engine.connect() as connection:
            free = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await free.execute(text("DISCARD ALL"))
            await free.execute(text(f"SET search_path TO {schema}"))

    assert len(await told(engine)) == 6
    await engine.dispose()
