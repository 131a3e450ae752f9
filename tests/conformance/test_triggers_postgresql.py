"""What PostgreSQL's triggers record of what only PostgreSQL does; the truth is raw SQL, and the independent witness."""

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Computed, Connection, ForeignKey, Identity, Integer, MetaData, Table, Text, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from conformance_setup import Maker, story_of
from databases import Database
from observing import stored_trail
from sqlaudit import (
    Capture,
    SQLAuditConfig,
    audit_context,
    audited_connection,
    check_audit_schema,
    create_audit_tables,
    register_hooks,
    set_config,
    track,
)
from type_cases import CASES, Colour, TypeCase
from witness import watch_rows

pytestmark = [
    pytest.mark.parametrize("database", ["postgresql"], indirect=True),
    # SQLAlchemy 2.1 says so of types of its own.
    pytest.mark.filterwarnings("ignore:Type object .* does not refer to an OperatorClass"),
]

Told: TypeAlias = list[tuple[str, str, Any, Any]]
"""Operation, resource id, old and new values, as they are stored."""


@pytest.fixture(name="metadata")
def _metadata() -> Iterator[MetaData]:
    """Tables of one test: those of other tests, which may have the same names, count no more."""
    metadata = MetaData()
    yield metadata
    for table in metadata.tables.values():
        table.info.clear()


def thing(metadata: MetaData, *columns: Any, name: str = "thing", **options: Any) -> Table:
    """Return a table with an id and *columns*, or a name, which triggers capture."""
    table = Table(
        name,
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        *(columns or [Column("name", Text)]),
        **options,
    )
    return track(table, capture=Capture.TRIGGERS, table_label=name.capitalize() if name.isalpha() else "Odd")


async def start(maker: Maker, metadata: MetaData, *prepared: str) -> None:
    """Create the tables, what SQL is *prepared* there, the trail and the triggers."""
    set_config(SQLAuditConfig(session_factory=maker))
    register_hooks(maker)
    async with maker.kw["bind"].begin() as connection:
        await connection.run_sync(metadata.create_all)
        for statement in prepared:
            await connection.exec_driver_sql(statement)
        await create_audit_tables(connection, metadata=metadata)


async def watch(engine: AsyncEngine, *tables: Table) -> None:
    """Let the witness see what happens to *tables*."""
    async with engine.begin() as connection:
        await connection.run_sync(watch_rows, *tables)


async def execute(engine: AsyncEngine, *statements: str) -> None:
    """Execute SQL in one transaction, as a client that has never heard of sqlaudit."""
    async with engine.begin() as connection:
        for each in statements:
            await connection.exec_driver_sql(each)


async def told(engine: AsyncEngine, label: str | None = None) -> Told:
    """Return the trail, in its order."""
    return [
        (change.operation, change.resource_id, change.old_values, change.new_values)
        for change in await stored_trail(engine)
        if label is None or change.resource_type == label
    ]


async def levels(engine: AsyncEngine, table: str) -> set[tuple[str, str]]:
    """Return the operation and the level of each trigger of ours on *table*, as the catalogue has them."""
    query = text("""
        SELECT event_manipulation, action_orientation FROM information_schema.triggers
        WHERE event_object_schema = current_schema() AND event_object_table = :table
          AND trigger_name LIKE '00_sqlaudit_%'
    """)
    async with engine.connect() as connection:
        return {(row[0], row[1]) for row in await connection.execute(query, {"table": table})}


def quote(name: str) -> str:
    """Return *name* as an identifier: SQLAlchemy doubles percent signs, too, for statements with parameters."""
    return '"' + name.replace('"', '""') + '"'


STATEMENT = {("INSERT", "STATEMENT"), ("UPDATE", "STATEMENT"), ("DELETE", "STATEMENT")}
ROW = {("INSERT", "ROW"), ("UPDATE", "ROW"), ("DELETE", "ROW")}


# --- statements ------------------------------------------------------------------------------------------------------


async def test_triggers_fire_once_for_a_statement(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """A statement's rows are recorded together, each with its own values, in the order in which they were written."""
    thing(metadata, Column("name", Text), Column("amount", Integer))
    await start(maker, metadata)
    assert await levels(engine, "thing") == STATEMENT

    await execute(
        engine,
        "INSERT INTO thing VALUES (2, 'b', 20), (1, 'a', 10), (3, 'c', 30)",
        "UPDATE thing SET amount = amount + 1, name = CASE WHEN id = 2 THEN name ELSE upper(name) END WHERE id > 1",
        "UPDATE thing SET amount = amount",
        "DELETE FROM thing WHERE id <> 1",
    )
    assert await told(engine) == [
        ("insert", "2", None, {"id": 2, "name": "b", "amount": 20}),
        ("insert", "1", None, {"id": 1, "name": "a", "amount": 10}),
        ("insert", "3", None, {"id": 3, "name": "c", "amount": 30}),
        ("update", "2", {"amount": 20}, {"amount": 21}),
        ("update", "3", {"name": "c", "amount": 30}, {"name": "C", "amount": 31}),
        ("delete", "2", {"id": 2, "name": "b", "amount": 21}, None),
        ("delete", "3", {"id": 3, "name": "C", "amount": 31}, None),
    ]
    trail = await stored_trail(engine)
    assert len({change.transaction_id for change in trail}) == 1
    assert [change.recorded_at for change in trail] == sorted(change.recorded_at for change in trail)


async def test_nothing_is_compiled_for_a_statement(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Before PostgreSQL 18 the JIT would take seconds for each statement: the functions do without."""
    thing(metadata)
    await start(maker, metadata)
    query = text("""
        SELECT DISTINCT 'jit=off' = ANY(proconfig) FROM pg_proc
        WHERE proname ~ '^sqlaudit_.*_thing$' AND pronamespace = current_schema()::regnamespace
    """)
    async with engine.connect() as connection:
        assert (await connection.scalars(query)).all() == [True]


async def test_statements_without_rows_leave_nothing(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """A statement that finds no rows, and one that a trigger of the application cancels, leave no changes."""
    thing(metadata)
    await start(
        maker,
        metadata,
        "CREATE FUNCTION cancel() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER cancel BEFORE DELETE ON thing FOR EACH ROW EXECUTE FUNCTION cancel()",
    )
    await execute(engine, "INSERT INTO thing VALUES (1, 'a')", "DELETE FROM thing")
    await execute(engine, "UPDATE thing SET name = 'x' WHERE id = 9", "INSERT INTO thing SELECT 2, 'b' WHERE false")

    assert await told(engine) == [("insert", "1", None, {"id": 1, "name": "a"})]


async def test_keys_change_in_a_statement(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Rows that take each other's keys leave their old ones first: each resource is told as its row was."""
    table = thing(metadata)
    await start(maker, metadata, "ALTER TABLE thing DROP CONSTRAINT thing_pkey, ADD PRIMARY KEY (id) DEFERRABLE")
    await execute(engine, "INSERT INTO thing VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    await execute(engine, "UPDATE thing SET id = id + 1")

    assert (await told(engine))[3:] == [
        ("delete", "1", {"id": 1, "name": "a"}, None),
        ("delete", "2", {"id": 2, "name": "b"}, None),
        ("delete", "3", {"id": 3, "name": "c"}, None),
        ("insert", "2", None, {"id": 2, "name": "a"}),
        ("insert", "3", None, {"id": 3, "name": "b"}),
        ("insert", "4", None, {"id": 4, "name": "c"}),
    ]
    assert table.info["sqlaudit"].label == "Thing"


async def test_upserts(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Of an INSERT … ON CONFLICT each row is told as what became of it."""
    table = thing(metadata)
    await start(maker, metadata)
    await watch(engine, table)
    await execute(engine, "INSERT INTO thing VALUES (1, 'a'), (2, 'b')")
    upsert = "INSERT INTO thing VALUES (1, 'x'), (2, 'b'), (3, 'c') ON CONFLICT (id) DO"
    await execute(engine, f"{upsert} UPDATE SET name = excluded.name", f"{upsert} NOTHING")
    await execute(engine, f"{upsert} UPDATE SET name = 'never' WHERE thing.id = 4")

    assert sorted((await told(engine))[2:]) == [
        ("insert", "3", None, {"id": 3, "name": "c"}),
        ("update", "1", {"name": "a"}, {"name": "x"}),
    ]
    await story_of(maker, table)


async def test_merge(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """MERGE inserts, updates and deletes with one statement."""
    table = thing(metadata)
    await start(maker, metadata)
    await watch(engine, table)
    await execute(
        engine,
        "INSERT INTO thing VALUES (1, 'a'), (2, 'b'), (3, 'c')",
        """
        MERGE INTO thing USING (VALUES (1, 'x'), (2, NULL), (4, 'd')) AS s (id, name) ON thing.id = s.id
        WHEN MATCHED AND s.name IS NULL THEN DELETE
        WHEN MATCHED THEN UPDATE SET name = s.name
        WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.name)
        """,
    )
    assert sorted((await told(engine))[3:]) == [
        ("delete", "2", {"id": 2, "name": "b"}, None),
        ("insert", "4", None, {"id": 4, "name": "d"}),
        ("update", "1", {"name": "a"}, {"name": "x"}),
    ]
    await story_of(maker, table)


async def test_statements_within_statements(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Every part of a statement that writes is recorded, cursors and prepared statements, too."""
    table = thing(metadata)
    await start(maker, metadata)
    await watch(engine, table)
    await execute(
        engine,
        "INSERT INTO thing SELECT n, 'row ' || n FROM generate_series(1, 6) AS n",
        """
        WITH gone AS (DELETE FROM thing WHERE id = 1 RETURNING *),
          changed AS (UPDATE thing SET name = 'u' WHERE id = 2),
          others AS (UPDATE thing SET name = 'v' WHERE id = 3)
        INSERT INTO thing SELECT id + 100, name FROM gone
        """,
        "DO $$ BEGIN FOR n IN 4..5 LOOP UPDATE thing SET name = n::text WHERE id = n; END LOOP; END $$",
        "DECLARE each CURSOR FOR SELECT * FROM thing WHERE id = 6 FOR UPDATE",
        "FETCH each",
        "UPDATE thing SET name = 'w' WHERE CURRENT OF each",
        "PREPARE gone (int) AS DELETE FROM thing WHERE id = $1",
        "EXECUTE gone (6)",
        "DEALLOCATE gone",
    )
    changed = [(operation, key) for operation, key, _, _ in await told(engine)][6:]
    assert sorted(changed[:4]) == [("delete", "1"), ("insert", "101"), ("update", "2"), ("update", "3")]
    assert changed[4:] == [("update", "4"), ("update", "5"), ("update", "6"), ("delete", "6")]
    await story_of(maker, table)


async def test_savepoints_take_their_changes_along(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """What is rolled back was never there, nor is its trail; an exception that PL/pgSQL catches is such a rollback."""
    table = thing(metadata)
    await start(maker, metadata)
    await watch(engine, table)
    await execute(
        engine,
        "INSERT INTO thing VALUES (1, 'a')",
        "SAVEPOINT s",
        "UPDATE thing SET name = 'b'",
        "ROLLBACK TO SAVEPOINT s",
        "DO $$ BEGIN UPDATE thing SET name = 'c'; PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END $$",
        "UPDATE thing SET name = 'd'",
    )
    assert (await told(engine))[1:] == [("update", "1", {"name": "a"}, {"name": "d"})]
    await story_of(maker, table)


# --- COPY and TRUNCATE -----------------------------------------------------------------------------------------------


async def test_copy_by_asyncpg(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Rows that asyncpg copies are recorded, by the user that the connection was told of."""
    table = thing(metadata)
    await start(maker, metadata)
    await watch(engine, table)
    async with engine.connect() as connection:
        # Text, not parameters: the driver's own transaction is used.
        await connection.execute(text("SELECT set_config('sqlaudit.published', '{\"user\": \"7\"}', true)"))
        raw: Any = (await connection.get_raw_connection()).driver_connection
        schema = await connection.scalar(text("SELECT current_schema()"))
        await raw.copy_records_to_table("thing", schema_name=schema, records=[(1, "a"), (2, None), (3, "✓")])
        await connection.commit()

    assert await told(engine) == [
        ("insert", "1", None, {"id": 1, "name": "a"}),
        ("insert", "2", None, {"id": 2, "name": None}),
        ("insert", "3", None, {"id": 3, "name": "✓"}),
    ]
    assert {change.changed_by for change in await stored_trail(engine)} == {"7"}
    await story_of(maker, table)


async def test_copy_in_a_block(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """What the driver copies is by whom the block told; after a commit nobody is told before the next statement."""
    thing(metadata)
    await start(maker, metadata)
    async with engine.connect() as connection, audited_connection(connection, user_id=7):
        schema = await connection.scalar(text("SELECT current_schema()"))
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await raw.copy_records_to_table("thing", schema_name=schema, records=[(1, "a")])
        await connection.commit()
        await raw.copy_records_to_table("thing", schema_name=schema, records=[(2, "a")])
        await connection.execute(text("SELECT 1"))
        await raw.copy_records_to_table("thing", schema_name=schema, records=[(3, "a")])
        await connection.commit()

    changes = [(change.resource_id, change.changed_by) for change in await stored_trail(engine)]
    assert changes == [("1", "7"), ("2", None), ("3", "7")]


async def test_what_is_deferred_is_recorded_while_a_table_moves(
    maker: Maker, engine: AsyncEngine, metadata: MetaData
) -> None:
    """A constraint trigger of the application's writes as the transaction is committed: it isn't a session's write."""
    columns = Column("id", Integer, primary_key=True, autoincrement=False), Column("name", Text)
    table = track(Table("thing", metadata, *columns), capture=Capture.BOTH)
    await start(
        maker,
        metadata,
        """CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS
           'BEGIN UPDATE thing SET name = ''later'' WHERE id = NEW.id AND name <> ''later''; RETURN NULL; END'""",
        """CREATE CONSTRAINT TRIGGER follow AFTER INSERT ON thing DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION follow()""",
    )
    await watch(engine, table)
    async with maker() as session:
        with audit_context(user_id=1):
            await session.execute(table.insert().values(id=1, name="a"))
            await session.commit()

    assert [(change.operation, change.changed_by) for change in await stored_trail(engine)] == [
        ("insert", "1"),
        ("update", "1"),
    ]
    await story_of(maker, table)


async def test_copy_by_psycopg(database: Database, maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Rows that psycopg copies are recorded, also those that a rule of the table changes."""
    table = thing(metadata)
    await start(
        maker,
        metadata,
        """CREATE FUNCTION louder() RETURNS trigger LANGUAGE plpgsql AS
           'BEGIN NEW.name := upper(NEW.name); RETURN NEW; END'""",
        "CREATE TRIGGER louder BEFORE INSERT ON thing FOR EACH ROW EXECUTE FUNCTION louder()",
    )
    await watch(engine, table)
    plain = database.make_engine()
    with plain.connect() as connection:
        raw: Any = connection.connection.driver_connection
        with raw.cursor() as cursor, cursor.copy("COPY thing FROM STDIN") as copy:
            copy.write("1\ta\n2\t\\N\n")
        raw.commit()
    plain.dispose()

    assert await told(engine) == [
        ("insert", "1", None, {"id": 1, "name": "A"}),
        ("insert", "2", None, {"id": 2, "name": None}),
    ]
    await story_of(maker, table)


async def test_truncate(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """The rows that TRUNCATE takes away are recorded as deleted; CASCADE's, too; not those of a rollback."""
    thing(metadata, name="owner")
    thing(metadata, Column("owner_id", ForeignKey("owner.id")), name="owned")
    await start(maker, metadata)
    await execute(engine, "INSERT INTO owner VALUES (1, 'a'), (2, 'b')", "INSERT INTO owned VALUES (5, 1), (6, NULL)")
    await execute(engine, "SAVEPOINT s", "TRUNCATE owned", "ROLLBACK TO SAVEPOINT s")
    assert [operation for operation, *_ in await told(engine)] == ["insert"] * 4

    await execute(engine, "TRUNCATE owner RESTART IDENTITY CASCADE", "TRUNCATE owned")
    assert (await told(engine, "Owner"))[2:] == [
        ("delete", "1", {"id": 1, "name": "a"}, None),
        ("delete", "2", {"id": 2, "name": "b"}, None),
    ]
    assert (await told(engine, "Owned"))[2:] == [
        ("delete", "5", {"id": 5, "owner_id": 1}, None),
        ("delete", "6", {"id": 6, "owner_id": None}, None),
    ]


# --- triggers and foreign keys of the application --------------------------------------------------------------------


async def test_what_row_triggers_write_comes_after_its_cause(
    maker: Maker, engine: AsyncEngine, metadata: MetaData
) -> None:
    """A trigger of the application that writes the same rows is told after the statement that fired it."""
    table = thing(metadata, Column("name", Text), Column("stamp", Integer))
    await start(
        maker,
        metadata,
        """CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS
           'BEGIN UPDATE thing SET stamp = coalesce(stamp, 0) + 1 WHERE id = NEW.id; RETURN NULL; END'""",
        "CREATE TRIGGER stamp AFTER INSERT OR UPDATE OF name ON thing FOR EACH ROW EXECUTE FUNCTION stamp()",
    )
    assert await levels(engine, "thing") == ROW
    await execute(
        engine, "INSERT INTO thing VALUES (1, 'a'), (2, 'b'), (3, 'c')", "UPDATE thing SET name = name || '!'"
    )
    await execute(engine, "DELETE FROM thing WHERE id > 1")

    stories: dict[str, list[Any]] = {}
    for operation, key, old, new in await told(engine):
        stories.setdefault(key, []).append((operation, old, new))
    assert stories["1"] == [
        ("insert", None, {"id": 1, "name": "a", "stamp": None}),
        ("update", {"stamp": None}, {"stamp": 1}),
        ("update", {"name": "a"}, {"name": "a!"}),
        ("update", {"stamp": 1}, {"stamp": 2}),
    ]
    assert [operation for operation, *_ in stories["3"]] == ["insert", "update", "update", "update", "delete"]
    assert stories["3"][-1][1] == {"id": 3, "name": "c!", "stamp": 2}
    assert table.info["sqlaudit"].label == "Thing"


async def test_triggers_that_come_later_are_found(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """A row trigger that the application adds asks for other triggers of ours: they are outdated, not wrong values."""
    thing(metadata)
    await start(maker, metadata)
    await execute(
        engine,
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER nothing AFTER INSERT ON thing FOR EACH ROW EXECUTE FUNCTION nothing()",
    )
    assert {(each.kind, each.problem) for each in await check_audit_schema(engine, metadata=metadata)} >= {
        ("trigger", "outdated")
    }

    await create_audit_tables(engine, metadata=metadata)
    assert await check_audit_schema(engine, metadata=metadata) == []
    assert await levels(engine, "thing") == ROW
    await execute(engine, "INSERT INTO thing SELECT n, 'x' FROM generate_series(1, 50) AS n", "DELETE FROM thing")
    assert [operation for operation, *_ in await told(engine)] == ["insert"] * 50 + ["delete"] * 50


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
async def test_several_foreign_keys_do_something_to_a_row(
    maker: Maker, engine: AsyncEngine, metadata: MetaData, order: tuple[int, int]
) -> None:
    """A row that loses a reference, and then goes, is told in the order in which it happened."""
    thing(metadata, name="first")
    thing(metadata, Column("first_id", ForeignKey("first.id", ondelete="CASCADE")), name="second")
    references: dict[int, Column[Any]] = {
        1: Column("first_id", ForeignKey("first.id", ondelete="SET NULL")),
        2: Column("second_id", ForeignKey("second.id", ondelete="CASCADE", onupdate="CASCADE")),
    }
    third = thing(metadata, *(references[number] for number in order), name="third")
    await start(maker, metadata)
    await watch(engine, third)
    await execute(
        engine,
        "INSERT INTO first VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO second VALUES (1, 1), (2, 2)",
        "INSERT INTO third (id, first_id, second_id) VALUES (1, 1, 1), (2, 1, 2), (3, 2, NULL)",
    )
    await execute(engine, "UPDATE second SET id = id + 10")
    await execute(engine, "DELETE FROM first")
    await story_of(maker, third)
    assert {key for operation, key, _, _ in await told(engine, "Third") if operation == "delete"} == {"1", "2"}


# --- partitions ------------------------------------------------------------------------------------------------------


PARTITIONS = (
    "CREATE TABLE thing_low PARTITION OF thing FOR VALUES FROM (0) TO (100)",
    "CREATE TABLE thing_high PARTITION OF thing FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id)",
    "CREATE TABLE thing_high_a PARTITION OF thing_high FOR VALUES FROM (100) TO (150)",
    "CREATE TABLE thing_high_b PARTITION OF thing_high FOR VALUES FROM (150) TO (200)",
)


def parted(metadata: MetaData) -> Table:
    """Return a table that `PARTITIONS` are of."""
    return thing(metadata, postgresql_partition_by="RANGE (id)")


async def test_partitions(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Rows are recorded as rows of the parent, by whatever name their table was written."""
    table = parted(metadata)
    await start(maker, metadata, *PARTITIONS)
    await watch(engine, table)
    assert await check_audit_schema(engine, metadata=metadata) == []
    await execute(
        engine,
        "INSERT INTO thing VALUES (1, 'a'), (120, 'b'), (160, 'c')",
        "INSERT INTO thing_low VALUES (2, 'd')",
        "UPDATE thing SET name = name || '!'",
        "UPDATE thing_high_b SET name = 'x'",
        "DELETE FROM thing_low",
    )
    assert len(await told(engine, "Thing")) == len(await told(engine)) == 4 + 4 + 1 + 2
    await story_of(maker, table)


async def test_rows_move_between_partitions(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """A row that an UPDATE moves is told as PostgreSQL moves it: it goes here, and comes there."""
    table = thing(metadata, Column("area", Integer), name="thing", postgresql_partition_by="RANGE (id)")
    await start(maker, metadata, *PARTITIONS)
    await watch(engine, table)
    await execute(engine, "INSERT INTO thing VALUES (1, 5)", "UPDATE thing SET id = 160, area = 6")

    assert (await told(engine))[1:] == [
        ("delete", "1", {"id": 1, "area": 5}, None),
        ("insert", "160", None, {"id": 160, "area": 6}),
    ]
    await story_of(maker, table)


async def test_partitions_that_come_later(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """A partition that is made, or attached, later is recorded at once; so is what TRUNCATE of the parent takes."""
    table = parted(metadata)
    await start(maker, metadata, *PARTITIONS)
    await watch(engine, table)
    await execute(
        engine,
        "CREATE TABLE thing_more PARTITION OF thing FOR VALUES FROM (200) TO (300)",
        "CREATE TABLE thing_most (LIKE thing INCLUDING ALL)",
        "ALTER TABLE thing ATTACH PARTITION thing_most FOR VALUES FROM (300) TO (400)",
        "INSERT INTO thing VALUES (1, 'a'), (250, 'b')",
        "INSERT INTO thing_most VALUES (350, 'c')",
        "UPDATE thing SET name = 'x'",
    )
    await story_of(maker, table)
    assert len(await told(engine)) == 6
    await execute(engine, "TRUNCATE thing")
    assert sorted((await told(engine))[6:]) == [
        ("delete", "1", {"id": 1, "name": "x"}, None),
        ("delete", "250", {"id": 250, "name": "x"}, None),
        ("delete", "350", {"id": 350, "name": "x"}, None),
    ]
    # TRUNCATE of such a partition alone has no trigger yet: that is found.
    missing = [each for each in await check_audit_schema(engine, metadata=metadata) if each.problem == "missing"]
    assert {str(each.table).split(".")[-1] for each in missing} == {"thing_more", "thing_most"}
    await create_audit_tables(engine, metadata=metadata)
    assert await check_audit_schema(engine, metadata=metadata) == []
    await execute(engine, "INSERT INTO thing VALUES (2, 'a'), (251, 'b')", "TRUNCATE thing_more")
    assert (await told(engine))[-1] == ("delete", "251", {"id": 251, "name": "b"}, None)


async def test_truncate_of_partitions(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """TRUNCATE of the parent, of a part of it, and of a partition tell each row once."""
    parted(metadata)
    await start(maker, metadata, *PARTITIONS)
    rows = "INSERT INTO thing SELECT n, 'x' FROM unnest('{1,120,160}'::int[]) AS n"
    for truncate, expected in (
        ("TRUNCATE thing", {"1", "120", "160"}),
        ("TRUNCATE thing_high", {"120", "160"}),
        ("TRUNCATE thing_low", {"1"}),
    ):
        before = len(await told(engine))
        await execute(engine, rows, truncate)
        gone = [key for operation, key, _, _ in (await told(engine))[before:] if operation == "delete"]
        assert sorted(gone) == sorted(expected), truncate
        await execute(engine, "DELETE FROM thing")


async def test_partitions_in_another_schema(
    database: Database, maker: Maker, engine: AsyncEngine, metadata: MetaData
) -> None:
    """Partitions where the connection doesn't look have their triggers, which are found, and go with the others."""
    table = parted(metadata)
    with schemas(database, "archive") as (archive,):
        await start(
            maker,
            metadata,
            *PARTITIONS,
            f"CREATE TABLE {archive}.old PARTITION OF thing FOR VALUES FROM (900) TO (999)",
        )
        await create_audit_tables(engine, metadata=metadata)
        assert await check_audit_schema(engine, metadata=metadata) == []
        async with maker() as session:
            await session.execute(table.insert().values(id=950, name="x"))
            await session.commit()
        await execute(engine, f"TRUNCATE {archive}.old")
        assert [change[:2] for change in await told(engine)] == [("insert", "950"), ("delete", "950")]

        table.info.clear()
        track(table, capture=Capture.SESSION, table_label="Thing")
        await create_audit_tables(engine, metadata=metadata)

        assert await check_audit_schema(engine, metadata=metadata) == []
        await execute(engine, f"INSERT INTO {archive}.old VALUES (951, 'y')", f"TRUNCATE {archive}.old")
        assert len(await told(engine)) == 2


# --- schemas and names -----------------------------------------------------------------------------------------------


@contextmanager
def schemas(database: Database, *names: str) -> Iterator[tuple[str, ...]]:
    """Give new schemas, whose names end in *names*."""
    made = tuple(f"t{uuid.uuid4().hex[:12]}_{name}" for name in names)
    plain = database.make_engine()
    with plain.begin() as connection:
        for name in made:
            connection.exec_driver_sql(f"CREATE SCHEMA {quote(name)}", execution_options={"no_parameters": True})
    try:
        yield made
    finally:
        with plain.begin() as connection:
            for name in made:
                connection.exec_driver_sql(
                    f"DROP SCHEMA {quote(name)} CASCADE", execution_options={"no_parameters": True}
                )
        plain.dispose()


async def test_schemas(database: Database, maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Tables of one name in several schemas are recorded each under its label, wherever the writer looks."""
    with schemas(database, "a", "b") as names:
        tables = [
            track(
                Table("thing", metadata, Column("id", Integer, primary_key=True), Column("n", Integer), schema=name),
                capture=Capture.TRIGGERS,
                table_label=label,
            )
            for name, label in zip(names, ("A", "B"), strict=True)
        ]
        await start(maker, metadata)
        assert await check_audit_schema(engine, metadata=metadata) == []
        for table in tables:
            await execute(engine, f"SET LOCAL search_path = {table.schema}", "INSERT INTO thing VALUES (1, 2)")
        async with maker() as session:
            await session.execute(tables[0].update().values(n=3))
            await session.commit()

        trail = await stored_trail(engine)
        assert [change.what for change in trail] == [("insert", "A", "1"), ("insert", "B", "1"), ("update", "A", "1")]
        # Findings of one don't hide those of the other.
        await execute(engine, f'DROP TRIGGER "00_sqlaudit_update" ON {names[0]}.thing')
        (finding,) = await check_audit_schema(engine, metadata=metadata)
        assert (finding.problem, finding.table) == ("missing", f"{names[0]}.thing")


async def test_schemas_that_are_translated(
    database: Database, maker: Maker, engine: AsyncEngine, metadata: MetaData
) -> None:
    """With schema_translate_map, triggers and trail are where the tables are: a tenant has its own of each."""
    table = thing(metadata)
    set_config(SQLAuditConfig(session_factory=maker))
    with schemas(database, "one", "two") as names:
        tenants = [engine.execution_options(schema_translate_map={None: name}) for name in names]
        for tenant in tenants:
            async with tenant.begin() as connection:
                await connection.run_sync(metadata.create_all)
            assert await check_audit_schema(tenant, metadata=metadata) == []
        for number, tenant in enumerate(tenants):
            async with maker.class_(tenant) as session:
                register_hooks(session)
                with audit_context(user_id=number):
                    await session.execute(table.insert().values(id=number, name="x"))
                    await session.commit()
        for number, name in enumerate(names):
            async with engine.connect() as connection:
                found = await connection.exec_driver_sql(f"SELECT resource_id, changed_by FROM {name}.sqlaudit_change")
                assert [tuple(row) for row in found] == [(str(number), str(number))]


HOSTILE = (
    "Upper Case",
    'quo"te',
    "apo'strophe",
    "100% %s %(x)s",
    "$1 $$ $sqlaudit$ $install$",
    "back\\slash \\0025",
    "a\nnew line; DROP TABLE thing; --",
    "select",
    "ünïçødé ✓",
    "x" * 63,
    "old_rows",
    "{label} {0} :name",
)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:12]))
async def test_hostile_names(database: Database, maker: Maker, metadata: MetaData, name: str) -> None:
    """Tables, columns, keys, labels and schemas may have any name."""
    with schemas(database, name[:40]) as (schema,):
        table = Table(
            name,
            metadata,
            Column(name, Integer, primary_key=True, autoincrement=False),
            Column(f"{name[:61]} 2", Text, key=f"{name} the key"),
            schema=schema,
        )
        track(table, capture=Capture.TRIGGERS, table_label=f"{name} as a label")
        own = {"no_parameters": True}
        plain = database.make_engine()
        set_config(SQLAuditConfig(session_factory=maker))
        with plain.begin() as connection:
            connection.exec_driver_sql(
                f"CREATE TABLE {quote(schema)}.{quote(name)} "
                f"({quote(name)} int PRIMARY KEY, {quote(table.columns[1].name)} text)",
                execution_options=own,
            )
        for _ in range(2):
            await create_audit_tables(maker.kw["bind"], metadata=metadata)
            assert await check_audit_schema(maker.kw["bind"], metadata=metadata) == []
        with plain.begin() as connection:
            for statement in (
                f"INSERT INTO {quote(schema)}.{quote(name)} VALUES (1, 'a'), (2, NULL)",
                f"UPDATE {quote(schema)}.{quote(name)} SET {quote(table.columns[1].name)} = 'b'",
                f"TRUNCATE {quote(schema)}.{quote(name)}",
            ):
                connection.exec_driver_sql(statement, execution_options=own)
        plain.dispose()

        trail = await stored_trail(maker.kw["bind"])
        other = f"{name} the key"
        assert [(change.operation, change.old_values, change.new_values) for change in trail] == [
            ("insert", None, {name: 1, other: "a"}),
            ("insert", None, {name: 2, other: None}),
            ("update", {other: "a"}, {other: "b"}),
            ("update", {other: None}, {other: "b"}),
            ("delete", {name: 1, other: "b"}, None),
            ("delete", {name: 2, other: "b"}, None),
        ]
        assert {change.resource_type for change in trail} == {f"{name} as a label"}


async def test_long_names_that_begin_alike(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Two tables whose names differ in their last letter have functions of their own."""
    labels = {"y" * 62 + "a": "A", "y" * 62 + "b": "B"}
    for name, label in labels.items():
        table = Table(name, metadata, Column("id", Integer, primary_key=True, autoincrement=False))
        track(table, capture=Capture.TRIGGERS, table_label=label)
    await start(maker, metadata)
    assert await check_audit_schema(engine, metadata=metadata) == []
    for name in labels:
        await execute(engine, f"INSERT INTO {name} VALUES (1)")

    assert [change.resource_type for change in await stored_trail(engine)] == ["A", "B"]


# --- rights ----------------------------------------------------------------------------------------------------------


@contextmanager
def stranger(database: Database) -> Iterator[tuple[Connection, str]]:
    """Give a connection of a role that may write the table "thing", and nothing else; and the role's name."""
    plain = database.make_engine(poolclass=sa.NullPool)
    role = f"stranger_{uuid.uuid4().hex}"
    with plain.begin() as connection:
        schema = connection.scalar(text("SELECT current_schema()"))
        connection.exec_driver_sql(f"CREATE ROLE {role}")
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        connection.exec_driver_sql(f"GRANT ALL ON thing TO {role}")
        connection.exec_driver_sql(f"CREATE SCHEMA {role} AUTHORIZATION {role}")
    try:
        with plain.connect() as connection:
            connection.exec_driver_sql(f"SET SESSION AUTHORIZATION {role}")
            connection.commit()
            yield connection, role
    finally:
        with plain.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
            connection.exec_driver_sql(f"DROP ROLE {role}")
        plain.dispose()


def refused(connection: Connection, *statements: str) -> None:
    """Fail unless the database denies the last of *statements*."""
    for each in statements[:-1]:
        connection.exec_driver_sql(each)
    with pytest.raises(DBAPIError, match="permission denied"):
        connection.exec_driver_sql(statements[-1])
    connection.rollback()


async def test_writers_need_no_right_on_the_trail(
    database: Database, maker: Maker, engine: AsyncEngine, metadata: MetaData
) -> None:
    """Who may write the table is recorded, and can neither read, write nor forge the trail."""
    thing(metadata, Column("name", Text), Column("amount", sa.Double), Column("document", postgresql.JSON))
    await start(maker, metadata)
    with stranger(database) as (connection, role):
        connection.exec_driver_sql("INSERT INTO thing VALUES (1, 'a', 1.5, '{\"a\": 1.0}')")
        connection.exec_driver_sql("UPDATE thing SET name = 'b'")
        connection.exec_driver_sql("TRUNCATE thing")
        connection.commit()

        refused(connection, "SELECT * FROM sqlaudit_change")
        refused(connection, "INSERT INTO sqlaudit_change (operation) VALUES ('insert')")
        refused(connection, "SELECT sqlaudit_insert_thing()")
        for operation in ("insert", "update", "delete", "truncate"):
            refused(
                connection,
                f"SET LOCAL search_path = {role}, {connection.scalar(text('SELECT current_schema()'))}",
                "CREATE TABLE own (id int, name text, amount float8, document json)",
                f"CREATE TRIGGER forge AFTER {operation} ON own EXECUTE FUNCTION sqlaudit_{operation}_thing()",
            )
    trail = await stored_trail(engine)
    assert [change.operation for change in trail] == ["insert", "update", "delete"]
    assert {change.context["database_user"] for change in trail if change.context} == {role}


async def test_a_writer_cannot_put_anything_in_the_way(
    database: Database, maker: Maker, engine: AsyncEngine, metadata: MetaData
) -> None:
    """Tables, functions, operators and casts of the writer's, which he looks into first, aren't used."""
    thing(
        metadata,
        Column("name", Text),
        Column("amount", sa.Double),
        Column("document", postgresql.JSON),
        Column("address", postgresql.INET),
        Column("span", postgresql.INTERVAL),
        Column("items", postgresql.ARRAY(postgresql.INET)),
    )
    await start(maker, metadata)
    with stranger(database) as (connection, role):
        schema = connection.scalar(text("SELECT current_schema()"))
        connection.exec_driver_sql(f"SET search_path = {role}, {schema}, pg_catalog")
        for statement in (
            "CREATE TEMPORARY TABLE sqlaudit_change (LIKE pg_catalog.pg_class)",
            "CREATE TEMPORARY TABLE pg_trigger (tgname name)",
            "CREATE TABLE sqlaudit_change (id int)",
            "CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'epoch'::timestamptz $$",
            "CREATE FUNCTION jsonb_build_object(text, anyelement) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{}' $$",
            'CREATE FUNCTION current_setting(text, bool) RETURNS text LANGUAGE sql AS $$ SELECT \'{"user": "x"}\' $$',
            "CREATE FUNCTION never(anyelement, anyelement) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
            "CREATE FUNCTION never_text(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
            "CREATE OPERATOR = (FUNCTION = never_text, LEFTARG = text, RIGHTARG = text)",
            "CREATE FUNCTION never_float(float8, float8) RETURNS boolean LANGUAGE sql AS 'SELECT false'",
            "CREATE OPERATOR = (FUNCTION = never_float, LEFTARG = float8, RIGHTARG = float8)",
            "CREATE OPERATOR < (FUNCTION = never_float, LEFTARG = float8, RIGHTARG = float8)",
            "CREATE FUNCTION sqlaudit_float(double precision) RETURNS jsonb LANGUAGE sql AS 'SELECT ''0''::jsonb'",
        ):
            connection.exec_driver_sql(statement)
        connection.commit()
        values = "(1, 'a', 2.5, '[1.0]', '::1.2.3.4', '25 hours', '{10.0.0.1}')"
        connection.exec_driver_sql(f"INSERT INTO {schema}.thing VALUES {values}")
        connection.exec_driver_sql(f"UPDATE {schema}.thing SET name = 'b', amount = 3.5")
        connection.commit()

    inserted, updated = await stored_trail(engine)
    assert inserted.new_values == {
        "id": 1,
        "name": "a",
        "amount": 2.5,
        "document": [1.0],
        "address": "::102:304",
        "span": "P1DT3600.000000S",
        "items": ["10.0.0.1"],
    }
    assert (updated.old_values, updated.new_values) == ({"name": "a", "amount": 2.5}, {"name": "b", "amount": 3.5})
    assert updated.changed_by is None
    assert updated.recorded_at.year > 2000


# --- values ----------------------------------------------------------------------------------------------------------


SETTINGS = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
    "backslash_quote": "on",
    "quote_all_identifiers": "on",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "xmlbinary": "hex",
    "plpgsql.extra_errors": "all",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "work_mem": "64kB",
}


async def test_settings_of_the_writer_change_nothing(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Whatever a connection has set, the same values are stored."""
    columns: dict[str, tuple[Any, str]] = {
        "single": (sa.REAL(), "0.1"),
        "number": (sa.Double(), "1e23"),
        "price": (postgresql.MONEY(), "'1234.56'"),
        "naive": (sa.DateTime(), "'2024-02-29 01:02:03.004'"),
        "aware": (sa.DateTime(timezone=True), "'2024-02-29 01:02:03.004+05:45'"),
        "day": (sa.Date(), "'2024-02-29'"),
        "moment": (sa.Time(timezone=True), "'01:02:03+05:45'"),
        "span": (postgresql.INTERVAL(), "'400 days 25:00:00.000001'"),
        "data": (sa.LargeBinary(), "'\\x005cff27'::bytea"),
        "words": (sa.Text(), "'a \\ ''b'' \"c\"'"),
        "document": (postgresql.JSON(), '\'{"$a": 1e16, "b\\\\n": [1.10, 0.0001], "n": null}\''),
        "packed": (postgresql.JSONB(), '\'{"$a": 1.50, "b": [1e-7]}\''),
        "nothing": (postgresql.JSON(), "' null '"),
        "days": (sa.ARRAY(sa.Date()), "'{2024-02-29,NULL}'"),
        "texts": (sa.ARRAY(sa.Text()), '\'{"NULL",NULL,"\\\\\\\\"}\''),
        "spans": (sa.ARRAY(sa.Interval()), "'{1 mon 1 day}'"),
        "during": (postgresql.TSTZRANGE(), "'[2024-02-29 00:00+00,2024-03-01 00:00+00)'"),
    }
    thing(metadata, *(Column(name, type_) for name, (type_, _) in columns.items()))
    await start(maker, metadata)
    insert = f"INSERT INTO thing VALUES (0, {', '.join(value for _, value in columns.values())})"
    names = ", ".join(columns)
    emptied = ", ".join(f"{name} = NULL" for name in columns)
    filled = ", ".join(f"{name} = (SELECT {name} FROM thing WHERE id = 0)" for name in columns)
    async with engine.connect() as connection:
        await connection.exec_driver_sql(insert)
        await connection.commit()
        for number, (setting, value) in enumerate((*SETTINGS.items(), ("all", "")), start=1):
            chosen = SETTINGS if setting == "all" else {setting: value}
            for each, what in chosen.items():
                await connection.exec_driver_sql(f"SET {each} = '{what}'")
            # As PostgreSQL does now and then by itself: the functions are read anew, under these settings.
            await connection.exec_driver_sql("DISCARD PLANS")
            for statement in (
                f"INSERT INTO thing SELECT {number}, {names} FROM thing WHERE id = 0",
                f"UPDATE thing SET {emptied} WHERE id = {number}",
                f"UPDATE thing SET {filled} WHERE id = {number}",
                # What changes nothing.
                f"UPDATE thing SET {filled} WHERE id = {number}",
            ):
                await connection.exec_driver_sql(statement)
            await connection.commit()
            await connection.exec_driver_sql("RESET ALL")
            await connection.commit()

    trail = await stored_trail(engine)
    expected = {key: value for key, value in (trail[0].new_values or {}).items() if key != "id"}
    assert expected["span"] == "P401DT3600.000001S"
    assert expected["aware"] == "2024-02-28T19:17:03.004000+00:00"
    assert len(trail) == 1 + 3 * (len(SETTINGS) + 1)
    for first, second, third in zip(trail[1::3], trail[2::3], trail[3::3], strict=True):
        assert first.new_values == {"id": int(first.resource_id), **expected}
        assert second.old_values == third.new_values == expected


async def test_columns_that_the_database_fills(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Generated columns, identities and defaults are told with the values that the row got."""
    table = Table(
        "thing",
        metadata,
        Column("id", Integer, Identity(always=True, start=5), primary_key=True),
        Column("amount", Integer, server_default="7"),
        Column("double", Integer, Computed("amount * 2", persisted=True)),
    )
    track(table, capture=Capture.TRIGGERS, table_label="Thing")
    await start(maker, metadata)
    await watch(engine, table)
    await execute(engine, "INSERT INTO thing DEFAULT VALUES", "UPDATE thing SET amount = 8")
    async with maker() as session:
        await session.execute(table.insert(), [{"amount": 1}, {"amount": 2}])
        await session.commit()

    assert await told(engine) == [
        ("insert", "5", None, {"id": 5, "amount": 7, "double": 14}),
        ("update", "5", {"amount": 7, "double": 14}, {"amount": 8, "double": 16}),
        ("insert", "6", None, {"id": 6, "amount": 1, "double": 2}),
        ("insert", "7", None, {"id": 7, "amount": 2, "double": 4}),
    ]
    await story_of(maker, table)


GROUPS = {group: [case for case in cases if "postgresql" in case.databases] for group, cases in CASES.items()}


@pytest.mark.parametrize("group", [group for group, cases in GROUPS.items() if cases])
async def test_stored_values_are_those_of_the_session(
    maker: Maker, engine: AsyncEngine, metadata: MetaData, group: str
) -> None:
    """Law 10: what triggers store of a value of any type is, letter for letter, what the session stores of it."""
    cases: list[TypeCase] = GROUPS[group]
    tables = {
        capture: track(
            Table(
                f"of_{capture.value}",
                metadata,
                Column("id", Integer, primary_key=True, autoincrement=False),
                *(Column(f"c{number}", case.make(), nullable=True) for number, case in enumerate(cases)),
            ),
            capture=capture,
            table_label=capture.value,
        )
        for capture in (Capture.SESSION, Capture.TRIGGERS)
    }
    await start(maker, metadata)
    length = max(len(case.all_edges) for case in cases)
    for table in tables.values():
        async with maker() as session:
            for key in range(length):
                edges = {f"c{n}": case.all_edges[key % len(case.all_edges)] for n, case in enumerate(cases)}
                await session.execute(table.insert().values(id=key, **edges))
            for key in range(length):
                edges = {f"c{n}": case.all_edges[(key + 1) % len(case.all_edges)] for n, case in enumerate(cases)}
                await session.execute(table.update().where(table.c.id == key).values(edges))
            await session.execute(table.delete())
            await session.commit()

    query = text("""
        WITH told AS (
          SELECT resource_type, operation, resource_id, coalesce(new_values, old_values) AS values FROM sqlaudit_change
        )
        SELECT s.operation, s.resource_id, e.key, e.value::text, t.values -> e.key
        FROM (SELECT * FROM told WHERE resource_type = 'session') AS s
        FULL JOIN (SELECT * FROM told WHERE resource_type = 'triggers') AS t USING (operation, resource_id)
        CROSS JOIN LATERAL jsonb_each(s.values) AS e
        WHERE (t.values -> e.key)::text IS DISTINCT FROM e.value::text
    """)
    whole = text("""
        SELECT count(*), count(DISTINCT (operation, resource_id, old_values::text, new_values::text))
        FROM sqlaudit_change
    """)
    async with engine.connect() as connection:
        different = [(cases[int(row[2][1:])].name, *row[:2], *row[3:]) for row in await connection.execute(query)]
        assert different == []
        stored, distinct = (await connection.execute(whole)).one()
    assert stored == 2 * distinct >= 2 * 2 * length


DRIFTED: dict[str, tuple[Any, str, str, Any]] = {
    "json_in_jsonb": (postgresql.JSON(), "jsonb", "'{\"a\": 1.0}'", {"a": 1.0}),
    "jsonb_in_json": (postgresql.JSONB(), "json", "'{\"a\": 1.0}'", {"a": 1.0}),
    "json_in_text": (postgresql.JSON(), "text", "'[1]'", [1]),
    "jsons": (sa.ARRAY(postgresql.JSON()), "jsonb[]", "'{\"[1]\"}'", [[1]]),
    "numeric": (sa.Numeric(10, 2), "double precision", "0.1", "0.10"),
    "any_numeric": (sa.Numeric(), "double precision", "1e20", "100000000000000000000"),
    "double": (sa.Double(), "numeric(8, 2)", "0.1", 0.1),
    "aware": (sa.DateTime(timezone=True), "timestamp", "'2024-01-02 03:04'", "2024-01-02T03:04:00.000000+00:00"),
    "naive": (sa.DateTime(), "date", "'2024-01-02'", "2024-01-02T00:00:00.000000"),
    "moment": (sa.Time(timezone=True), "time", "'03:04'", "03:04:00.000000+00:00"),
    "span": (postgresql.INTERVAL(), "time", "'03:04'", "P0DT11040.000000S"),
    "packed": (sa.LargeBinary(), "text", "'abc'", "YWJj"),
}
"""The type that is declared, that of the database, a value, and what is stored of it."""


async def test_similar_types_are_recorded(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """A column whose type isn't the declared one, but can be cast to it, doesn't fail the writes of its table."""
    thing(metadata, *(Column(name, type_) for name, (type_, *_) in DRIFTED.items()))
    columns = ", ".join(f"{name} {actual}" for name, (_, actual, *_) in DRIFTED.items())
    values = ", ".join(value for _, _, value, _ in DRIFTED.values())
    await execute(engine, f"CREATE TABLE thing (id integer PRIMARY KEY, {columns})")
    await start(maker, metadata)
    await execute(
        engine,
        "SET LOCAL TimeZone = 'UTC'",
        f"INSERT INTO thing VALUES (1, {values})",
        "UPDATE thing SET " + ", ".join(f"{name} = {name}" for name in DRIFTED),
        "UPDATE thing SET " + ", ".join(f"{name} = NULL" for name in DRIFTED),
        "DELETE FROM thing",
    )

    expected = {name: stored for name, (*_, stored) in DRIFTED.items()}
    empty = dict.fromkeys(DRIFTED)
    assert await told(engine) == [
        ("insert", "1", None, {"id": 1, **expected}),
        ("update", "1", expected, empty),
        ("delete", "1", {"id": 1, **empty}, None),
    ]


async def test_masked_values_stay_in_the_table(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Of a masked column is told that it was changed, never to what, whatever its type."""
    table = Table(
        "thing",
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("secret", Text),
        Column("salary", Integer),
        Column("place", sa.PickleType),
        Column("edited_by", Text),
    )
    track(
        table,
        capture=Capture.TRIGGERS,
        table_label="Thing",
        masked_fields=["secret", "salary", "place"],
        user_id_field="edited_by",
    )
    await start(maker, metadata)
    await execute(
        engine,
        "INSERT INTO thing VALUES (1, 'hush', 4711, '\\x4711', 'ann')",
        "UPDATE thing SET secret = 'hush!', salary = 4711, place = '\\x4712'",
        "UPDATE thing SET secret = NULL, edited_by = 'bob'",
        "DELETE FROM thing",
    )
    mask = {"$masked": True}
    whole = {"id": 1, "secret": mask, "salary": mask, "place": mask}
    assert await told(engine) == [
        ("insert", "1", None, {**whole, "edited_by": "ann"}),
        ("update", "1", {"secret": mask, "place": mask}, {"secret": mask, "place": mask}),
        ("update", "1", {"secret": mask, "edited_by": "ann"}, {"secret": mask, "edited_by": "bob"}),
        ("delete", "1", {**whole, "edited_by": "bob"}, None),
    ]
    assert [change.changed_by for change in await stored_trail(engine)] == ["ann", "ann", "bob", "bob"]
    async with engine.connect() as connection:
        everything = text("SELECT string_agg(c::text, ' ') FROM sqlaudit_change AS c")
        stored = str(await connection.scalar(everything))
    assert "hush" not in stored
    assert "4711" not in stored


async def test_enums_and_casts_of_the_application(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """An enum is told by the names that its Python class has, whatever order or labels the database adds to it."""
    table = thing(metadata, Column("colour", sa.Enum(Colour, name="colours_of_things")))
    await start(maker, metadata)
    async with maker() as session:
        await session.execute(table.insert().values(id=1, colour=Colour.GREEN))
        await session.commit()
    await execute(engine, "ALTER TYPE colours_of_things ADD VALUE 'BLUE' BEFORE 'RED'")
    await execute(engine, "UPDATE thing SET colour = 'BLUE'")

    assert [change[2:] for change in await told(engine)] == [
        (None, {"id": 1, "colour": "GREEN"}),
        ({"colour": "GREEN"}, {"colour": "BLUE"}),
    ]


async def test_wide_tables(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """A table may have more columns than a function has arguments."""
    thing(metadata, *(Column(f"c{number}", Integer) for number in range(250)))
    await start(maker, metadata)
    await execute(engine, f"INSERT INTO thing SELECT {', '.join(map(str, range(251)))}", "UPDATE thing SET c249 = 0")

    inserted, updated = await told(engine)
    assert inserted[3] == {"id": 0, **{f"c{number}": number + 1 for number in range(250)}}
    assert updated[2:] == ({"c249": 250}, {"c249": 0})


# --- what is altered -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (['ALTER TABLE thing DISABLE TRIGGER "00_sqlaudit_insert"'], {("trigger", "outdated")}),
        (['ALTER TABLE thing ENABLE REPLICA TRIGGER "00_sqlaudit_delete"'], {("trigger", "outdated")}),
        (["ALTER TABLE thing DISABLE TRIGGER USER"], {("trigger", "outdated")}),
        (
            ['ALTER TRIGGER "00_sqlaudit_update" ON thing RENAME TO "00_sqlaudit_other"'],
            {("trigger", "missing"), ("trigger", "foreign")},
        ),
        (
            ['ALTER TRIGGER "00_sqlaudit_update" ON thing RENAME TO other'],
            {("trigger", "missing"), ("trigger", "foreign")},
        ),
        (["DROP FUNCTION sqlaudit_truncate_thing() CASCADE"], {("trigger", "missing"), ("function", "missing")}),
        (
            ["CREATE OR REPLACE FUNCTION sqlaudit_insert_thing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'"],
            {("trigger", "outdated"), ("function", "missing")},
        ),
        (
            ["ALTER FUNCTION sqlaudit_insert_thing() SECURITY INVOKER"],
            {("trigger", "outdated"), ("function", "outdated")},
        ),
        (
            ["ALTER FUNCTION sqlaudit_insert_thing() SET search_path = public"],
            {("trigger", "outdated"), ("function", "outdated")},
        ),
        (["ALTER FUNCTION sqlaudit_insert_thing() RESET ALL"], {("trigger", "outdated"), ("function", "outdated")}),
        (
            ["GRANT EXECUTE ON FUNCTION sqlaudit_insert_thing() TO PUBLIC"],
            {("trigger", "outdated"), ("function", "outdated")},
        ),
        (
            [
                'DROP TRIGGER "00_sqlaudit_delete" ON thing',
                """CREATE TRIGGER "00_sqlaudit_delete" AFTER DELETE ON thing REFERENCING OLD TABLE AS old_rows
                   FOR EACH STATEMENT WHEN (false) EXECUTE FUNCTION sqlaudit_delete_thing()""",
            ],
            {("trigger", "outdated")},
        ),
        (
            [
                'DROP TRIGGER "00_sqlaudit_update" ON thing',
                """CREATE TRIGGER "00_sqlaudit_update" AFTER UPDATE OF name ON thing
                   FOR EACH STATEMENT EXECUTE FUNCTION sqlaudit_update_thing()""",
            ],
            {("trigger", "outdated")},
        ),
    ],
    ids=lambda value: None if isinstance(value, set) else value[-1][:50],
)
async def test_what_somebody_altered_is_found(
    maker: Maker, engine: AsyncEngine, metadata: MetaData, statements: list[str], expected: set[tuple[str, str]]
) -> None:
    """Triggers and functions that were disabled, renamed, replaced or weakened are found, and set right."""
    thing(metadata)
    await start(maker, metadata)
    assert await check_audit_schema(engine, metadata=metadata) == []
    await execute(engine, *statements)

    assert {(each.kind, each.problem) for each in await check_audit_schema(engine, metadata=metadata)} == expected
    await create_audit_tables(engine, metadata=metadata)
    assert await check_audit_schema(engine, metadata=metadata) == []
    await execute(engine, "INSERT INTO thing VALUES (1, 'a')", "UPDATE thing SET name = 'b'", "DELETE FROM thing")
    await execute(engine, "INSERT INTO thing VALUES (2, 'a')", "TRUNCATE thing")
    assert [operation for operation, *_ in await told(engine)] == ["insert", "update", "delete", "insert", "delete"]


async def test_renamed_tables(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """A table that is renamed keeps recording."""
    thing(metadata)
    await start(maker, metadata)
    await execute(engine, "ALTER TABLE thing RENAME TO elsewhere", "INSERT INTO elsewhere VALUES (1, 'a')")
    assert await told(engine) == [("insert", "1", None, {"id": 1, "name": "a"})]


async def test_a_guard_holds_against_all_ways(
    database: Database, maker: Maker, engine: AsyncEngine, metadata: MetaData
) -> None:
    """Upserts, MERGE, CTEs and cascades of TRUNCATE change nothing that is stored; the triggers go on writing."""
    thing(metadata)
    set_config(SQLAuditConfig(session_factory=maker, append_only=True))
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await execute(engine, "INSERT INTO thing VALUES (1, 'a')")
    before = await stored_trail(engine)
    for statement in (
        "INSERT INTO sqlaudit_change SELECT * FROM sqlaudit_change ON CONFLICT (id) DO UPDATE SET reason = 'x'",
        "MERGE INTO sqlaudit_change AS c USING (VALUES (1)) AS s ON true WHEN MATCHED THEN DELETE",
        "WITH gone AS (DELETE FROM sqlaudit_change RETURNING *) SELECT count(*) FROM gone",
        "TRUNCATE sqlaudit_change CASCADE",
        # A user of the application's that says so, but not as purge_changes does.
        "UPDATE sqlaudit_change SET reason = set_config('sqlaudit.published', '{\"retention\": true}', true)",
    ):
        with pytest.raises(DBAPIError, match="append-only"):
            await execute(engine, statement)
    assert await stored_trail(engine) == before
    await execute(engine, "DELETE FROM thing")
    assert len(await stored_trail(engine)) == 2
    assert database.kind == "postgresql"


async def test_many_writers_keep_the_order(maker: Maker, engine: AsyncEngine, metadata: MetaData) -> None:
    """Law 4: what several connections do to a row is told in the order in which the database did it."""
    thing(metadata, Column("amount", Integer))
    await start(maker, metadata)
    await execute(engine, "INSERT INTO thing VALUES (1, 0), (2, 0)")

    async def write() -> None:
        for _ in range(10):
            await execute(engine, "UPDATE thing SET amount = amount + 1 WHERE id = 1")
            await execute(engine, "UPDATE thing SET amount = amount + 1 WHERE id = 2")

    await asyncio.gather(*(write() for _ in range(4)))
    for key in ("1", "2"):
        updates = [
            (old["amount"], new["amount"]) for op, row, old, new in await told(engine) if op == "update" and row == key
        ]
        assert updates == [(number, number + 1) for number in range(40)]
