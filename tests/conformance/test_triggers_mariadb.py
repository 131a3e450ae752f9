"""What triggers record on MariaDB, whatever writes: compared with the rows before and after each statement."""

import asyncio
import json
import random
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    URL,
    Column,
    Computed,
    Connection,
    Double,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    select,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from conformance_setup import Maker
from databases import Database, mariadb_database
from observing import stored_trail
from sqlaudit import (
    Capture,
    SQLAuditConfig,
    append_only_grants_sync,
    audit_context,
    audited_connection,
    check_audit_schema,
    check_audit_schema_sync,
    create_audit_tables,
    register_hooks,
    set_config,
    track,
)
from sqlaudit.exceptions import CaptureError

pytestmark = pytest.mark.parametrize("database", ["mariadb"], indirect=True)

Change = tuple[str, str, str, dict[str, Any] | None, dict[str, Any] | None]
"""Resource type, resource id, operation, old and new values."""


def tracked(table: Table, **options: Any) -> Table:
    """Track *table* by triggers."""
    return track(table, capture=Capture.TRIGGERS, **options)


async def create(engine: AsyncEngine, metadata: MetaData, **options: Any) -> None:
    """Create the tables of *metadata*, the trail and the triggers."""
    set_config(SQLAuditConfig(**options))
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)


async def write(connection: AsyncConnection, sql: str) -> None:
    """Send SQL as it is."""
    await connection.exec_driver_sql(sql, execution_options={"no_parameters": True})


async def execute(engine: AsyncEngine, *statements: str) -> None:
    """Write as a client that has never heard of sqlaudit, in one transaction."""
    async with engine.begin() as connection:
        for each in statements:
            await write(connection, each)


# --- what a statement did: the rows before and after it --------------------------------------------------------------


Rows = dict[tuple[str, str], dict[str, Any]]
"""The rows by label and resource id."""


def key_of(table: Table, row: dict[str, Any]) -> str:
    """Return the text of a row's key."""
    values = [row[column.name] for column in table.primary_key]
    if len(values) > 1:
        return json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    return str(values[0])


def read_rows(connection: Connection, tables: Sequence[Table]) -> Rows:
    """Return all rows of *tables*."""
    return {
        (table.name, key_of(table, dict(row))): dict(row)
        for table in tables
        for row in connection.execute(select(table)).mappings()
    }


def differences(before: Rows, after: Rows) -> list[Change]:
    """Return what must have happened to make *after* of *before*, if it happened to each row at once."""
    changes: list[Change] = []
    for place in {**before, **after}:
        old, new = before.get(place), after.get(place)
        if old is None or new is None:
            changes.append((*place, "insert" if old is None else "delete", old, new))
        elif old != new:
            names = [name for name in old if old[name] != new[name]]
            changes.append((*place, "update", {n: old[n] for n in names}, {n: new[n] for n in names}))
    return sorted(changes, key=repr)


async def told(engine: AsyncEngine) -> list[Change]:
    """Return what the trail tells, by row; what several foreign keys did to a row is taken for one change."""
    changes: dict[tuple[str, str], Change] = {}
    others: list[Change] = []
    for change in await stored_trail(engine):
        where, old, new = (change.resource_type, change.resource_id), change.old_values, change.new_values
        last = changes.pop(where, None)
        if last is not None and last[2] == "update":
            old = {**(old or {}), **(last[3] or {})}
            new = None if new is None else {**(last[4] or {}), **new}
        elif last is not None:
            others.append(last)
        changes[where] = (*where, change.operation, old, new)
    return sorted([*others, *changes.values()], key=repr)


async def compared(engine: AsyncEngine, tables: Sequence[Table], *statements: str) -> list[Change]:
    """Execute each of *statements*; fail unless the trail then tells what became of the rows; return what that is."""
    everything: list[Change] = []
    for statement in statements:
        await execute(engine, "DELETE FROM sqlaudit_change")
        async with engine.connect() as connection:
            before = await connection.run_sync(read_rows, tables)
        with suppress(IntegrityError):
            await execute(engine, statement)
        async with engine.connect() as connection:
            after = await connection.run_sync(read_rows, tables)
        happened = differences(before, after)
        assert await told(engine) == happened, statement
        everything += happened
    return everything


# --- statements of one table -----------------------------------------------------------------------------------------


def items(metadata: MetaData, name: str = "item", **options: Any) -> Table:
    """Return a tracked table of items, with a second key."""
    return tracked(
        Table(
            name,
            metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("code", String(20), unique=True),
            Column("name", String(40)),
            Column("amount", Integer, server_default="0"),
        ),
        **options,
    )


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO item (id, code) VALUES (4, 'd'), (5, 'e')",
        "INSERT INTO item (id, code, name) VALUES (1, 'z', 'x') ON DUPLICATE KEY UPDATE name = VALUES(name)",
        "INSERT INTO item (id, code, name) VALUES (9, 'b', 'x'), (4, 'd', 'y') ON DUPLICATE KEY UPDATE name = 'q'",
        "INSERT INTO item (id, code) VALUES (1, 'a') ON DUPLICATE KEY UPDATE name = name",
        "INSERT INTO item (id, code) VALUES (1, 'a') ON DUPLICATE KEY UPDATE id = 7",
        "INSERT IGNORE INTO item (id, code) VALUES (1, 'q'), (9, 'a'), (6, 'f')",
        "INSERT INTO item (id, code) SELECT id + 10, CONCAT(code, code) FROM item",
        "INSERT INTO item (id, code) VALUES (4, 'd') RETURNING id",
        "UPDATE item SET amount = amount + 1, name = 'n' ORDER BY id LIMIT 2",
        "UPDATE item SET name = name",
        "UPDATE item SET id = id + 100",
        "UPDATE item JOIN other USING (id) SET item.name = 'both', other.name = 'both'",
        "UPDATE item, other SET item.amount = 5 WHERE item.id = other.id AND other.code = 'b'",
        "DELETE FROM item ORDER BY id DESC LIMIT 1",
        "DELETE item, other FROM item JOIN other USING (id) WHERE item.id < 3",
        "DELETE FROM item USING item JOIN other USING (id) WHERE other.id = 1",
        "DELETE FROM item",
        "INSERT INTO item (id) WITH some AS (SELECT 4 AS id) SELECT id FROM some",
    ],
)
async def test_statements_are_told(engine: AsyncEngine, statement: str) -> None:
    """Whatever statement it is, the trail tells what became of the rows."""
    metadata = MetaData()
    tables = [items(metadata), items(metadata, "other")]
    await create(engine, metadata)
    for table in tables:
        await execute(engine, f"INSERT INTO {table.name} VALUES (1, 'a', NULL, 1), (2, 'b', '', 2), (3, 'c', 'C', 3)")

    await compared(engine, tables, statement)


async def test_replace_is_told(engine: AsyncEngine) -> None:
    """REPLACE takes away all that is in its way, and puts another row there."""
    metadata = MetaData()
    items(metadata)
    await create(engine, metadata)
    await execute(engine, "INSERT INTO item (id, code, name) VALUES (1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', 'z')")
    await execute(engine, "DELETE FROM sqlaudit_change")

    await execute(engine, "REPLACE INTO item (id, code) VALUES (1, 'b'), (4, 'd')")

    changes = [(change.operation, change.resource_id) for change in await stored_trail(engine)]
    assert sorted(changes[:2]) == [("delete", "1"), ("delete", "2")]
    assert changes[2:] == [("insert", "1"), ("insert", "4")]


async def test_loaded_files_are_told(database: Database, engine: AsyncEngine, tmp_path: Path) -> None:
    """LOAD DATA is told row by row, with REPLACE, too."""
    metadata = MetaData()
    table = items(metadata)
    await create(engine, metadata)
    await execute(engine, "INSERT INTO item (id, code, name) VALUES (1, 'a', 'x')")
    await execute(engine, "DELETE FROM sqlaudit_change")
    file = tmp_path / "items.tsv"
    file.write_text("1\ta\tloaded\t7\n2\tb\t\\N\t8\n")
    loading = database.make_engine(connect_args={"local_infile": True})
    with loading.begin() as connection:
        before = read_rows(connection, [table])
        connection.execute(text(f"LOAD DATA LOCAL INFILE '{file}' REPLACE INTO TABLE item"))
        after = read_rows(connection, [table])
    loading.dispose()

    trail = await stored_trail(engine)
    assert [(change.operation, change.resource_id) for change in trail] == [
        ("delete", "1"),
        ("insert", "1"),
        ("insert", "2"),
    ]
    assert trail[0].old_values == before["item", "1"]
    assert [change.new_values for change in trail[1:]] == [after["item", "1"], after["item", "2"]]


async def test_truncate_is_not_seen(engine: AsyncEngine) -> None:
    """As the documentation says, TRUNCATE fires nothing."""
    metadata = MetaData()
    items(metadata)
    await create(engine, metadata)
    await execute(engine, "INSERT INTO item (id) VALUES (1)")

    await execute(engine, "TRUNCATE item")

    assert [change.operation for change in await stored_trail(engine)] == ["insert"]
    documentation = (Path(__file__).parents[2] / "docs" / "triggers.md").read_text()
    assert "MariaDB: not seen (don't grant `DROP`)" in documentation


async def test_generated_columns_are_told(engine: AsyncEngine) -> None:
    """What the database computes, stored or not, and what it sets by itself, is told."""
    metadata = MetaData()
    table = tracked(
        Table(
            "item",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("amount", Integer),
            Column("twice", Integer, Computed("amount * 2", persisted=False)),
            Column("thrice", Integer, Computed("amount * 3", persisted=True)),
        )
    )
    await create(engine, metadata)

    changes = await compared(
        engine,
        [table],
        "INSERT INTO item (amount) VALUES (1), (NULL)",
        "UPDATE item SET amount = amount + 1",
        "DELETE FROM item WHERE id = 1",
    )
    assert ("item", "1", "update", {"amount": 1, "twice": 2, "thrice": 3}, {"amount": 2, "twice": 4, "thrice": 6}) in (
        changes
    )


async def test_savepoints_take_their_changes_along(engine: AsyncEngine) -> None:
    """What is rolled back to a savepoint, and a statement that fails half-way, are not told."""
    metadata = MetaData()
    items(metadata)
    await create(engine, metadata)
    async with engine.connect() as connection:
        await write(connection, "INSERT INTO item (id, code) VALUES (1, 'a')")
        await write(connection, "SAVEPOINT one")
        await write(connection, "UPDATE item SET code = 'b'")
        await write(connection, "ROLLBACK TO SAVEPOINT one")
        with pytest.raises(DBAPIError, match="Duplicate"):
            await write(connection, "INSERT INTO item (id, code) VALUES (2, 'x'), (3, 'a')")
        await write(connection, "UPDATE item SET code = 'c'")
        await connection.commit()
        await write(connection, "UPDATE item SET code = 'd'")
        await connection.rollback()

    assert [change.new_values for change in await stored_trail(engine)] == [
        {"id": 1, "code": "a", "name": None, "amount": 0},
        {"code": "c"},
    ]


# --- what foreign keys do --------------------------------------------------------------------------------------------


def family() -> tuple[MetaData, list[Table]]:
    """Return tables that refer to each other in many ways, and those of them that are tracked."""
    metadata = MetaData()

    def table(name: str, *columns: Any) -> Table:
        return Table(name, metadata, *columns)

    def key() -> Column[Any]:
        return Column("id", Integer, primary_key=True, autoincrement=False)

    parent = table("parent", key(), Column("code", String(10), unique=True), Column("name", String(10)))
    child = table(
        "child",
        key(),
        Column("parent_id", Integer, ForeignKey("parent.id", ondelete="CASCADE", onupdate="CASCADE")),
        Column("name", String(10)),
    )
    grandchild = table("grandchild", key(), Column("child_id", Integer, ForeignKey("child.id", ondelete="CASCADE")))
    friend = table(
        "friend",
        key(),
        Column("parent_id", Integer, ForeignKey("parent.id", ondelete="SET NULL", onupdate="CASCADE")),
        Column("parent_code", String(10), ForeignKey("parent.code", ondelete="SET NULL", onupdate="SET NULL")),
    )
    # Two ways to go, one to be left alone.
    guest = table(
        "guest",
        key(),
        Column("child_id", Integer, ForeignKey("child.id", ondelete="CASCADE")),
        Column("grandchild_id", Integer, ForeignKey("grandchild.id", ondelete="CASCADE")),
        Column("parent_id", Integer, ForeignKey("parent.id", ondelete="SET NULL", onupdate="CASCADE")),
    )
    # Nobody tracks what is between.
    table(
        "between", key(), Column("parent_id", Integer, ForeignKey("parent.id", ondelete="CASCADE", onupdate="CASCADE"))
    )
    below = table("below", key(), Column("between_id", Integer, ForeignKey("between.id", ondelete="CASCADE")))
    node = table("node", key(), Column("upper_id", Integer, ForeignKey("node.id", ondelete="CASCADE")))
    leaf = table("leaf", key(), Column("node_id", Integer, ForeignKey("node.id", ondelete="SET NULL")))
    worker = table("worker", key(), Column("boss_id", Integer, ForeignKey("worker.id", ondelete="SET NULL")))
    line = table(
        "line",
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("place", String(10), primary_key=True),
        Column("name", String(10)),
    )
    part = table(
        "part",
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("place", String(10), primary_key=True),
        Column("part", Integer, primary_key=True, autoincrement=False),
        ForeignKeyConstraint(
            ["number", "place"], ["line.number", "line.place"], ondelete="CASCADE", onupdate="CASCADE"
        ),
    )
    piece = table(
        "piece",
        key(),
        Column("number", Integer),
        Column("place", String(10)),
        Column("part", Integer),
        ForeignKeyConstraint(
            ["number", "place", "part"],
            ["part.number", "part.place", "part.part"],
            ondelete="SET NULL",
            onupdate="CASCADE",
        ),
    )
    tables = [parent, child, grandchild, friend, guest, below, node, leaf, worker, line, part, piece]
    for each in tables:
        tracked(each)
    return metadata, tables


_FAMILY = (
    "INSERT INTO parent VALUES (1, 'a', 'A'), (2, 'b', 'B'), (3, 'c', 'C')",
    "INSERT INTO child VALUES (1, 1, 'x'), (2, 1, 'y'), (3, 2, 'z'), (4, NULL, NULL)",
    "INSERT INTO grandchild VALUES (1, 1), (2, 1), (3, 2), (4, 3), (5, NULL)",
    "INSERT INTO friend VALUES (1, 1, 'a'), (2, 1, 'b'), (3, 3, NULL), (4, NULL, 'c')",
    "INSERT INTO guest VALUES (1, 1, 1, 1), (2, 2, 1, 2), (3, NULL, 4, 1), (4, 4, NULL, 1), (5, 3, 3, NULL)",
    "INSERT INTO `between` VALUES (1, 1), (2, 2)",
    "INSERT INTO below VALUES (1, 1), (2, 1), (3, 2)",
    "INSERT INTO node VALUES (1, NULL), (2, 1), (3, 2), (4, 3), (5, 1), (6, NULL)",
    "INSERT INTO leaf VALUES (1, 1), (2, 4), (3, 6), (4, NULL)",
    "INSERT INTO worker VALUES (1, NULL), (2, 1), (3, 1), (4, 2), (5, 5)",
    "INSERT INTO node VALUES (7, 7), (8, 7)",
    "INSERT INTO line VALUES (1, 'a', 'x'), (1, 'b', 'y'), (2, 'a', 'z')",
    "INSERT INTO part VALUES (1, 'a', 1), (1, 'a', 2), (1, 'b', 1), (2, 'a', 1)",
    "INSERT INTO piece VALUES (1, 1, 'a', 1), (2, 1, 'a', 2), (3, 2, 'a', 1), (4, 1, 'a', NULL)",
)


@pytest.mark.parametrize(
    "statements",
    [
        ["DELETE FROM parent WHERE id = 1"],
        ["DELETE FROM parent"],
        ["DELETE FROM child"],
        ["DELETE FROM grandchild WHERE id = 1"],
        ["DELETE FROM `between`"],
        ["UPDATE parent SET id = 10 WHERE id = 1"],
        ["UPDATE parent SET id = id + 100, name = 'n'", "DELETE FROM parent WHERE id > 101"],
        ["UPDATE parent SET code = 'A' WHERE id = 1", "UPDATE parent SET code = 'q' WHERE id = 2"],
        ["UPDATE parent SET id = 11, code = 'z' WHERE id = 1"],
        ["UPDATE parent SET name = 'other'"],
        ["DELETE FROM node WHERE id = 2"],
        ["DELETE FROM node WHERE id = 1"],
        ["DELETE FROM node WHERE id = 7"],
        ["DELETE FROM node"],
        ["DELETE FROM worker WHERE id = 1", "DELETE FROM worker WHERE id = 5"],
        ["UPDATE line SET number = 7, place = 'q' WHERE number = 1 AND place = 'a'"],
        ["UPDATE part SET part = part + 10"],
        ["DELETE FROM line WHERE number = 1"],
        ["DELETE FROM part"],
        ["DELETE parent, child FROM parent JOIN child ON child.parent_id = parent.id"],
        ["INSERT INTO parent (id, code) VALUES (1, 'a') ON DUPLICATE KEY UPDATE id = 21, code = 'zz'"],
        ["UPDATE parent JOIN child ON child.parent_id = parent.id SET parent.id = 31 WHERE child.id = 3"],
    ],
    ids="; ".join,
)
async def test_cascades_are_told(engine: AsyncEngine, statements: list[str]) -> None:
    """What foreign keys do to the rows that refer is told of each of them once, however many ways lead there."""
    metadata, tables = family()
    await create(engine, metadata)
    await execute(engine, *_FAMILY)

    assert await compared(engine, tables, *statements)


async def test_a_replaced_row_takes_along_what_refers_to_it(engine: AsyncEngine) -> None:
    """REPLACE deletes, and foreign keys act."""
    metadata, _ = family()
    await create(engine, metadata)
    await execute(engine, *_FAMILY, "DELETE FROM sqlaudit_change")

    await execute(engine, "REPLACE INTO node VALUES (3, NULL)")

    async with engine.connect() as connection:
        assert [*await connection.execute(text("SELECT id FROM node WHERE id IN (3, 4)"))] == [(3,)]
    changes = [(change.resource_type, change.resource_id, change.operation) for change in await stored_trail(engine)]
    assert sorted(changes) == [
        ("leaf", "2", "update"),
        ("node", "3", "delete"),
        ("node", "3", "insert"),
        ("node", "4", "delete"),
    ]


async def test_cascades_of_a_refused_delete_are_not_told(engine: AsyncEngine) -> None:
    """Where another row forbids it, nothing is deleted and nothing told."""
    metadata, _ = family()
    await create(engine, metadata)
    await execute(engine, *_FAMILY)
    await execute(engine, "CREATE TABLE holder (id INTEGER PRIMARY KEY, FOREIGN KEY (id) REFERENCES parent (id))")
    await execute(engine, "INSERT INTO holder VALUES (2)", "DELETE FROM sqlaudit_change")

    with pytest.raises(DBAPIError, match="foreign key"):
        await execute(engine, "DELETE FROM parent")

    assert await stored_trail(engine) == []


async def test_cascades_need_foreign_key_checks(engine: AsyncEngine) -> None:
    """Where the writer has turned them off, foreign keys do nothing, and nothing is told of them."""
    metadata, tables = family()
    await create(engine, metadata)
    await execute(engine, *_FAMILY, "DELETE FROM sqlaudit_change")
    async with engine.connect() as connection:
        before = await connection.run_sync(read_rows, tables)
        await write(connection, "SET foreign_key_checks = 0")
        await write(connection, "DELETE FROM parent WHERE id = 1")
        await connection.commit()
        after = await connection.run_sync(read_rows, tables)

    assert len(differences(before, after)) == 1
    assert await told(engine) == differences(before, after)


@pytest.mark.parametrize("seed", range(3))
async def test_random_programs_are_told(engine: AsyncEngine, seed: int) -> None:
    """Random deletes, updates of keys and references, and inserts, through all of the tables."""
    metadata, tables = family()
    await create(engine, metadata)
    await execute(engine, *_FAMILY)
    chosen = random.Random(seed)

    def number(limit: int = 7) -> int:
        return chosen.randint(1, limit)

    def place() -> str:
        return chosen.choice("abc")

    deleted = "parent", "child", "node", "line", "part", "worker"

    def statement() -> str:
        return chosen.choice(
            [
                f"DELETE FROM {chosen.choice(deleted)} LIMIT 1",
                f"UPDATE parent SET id = {number(9)}, code = CHAR({96 + number()}) WHERE id = {number()}",
                f"UPDATE line SET number = {number(3)}, place = '{place()}' WHERE number = {number(3)} LIMIT 1",
                f"UPDATE child SET parent_id = {number()} WHERE id = {number()}",
                f"UPDATE node SET upper_id = {number()} WHERE id = {number(9)}",
                f"UPDATE guest SET child_id = {number()}, parent_id = {number()} WHERE id = {number()}",
                f"INSERT IGNORE INTO parent VALUES ({number()}, CHAR({96 + number()}), 'new')",
                f"INSERT IGNORE INTO child VALUES ({number(9)}, {number()}, 'new')",
                f"INSERT IGNORE INTO grandchild VALUES ({number(9)}, {number()})",
                f"INSERT IGNORE INTO guest VALUES ({number(9)}, {number()}, {number()}, {number()})",
                f"INSERT IGNORE INTO node VALUES ({number(9)}, {number()})",
                f"INSERT IGNORE INTO leaf VALUES ({number(9)}, {number()})",
                f"INSERT IGNORE INTO line VALUES ({number(3)}, '{place()}', NULL)",
                f"INSERT IGNORE INTO part VALUES ({number(3)}, '{place()}', {number(3)})",
            ]
        )

    changes = await compared(engine, tables, *(statement() for _ in range(60)))
    assert len(changes) > 20


# --- how the writer's session is set ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        "sql_mode = ''",
        "sql_mode = 'ANSI,STRICT_ALL_TABLES'",
        "sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,HIGH_NOT_PRECEDENCE'",
        "sql_mode = 'ORACLE'",
        "sql_mode = 'PAD_CHAR_TO_FULL_LENGTH,NO_ZERO_DATE,NO_ZERO_IN_DATE,STRICT_ALL_TABLES'",
        "time_zone = '+09:30'",
        "NAMES latin1",
        "NAMES utf8mb4 COLLATE utf8mb4_bin",
        "lc_time_names = 'de_DE'",
        "div_precision_increment = 0",
        "group_concat_max_len = 4",
    ],
)
async def test_settings_of_the_writer_change_nothing(database: Database, engine: AsyncEngine, setting: str) -> None:
    """The same values are stored, byte for byte, and the same moment, however the writer's session is set."""
    metadata = MetaData()
    tracked(
        Table(
            "kinds",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("text", Text),
            Column("char", mysql.CHAR(5)),
            Column("number", Double),
            Column("price", mysql.DECIMAL(10, 3)),
            Column("at", mysql.DATETIME(fsp=3)),
            Column("bytes", mysql.BLOB),
            Column("document", mysql.JSON),
        ),
        table_label="Kinds 'ü' \\ \"",
    )
    await create(engine, metadata)
    values = (
        (
            "x'C3A9225C270A25E29C93F09F9098', x'6120', 1e-7, 1.5, '2024-03-31 02:30:00.125', x'00FF5C', "
            "x'7B2261223A225C5C222C2262223A5B312E305D7D'"
        )
        .replace("x'C3A9", "CONVERT(x'C3A9")
        .replace("F09F9098'", "F09F9098' USING utf8mb4)")
    )
    statements = (f"INSERT INTO kinds VALUES (NULL, {values})", "UPDATE kinds SET number = number * 3 WHERE id = 1")
    await execute(engine, *statements, "DELETE FROM kinds")
    other = database.make_async_engine()
    async with other.connect() as connection:
        await write(connection, f"SET {setting}")
        await write(connection, "ALTER TABLE kinds AUTO_INCREMENT = 1")
        for each in (*statements, "DELETE FROM kinds"):
            await write(connection, each.replace("(NULL,", "(1,"))
        await connection.commit()
    await other.dispose()

    columns = (
        "resource_type, operation, resource_id, CONVERT(old_values USING utf8mb4), CONVERT(new_values USING utf8mb4)"
    )
    async with engine.connect() as connection:
        rows = [
            tuple(row) for row in await connection.execute(text(f"SELECT {columns} FROM sqlaudit_change ORDER BY id"))
        ]
        query = "SELECT MAX(ABS(TIMESTAMPDIFF(SECOND, recorded_at, UTC_TIMESTAMP(6)))) FROM sqlaudit_change"
        assert (await connection.execute(text(query))).scalar_one() < 600
    assert rows[:3] == rows[3:]
    assert len(rows) == 6


async def test_what_a_lax_mode_cuts_off_is_told_as_it_is(database: Database, engine: AsyncEngine) -> None:
    """A writer that isn't strict is not refused, and the trail tells what the row holds."""
    metadata = MetaData()
    table = tracked(
        Table(
            "short",
            metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("name", String(3)),
            Column("size", mysql.TINYINT),
        )
    )
    dated = tracked(Table("dated", metadata, Column("id", Integer, primary_key=True), Column("day", mysql.DATE)))
    await create(engine, metadata)
    other = database.make_async_engine()
    async with other.connect() as connection:
        await write(connection, "SET sql_mode = ''")
        await write(connection, "INSERT INTO short VALUES (1, 'abcdef', 1000), (2, 'ab', 'x')")
        await write(connection, "INSERT INTO dated VALUES (1, '0000-00-00'), (2, '2024-00-31')")
        await connection.commit()
        rows = await connection.run_sync(read_rows, [table])
    await other.dispose()

    trail = await stored_trail(engine)
    assert [change.new_values for change in trail[:2]] == [rows["short", "1"], rows["short", "2"]]
    assert rows["short", "1"] == {"id": 1, "name": "abc", "size": 127}
    assert [change.new_values for change in trail[2:]] == [
        {"id": 1, "day": "0000-00-00"},
        {"id": 2, "day": "2024-00-31"},
    ]
    assert dated.name == "dated"


# --- names -----------------------------------------------------------------------------------------------------------


NAMES = (
    "back`tick",
    'it\'s "quoted"',
    "100%s %(x)s :y ?",
    "new\nline -- */ ;",
    "ünï ✓",
    "back\\slash",
    "x" * 64,
    "x" * 63 + "y",
    "Case",
    "case",
    "NEW",
    "published",
    "select",
)


async def test_hostile_names_are_told(engine: AsyncEngine) -> None:
    """Tables, columns and labels may be named as MariaDB lets them be; each has triggers of its own."""
    metadata = MetaData()
    tables = [
        tracked(
            Table(
                name,
                metadata,
                Column(f"k{name}"[:64].replace("\n", " "), Integer, primary_key=True, autoincrement=False),
                Column(f"v{name}"[:64].replace("\n", " "), String(20)),
            )
        )
        for name in NAMES
    ]
    lower = tracked(
        Table(
            "re'`ferring",
            metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("to % `it`", Integer, ForeignKey(tables[0].primary_key.columns.values()[0], ondelete="CASCADE")),
        )
    )
    await create(engine, metadata)
    assert await check_audit_schema(engine, metadata=metadata) == []

    async with engine.begin() as connection:
        for table in tables:
            key, value = table.columns
            await connection.execute(table.insert().values({key: 1, value: "a'\\b"}))
            await connection.execute(table.update().values({value: "%s"}))
        await connection.execute(lower.insert().values({"id": 1, "to % `it`": 1}))
        for table in tables:
            await connection.execute(table.delete())

    trail = await stored_trail(engine)
    for table in tables:
        key_name, value_name = (column.name for column in table.columns)
        assert [
            (change.operation, change.resource_id, change.old_values, change.new_values)
            for change in trail
            if change.resource_type == table.name
        ] == [
            ("insert", "1", None, {key_name: 1, value_name: "a'\\b"}),
            ("update", "1", {value_name: "a'\\b"}, {value_name: "%s"}),
            ("delete", "1", {key_name: 1, value_name: "%s"}, None),
        ]
    assert [change.operation for change in trail if change.resource_type == lower.name] == ["insert", "delete"]


@asynccontextmanager
async def another_schema(server: URL) -> AsyncIterator[str]:
    """Give the name of another schema on the server."""
    with mariadb_database(server) as other:
        engine = other.make_engine()
        name = engine.url.database
        engine.dispose()
        assert name is not None
        yield name


async def test_several_schemas_are_told(engine: AsyncEngine, mariadb_server: URL) -> None:
    """Tables of another schema write the one trail; foreign keys from one to the other are followed."""
    async with another_schema(mariadb_server) as other:
        metadata = MetaData()
        there = tracked(
            Table(
                "there",
                metadata,
                Column("id", Integer, primary_key=True, autoincrement=False),
                Column("name", String(9)),
                Column("number", Double),
                schema=other,
            )
        )
        untracked = Table(
            "untracked", metadata, Column("id", Integer, primary_key=True, autoincrement=False), schema=other
        )
        here = tracked(
            Table(
                "here",
                metadata,
                Column("id", Integer, primary_key=True, autoincrement=False),
                Column("there_id", Integer, ForeignKey(there.c.id, ondelete="SET NULL")),
                Column("untracked_id", Integer, ForeignKey(untracked.c.id, ondelete="CASCADE")),
            )
        )
        await create(engine, metadata)
        try:
            assert await check_audit_schema(engine, metadata=metadata) == []
            changes = await compared(
                engine,
                [there, here],
                f"INSERT INTO {other}.there VALUES (1, 'a', 0.1), (2, 'b', 1e100)",
                f"INSERT INTO {other}.untracked VALUES (1)",
                "INSERT INTO here VALUES (1, 1, NULL), (2, 2, 1)",
                f"DELETE FROM {other}.there WHERE id = 1",
                f"DELETE FROM {other}.untracked",
            )
        finally:
            await execute(engine, "DROP TABLE here")
    assert [(name, operation) for name, _, operation, *_ in changes][-3:] == [
        ("here", "update"),
        ("there", "delete"),
        ("here", "delete"),
    ]


# --- who writes ------------------------------------------------------------------------------------------------------


_STRANGER = """
import sys, pymysql
host, port, user, password, name = sys.argv[1:]
connection = pymysql.connect(host=host, port=int(port), user=user, password=password, database=name, charset="latin1")
with connection.cursor() as cursor:
    cursor.execute("SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'")
    cursor.execute('INSERT INTO "item" ("id", "name") VALUES (1, \\'\\xe9\\'), (2, \\'b\\')')
    cursor.execute("DELETE FROM item WHERE id = 2")
connection.commit()
"""


async def test_a_program_that_has_never_heard_of_us_is_told(engine: AsyncEngine) -> None:
    """A raw connection of another process is recorded with no actor, and its user of the database as a fact."""
    metadata = MetaData()
    items(metadata)
    await create(engine, metadata)
    url = engine.url
    arguments = [url.host or "", str(url.port or 3306), url.username or "", url.password or "", url.database or ""]

    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", _STRANGER, *map(str, arguments)], check=True)

    trail = await stored_trail(engine)
    assert [(change.operation, change.resource_id, change.changed_by) for change in trail] == [
        ("insert", "1", None),
        ("insert", "2", None),
        ("delete", "2", None),
    ]
    assert trail[0].new_values == {"id": 1, "code": None, "name": "é", "amount": 0}
    assert {change.context["database_user"] for change in trail if change.context} == {url.username}
    assert trail[0].context is not None
    assert trail[0].context.keys() == {"database_user", "client_address"}
    first, second, third = (change.transaction_id for change in trail)
    assert first == second != third


async def published(connection: AsyncConnection) -> Any:
    """Return what the connection's variable holds."""
    return (await connection.execute(text("SELECT @sqlaudit_published"))).scalar_one()


async def test_the_variable_is_cleared(database: Database) -> None:
    """The next who gets the connection from the pool finds nobody there, after a commit, a rollback, a failure."""
    metadata = MetaData()
    table = items(metadata)
    engine = database.make_async_engine(pool_size=1, max_overflow=0)
    maker: Maker = async_sessionmaker(engine)
    await create(engine, metadata)
    register_hooks(maker)
    for number, end in enumerate(("commit", "rollback", "close"), start=1):
        with audit_context(user_id=number):
            async with maker() as session:
                await session.execute(table.insert().values(id=number))
                assert f'"user":"{number}"' in await published(await session.connection())
                await getattr(session, end)()
        async with engine.connect() as connection:
            assert await published(connection) is None
            await write(connection, f"INSERT INTO item (id) VALUES ({number + 10})")
            await connection.commit()
        async with engine.connect() as connection, audited_connection(connection, user_id="x"):
            await write(connection, f"INSERT INTO item (id) VALUES ({number + 20})")
            await connection.commit()
        with audit_context(user_id=number + 100):
            async with maker() as session:
                await session.execute(table.insert().values(id=number + 30))
                await session.commit()

    trail = [(change.resource_id, change.changed_by) for change in await stored_trail(engine)]
    assert trail == [
        ("1", "1"), ("11", None), ("21", "x"), ("31", "101"),
        ("12", None), ("22", "x"), ("32", "102"),
        ("13", None), ("23", "x"), ("33", "103"),
    ]  # fmt: skip
    await engine.dispose()


def test_the_variable_is_cleared_without_asyncio(database: Database) -> None:
    """The same for plain sessions."""
    metadata = MetaData()
    table = items(metadata)
    set_config(SQLAuditConfig())
    engine = database.make_engine(pool_size=1, max_overflow=0)
    metadata.create_all(engine)
    maker: sessionmaker[Session] = sessionmaker(engine)
    register_hooks(maker)
    for number, end in enumerate(("commit", "rollback", "close"), start=1):
        with audit_context(user_id=number), maker() as session:
            session.execute(table.insert().values(id=number))
            assert session.scalar(text("SELECT @sqlaudit_published")) is not None
            getattr(session, end)()
        with engine.begin() as connection:
            assert connection.scalar(text("SELECT @sqlaudit_published")) is None
            connection.execute(table.insert().values(id=number + 10))
    with engine.connect() as connection:
        query = text("SELECT resource_id, changed_by FROM sqlaudit_change ORDER BY id")
        assert [tuple(row) for row in connection.execute(query)] == [
            ("1", "1"),
            ("11", None),
            ("12", None),
            ("13", None),
        ]
    engine.dispose()


# --- what stands in the database -------------------------------------------------------------------------------------


async def findings(engine: AsyncEngine, metadata: MetaData) -> list[tuple[str, str, str]]:
    """Return kind, problem and name of all that isn't as it should be."""
    return [(each.kind, each.problem, each.name) for each in await check_audit_schema(engine, metadata=metadata)]


async def test_what_was_altered_is_found(engine: AsyncEngine) -> None:
    """Triggers and functions that were dropped, or made otherwise, are reported, and made anew."""
    metadata, _ = family()
    await create(engine, metadata)
    assert await findings(engine, metadata) == []

    await execute(
        engine,
        "DROP TRIGGER sqlaudit_insert_parent",
        "DROP TRIGGER sqlaudit_before_delete_between",
        "CREATE OR REPLACE TRIGGER sqlaudit_update_parent AFTER UPDATE ON parent FOR EACH ROW SET @nothing = 1",
        "CREATE OR REPLACE FUNCTION sqlaudit_quoted(value LONGTEXT CHARACTER SET utf8mb4) "
        "RETURNS LONGTEXT CHARACTER SET utf8mb4 DETERMINISTIC NO SQL\nBEGIN\n  RETURN '\"\"';\nEND",
    )
    assert sorted(await findings(engine, metadata)) == [
        ("function", "outdated", "sqlaudit_quoted"),
        ("trigger", "missing", "sqlaudit_before_delete_between"),
        ("trigger", "missing", "sqlaudit_insert_parent"),
        ("trigger", "outdated", "sqlaudit_update_parent"),
    ]
    await create_audit_tables(engine, metadata=metadata)

    assert await findings(engine, metadata) == []


async def test_a_foreign_key_that_comes_later_is_found(engine: AsyncEngine) -> None:
    """What a foreign key of a migration does is told once the triggers are up to date; they are missing until then."""
    metadata = MetaData()
    table = items(metadata)
    await create(engine, metadata)
    await execute(
        engine,
        "CREATE TABLE code (code VARCHAR(20) PRIMARY KEY)",
        "ALTER TABLE item ADD FOREIGN KEY (code) REFERENCES code (code) ON DELETE SET NULL",
    )
    assert await findings(engine, metadata) == [("trigger", "missing", "sqlaudit_before_delete_code")]
    await create_audit_tables(engine, metadata=metadata)
    await execute(engine, "INSERT INTO code VALUES ('a')", "INSERT INTO item (id, code) VALUES (1, 'a')")

    [change] = await compared(engine, [table], "DELETE FROM code")
    assert change == ("item", "1", "update", {"code": "a"}, {"code": None})


def referring(name: str, capture: Capture | None) -> MetaData:
    """Return an untracked parent, and a table that refers to it, tracked unless *capture* is None."""
    metadata = MetaData()
    Table("parent", metadata, Column("id", Integer, primary_key=True, autoincrement=False))
    child = Table(
        name,
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("parent_id", Integer, ForeignKey("parent.id", ondelete="CASCADE")),
    )
    if capture is not None:
        track(child, capture=capture)
    return metadata


async def triggers_of(engine: AsyncEngine) -> list[str]:
    """Return the names of all triggers, as the catalogue has them."""
    query = "SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = DATABASE() ORDER BY 1"
    async with engine.connect() as connection:
        return [row[0] for row in await connection.exec_driver_sql(query)]


async def test_what_records_cascades_goes_with_the_table_that_refers(engine: AsyncEngine) -> None:
    """What stands at an untracked parent is its child's: it goes when sessions record that, and not before."""
    await create(engine, referring("child", Capture.TRIGGERS))
    standing = await triggers_of(engine)
    assert "sqlaudit_before_delete_parent" in standing

    for other in (referring("other", Capture.SESSION), referring("child", None)):
        await create_audit_tables(engine, metadata=other)
        assert await triggers_of(engine) == standing
        assert {problem for _, problem, _ in await findings(engine, other)} == {"foreign"}

    moved = referring("child", Capture.SESSION)
    await create_audit_tables(engine, metadata=moved)

    assert await triggers_of(engine) == []
    assert await findings(engine, moved) == []


async def test_what_records_a_table_that_was_dropped_goes(engine: AsyncEngine) -> None:
    """A trigger of the parent that would fail each DELETE, for want of the child, is dropped, whoever declares what."""
    await create(engine, referring("child", Capture.TRIGGERS))
    await execute(engine, "INSERT INTO parent VALUES (1)", "DROP TABLE child")
    with pytest.raises(DBAPIError, match="doesn't exist"):
        await execute(engine, "DELETE FROM parent")

    await create_audit_tables(engine, metadata=MetaData())

    await execute(engine, "DELETE FROM parent")
    assert await triggers_of(engine) == []


async def test_the_guard_refuses_what_replaces(engine: AsyncEngine) -> None:
    """Upserts, REPLACE, and statements of several tables, too, leave a guarded trail as it is."""
    metadata = MetaData()
    items(metadata)
    await create(engine, metadata, append_only=True)
    await execute(engine, "INSERT INTO item (id) VALUES (1)")
    columns = "id, transaction_id, recorded_at, operation, resource_type, resource_id"
    before = await stored_trail(engine)

    again = f"INSERT INTO sqlaudit_change ({columns}) SELECT {columns} FROM sqlaudit_change AS old"
    for statement in (
        f"{again} ON DUPLICATE KEY UPDATE changed_by = 'x'",
        f"REPLACE INTO sqlaudit_change ({columns}) SELECT {columns} FROM sqlaudit_change",
        "UPDATE item, sqlaudit_change SET changed_by = 'x'",
        "DELETE sqlaudit_change, item FROM sqlaudit_change, item",
        "DELETE IGNORE FROM sqlaudit_change",
    ):
        with pytest.raises(DBAPIError, match="append-only"):
            await execute(engine, statement)

    assert await stored_trail(engine) == before


async def test_mysql_is_refused(database: Database) -> None:
    """Triggers that are MariaDB's aren't installed where the server is MySQL; what sessions record needs none."""
    plain = database.make_engine()
    dialect: Any = plain.dialect
    metadata = MetaData()
    table = items(metadata)
    with plain.connect() as connection:
        create_audit_tables(connection, config=SQLAuditConfig(), metadata=MetaData())
        table.create(connection)
        dialect.is_mariadb = False
        with pytest.raises(CaptureError, match=r"this server is MySQL.*Capture\.SESSION"):
            create_audit_tables(connection, config=SQLAuditConfig(), metadata=metadata)
        with pytest.raises(CaptureError, match=r"this server is MySQL.*append_only"):
            create_audit_tables(connection, config=SQLAuditConfig(append_only=True), metadata=MetaData())
        create_audit_tables(connection, config=SQLAuditConfig(), metadata=MetaData())
        triggers = "SELECT count(*) FROM information_schema.triggers WHERE trigger_schema = DATABASE()"
        assert connection.scalar(text(triggers)) == 0
    plain.dispose()


# --- rights ----------------------------------------------------------------------------------------------------------


@pytest.fixture(name="administrator")
def _administrator(database: Database) -> Iterator[Connection]:
    """Give a connection that may do everything, each statement a transaction of its own."""
    engine = database.make_engine(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture(name="limited")
def _limited(administrator: Connection) -> Iterator[Engine]:
    """Give the engine of a user who may create tables, and read and write them."""
    name, password = f"sqlaudit_{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    url = administrator.engine.url.set(username=name, password=password)
    administrator.execute(text(f"CREATE USER {name}@'%' IDENTIFIED BY '{password}'"))
    rights = "CREATE, DROP, INDEX, REFERENCES, SELECT, INSERT, UPDATE, DELETE"
    administrator.execute(text(f"GRANT {rights} ON {url.database}.* TO {name}@'%'"))
    engine = create_engine(url)
    yield engine
    engine.dispose()
    administrator.execute(text(f"DROP USER {name}@'%'"))


def test_who_installs_needs_rights(administrator: Connection, limited: Engine) -> None:
    """A right that is missing is named; with those that the error names, it works."""
    metadata = MetaData()
    items(metadata)
    set_config(SQLAuditConfig())
    with pytest.raises(CaptureError, match="GRANT TRIGGER, CREATE ROUTINE and ALTER ROUTINE"):
        metadata.create_all(limited)

    place = f"ON {limited.url.database}.* TO {limited.url.username}@'%'"
    administrator.execute(text(f"GRANT TRIGGER, CREATE ROUTINE, ALTER ROUTINE {place}"))
    limited.dispose()
    metadata.create_all(limited)

    assert check_audit_schema_sync(administrator.engine, metadata=metadata) == []


def may(user: Engine, statement: str) -> bool:
    """Return whether a user of the database may do something; nothing stays of it."""
    user.dispose()
    with user.connect() as connection:
        try:
            connection.exec_driver_sql(statement)
        except DBAPIError as error:
            if "denied" not in str(error):
                raise
            return False
    return True


async def test_grants_leave_nothing_but_adding_and_reading(
    engine: AsyncEngine, administrator: Connection, limited: Engine
) -> None:
    """A user with rights to the whole schema, of his own or by a role, is refused; the others' are taken away."""
    set_config(SQLAuditConfig())
    await create_audit_tables(engine, metadata=MetaData())
    name, schema = f"{limited.url.username}@'%'", limited.url.database
    asked, by_role = f"{limited.url.username}@%", f"{limited.url.username}_role"
    trail = f"{schema}.sqlaudit_change"
    columns = "transaction_id, recorded_at, operation, resource_type, resource_id"
    add = f"INSERT INTO {trail} ({columns}) VALUES ('0', NOW(), 'insert', 'Item', '1')"
    refused = [f"DELETE FROM {trail}", f"UPDATE {trail} SET reason = 'x'", f"TRUNCATE {trail}", f"DROP TABLE {trail}"]
    with pytest.raises(CaptureError, match="DELETE, DROP, UPDATE on more than the trail"):
        append_only_grants_sync(administrator, asked)

    administrator.execute(text(f"REVOKE ALL PRIVILEGES, GRANT OPTION FROM {name}"))
    administrator.execute(text(f"GRANT DELETE, DROP ON {trail} TO {name} WITH GRANT OPTION"))
    administrator.execute(text(f"GRANT UPDATE (reason) ON {trail} TO {name}"))
    assert [may(limited, each) for each in refused[:2]] == [True, True]
    administrator.execute(text(f"CREATE ROLE {by_role}"))
    try:
        administrator.execute(text(f"GRANT {by_role} TO {name}"))
        administrator.execute(text(f"SET DEFAULT ROLE {by_role} FOR {name}"))
        administrator.execute(text(f"GRANT DELETE ON {schema}.* TO {by_role}"))
        with pytest.raises(CaptureError, match=f"DELETE on more than the trail.*{by_role}"):
            append_only_grants_sync(administrator, asked)
        administrator.execute(text(f"REVOKE DELETE ON {schema}.* FROM {by_role}"))
        administrator.execute(text(f"GRANT DELETE ON {trail} TO {by_role}"))
        for each in append_only_grants_sync(administrator, asked):
            administrator.exec_driver_sql(each, execution_options={"no_parameters": True})

        assert [may(limited, each) for each in refused] == [False] * 4
        assert may(limited, add)
        assert may(limited, f"SELECT * FROM {trail}")
        with pytest.raises(CaptureError, match="may not look into the rights"):
            append_only_grants_sync(limited, asked)
    finally:
        administrator.execute(text(f"DROP ROLE {by_role}"))


async def test_who_writes_needs_none(engine: AsyncEngine, administrator: Connection, limited: Engine) -> None:
    """Who may write the rows alone is recorded, with and without a session; to look into triggers needs a right."""
    metadata = MetaData()
    table = items(metadata)
    await create(engine, metadata)
    name, schema = f"{limited.url.username}@'%'", limited.url.database
    administrator.execute(text(f"REVOKE ALL PRIVILEGES, GRANT OPTION FROM {name}"))
    administrator.execute(text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.item TO {name}"))
    with limited.begin() as connection:
        connection.execute(text("INSERT INTO item (id, code) VALUES (1, 'a')"))
    with pytest.raises(DBAPIError, match="denied"), limited.begin() as connection:
        connection.execute(text("SELECT * FROM sqlaudit_change"))
    administrator.execute(text(f"GRANT SELECT, INSERT ON {schema}.sqlaudit_change TO {name}"))
    with audit_context(user_id=7), Session(limited) as session:
        register_hooks(session)
        session.execute(table.update().values(code="b"))
        session.commit()

    trail = await stored_trail(engine)
    assert [(change.operation, change.changed_by) for change in trail] == [("insert", None), ("update", "7")]
    assert trail[0].context is not None
    assert trail[0].context["database_user"] == limited.url.username
    with pytest.raises(CaptureError, match="may not look into"):
        check_audit_schema_sync(limited, metadata=metadata)
