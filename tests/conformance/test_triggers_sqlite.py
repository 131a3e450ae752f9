"""Trigger capture where SQLite has ways of its own: rows that are replaced, storage classes, rowids, its files."""

import base64
import json
import math
import random
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from databases import Database
from observing import StoredChange, read_trail
from sqlaudit import (
    Capture,
    SQLAuditConfig,
    audit_context,
    audited_connection,
    check_audit_schema_sync,
    create_audit_tables_sync,
    register_hooks,
    set_config,
    track,
)
from sqlaudit.exceptions import CaptureError, TrackingError

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

Row = dict[str, Any]

_declared: list[Table] = []


@pytest.fixture(autouse=True)
def _one_declaration_at_a_time() -> Iterator[None]:
    """Tables of one name in several MetaData are one in the database: those of other tests count no more."""
    yield
    for table in _declared:
        table.info.clear()
    _declared.clear()


def tracked(name: str, *columns: Any, **options: Any) -> Table:
    """Return a table of a MetaData of its own, which triggers record."""
    table = track(Table(name, MetaData(), *columns), capture=Capture.TRIGGERS, **options)
    _declared.append(table)
    return table


def declared() -> MetaData:
    """Return the MetaData of the table declared last: those of other tests may have tables of the same names."""
    return _declared[-1].metadata


def install(engine: Engine, *tables: Table, ddl: Sequence[str] = ()) -> None:
    """Create the tables, by *ddl* where SQLAlchemy has no words for it, the trail and the triggers."""
    set_config(SQLAuditConfig())
    with engine.begin() as connection:
        for statement in ddl:
            connection.exec_driver_sql(statement)
        for table in tables:
            table.metadata.create_all(connection)


@pytest.fixture(name="plain")
def _plain(database: Database) -> Iterator[Engine]:
    engine = database.make_engine()
    yield engine
    engine.dispose()


@pytest.fixture(name="client")
def _client(plain: Engine) -> Iterator[sqlite3.Connection]:
    """A client that has never heard of sqlaudit, nor of SQLAlchemy; each statement is a transaction of its own."""
    client = connected(plain)
    yield client
    client.close()


def connected(engine: Engine) -> sqlite3.Connection:
    """Return a connection of Python's own driver to the file of *engine*."""
    return sqlite3.connect(str(engine.url.database), isolation_level=None, timeout=30)


def trail_of(engine: Engine) -> list[StoredChange]:
    """Return what is committed of the trail."""
    with engine.connect() as connection:
        return read_trail(connection)


def replayed(changes: Sequence[StoredChange]) -> dict[str, Row]:
    """Return the rows that the changes of a table lead to, by resource; fail where one doesn't follow from the last."""
    rows: dict[str, Row] = {}
    for change in changes:
        if change.operation == "insert":
            assert change.resource_id not in rows, change
            assert change.new_values is not None
            rows[change.resource_id] = change.new_values
            continue
        row = rows[change.resource_id]
        assert change.old_values is not None
        assert {name: row[name] for name in change.old_values} == change.old_values, change
        if change.operation == "update":
            assert change.new_values is not None
            assert change.old_values.keys() == change.new_values.keys()
            assert all(change.old_values[name] != value for name, value in change.new_values.items()), change
            rows[change.resource_id] = {**row, **change.new_values}
        else:
            assert row == change.old_values, change
            del rows[change.resource_id]
    return rows


def held(client: sqlite3.Connection, table: str) -> list[Row]:
    """Return the rows of a table as they are, sorted."""
    cursor = client.execute(f"SELECT * FROM {table}")
    names = [name for name, *_ in cursor.description]
    return _sorted(dict(zip(names, row, strict=True)) for row in cursor)


def _sorted(rows: Any) -> list[Row]:
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True, default=str))


def story(changes: Sequence[StoredChange]) -> list[tuple[str, str, Row | None, Row | None]]:
    """Return what is told, without who and when."""
    return [(each.operation, each.resource_id, each.old_values, each.new_values) for each in changes]


# --- rows that are replaced ------------------------------------------------------------------------------------------

ITEM = "id INTEGER PRIMARY KEY, code TEXT COLLATE NOCASE, a INTEGER, b TEXT"
SHAPES = {
    "rowid": [f"CREATE TABLE item ({ITEM}, UNIQUE (code), UNIQUE (a, b))"],
    "without rowid": [f"CREATE TABLE item ({ITEM}, UNIQUE (code), UNIQUE (a, b)) WITHOUT ROWID"],
    "replacing": [f"CREATE TABLE item ({ITEM}, UNIQUE (code) ON CONFLICT REPLACE, UNIQUE (a, b) ON CONFLICT REPLACE)"],
    "indexes": [
        f"CREATE TABLE item ({ITEM})",
        "CREATE UNIQUE INDEX of_code ON item (lower(code) COLLATE BINARY DESC) WHERE code IS NOT NULL",
        'CREATE UNIQUE INDEX of_both ON item (b || ",", "a" + 1) WHERE a > 0',
    ],
}


def item() -> Table:
    """Return the declaration of every shape of the table."""
    return tracked(
        "item", Column("id", Integer, primary_key=True), *(Column(name, String) for name in ("code", "a", "b"))
    )


def statements(random_: random.Random) -> Iterator[str]:
    """Yield statements that replace, move, skip, fail and change rows, forever."""

    def number() -> int:
        return random_.randint(1, 7)

    def code() -> str:
        return random_.choice(["NULL", "'x'", "'X'", "'y'", "'z'", f"'{number()}'"])

    def row() -> str:
        return (
            f"({random_.choice(['NULL', str(number()), str(number())])}, {code()}, {random_.randint(0, 2)}, {code()})"
        )

    while True:
        way = random_.choice(["", "", "OR REPLACE", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ROLLBACK"])
        yield random_.choice(
            [
                f"INSERT {way} INTO item (id, code, a, b) VALUES {row()}",
                f"INSERT {way} INTO item (id, code, a, b) VALUES {row()}, {row()}, {row()}",
                f"REPLACE INTO item SELECT id + 1, code, a, b FROM item WHERE id < {number()}",
                f"UPDATE {way} item SET id = id + {random_.choice([-1, 1])} WHERE id >= {number()}",
                f"UPDATE {way} item SET code = {code()}, a = {number()} WHERE id = {number()}",
                f"UPDATE {way} item SET a = {number()}, b = {code()}",
                f"INSERT INTO item VALUES {row()} ON CONFLICT (id) DO UPDATE SET code = excluded.code, a = a + 1",
                f"INSERT INTO item VALUES {row()} ON CONFLICT DO NOTHING",
                f"DELETE FROM item WHERE id % 3 = {number() % 3}",
            ]
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_recursive", [False, True])
def test_rows_that_are_replaced_are_told(plain: Engine, shape: str, is_recursive: bool) -> None:
    """After each of many statements, with savepoints that are rolled back, the trail leads to what the table holds."""
    install(plain, item(), ddl=SHAPES[shape])
    client = connected(plain)
    client.execute(f"PRAGMA recursive_triggers = {is_recursive:d}")
    random_ = random.Random(f"{shape} {is_recursive}")
    replaced = 0
    changes: list[StoredChange] = []
    for number, statement in zip(range(150), statements(random_), strict=False):
        is_taken_back = number % 7 == 0
        if is_taken_back:
            client.execute("BEGIN")
            client.execute("SAVEPOINT one")
        try:
            before = {row["id"] for row in held(client, "item")}
            client.execute(statement)
            replaced += len(before - {row["id"] for row in held(client, "item")})
        except sqlite3.IntegrityError:
            pass
        if is_taken_back and client.in_transaction:
            client.execute("ROLLBACK TO one")
            client.execute("COMMIT")
        changes = trail_of(plain)
        assert _sorted(replayed(changes).values()) == held(client, "item"), statement
    client.close()

    assert replaced > 10
    assert {change.operation for change in changes} == {"insert", "update", "delete"}


@pytest.mark.parametrize("is_recursive", [False, True])
def test_a_replaced_row_is_deleted_before_it_is_inserted(
    plain: Engine, client: sqlite3.Connection, is_recursive: bool
) -> None:
    """INSERT OR REPLACE tells each row that it takes away, in one transaction with the new one."""
    install(plain, item(), ddl=SHAPES["rowid"])
    client.execute(f"PRAGMA recursive_triggers = {is_recursive:d}")
    client.execute("INSERT INTO item VALUES (1, 'x', 1, 'a'), (2, 'y', 2, 'b'), (3, 'z', 3, 'c')")

    client.execute("REPLACE INTO item VALUES (1, 'y', 3, 'c')")

    *deleted, inserted = trail_of(plain)[3:]
    assert sorted(story(deleted)) == [
        ("delete", "1", {"id": 1, "code": "x", "a": 1, "b": "a"}, None),
        ("delete", "2", {"id": 2, "code": "y", "a": 2, "b": "b"}, None),
        ("delete", "3", {"id": 3, "code": "z", "a": 3, "b": "c"}, None),
    ]
    assert story([inserted]) == [("insert", "1", None, {"id": 1, "code": "y", "a": 3, "b": "c"})]
    if not is_recursive:
        assert {each.transaction_id for each in deleted} == {inserted.transaction_id}


# --- what foreign keys and other triggers do -------------------------------------------------------------------------


def test_cascades_are_told(plain: Engine, client: sqlite3.Connection) -> None:
    """What ON DELETE and ON UPDATE do to rows of tracked tables is told, whatever statement does it."""
    parent = tracked("parent", Column("id", Integer, primary_key=True))
    actions = {"gone": "CASCADE", "emptied": "SET NULL", "reset": "SET DEFAULT"}
    children = [
        tracked(name, Column("id", Integer, primary_key=True), Column("parent_id", Integer)) for name in actions
    ]
    ddl = [
        "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
        *(
            f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, parent_id INTEGER DEFAULT 9 "
            f"REFERENCES parent ON DELETE {action} ON UPDATE {action})"
            for name, action in actions.items()
        ),
    ]
    install(plain, parent, *children, ddl=ddl)
    client.execute("PRAGMA foreign_keys = ON")
    client.execute("INSERT INTO parent VALUES (1), (2), (3), (9)")
    for name in actions:
        client.execute(f"INSERT INTO {name} VALUES (1, 1), (2, 1), (3, 2), (4, 3)")

    for statement in (
        "UPDATE parent SET id = 5 WHERE id = 1",
        "DELETE FROM parent WHERE id = 2",
        "REPLACE INTO parent VALUES (3)",
        "UPDATE OR REPLACE parent SET id = 3 WHERE id = 5",
        "DELETE FROM parent WHERE id = 3",
    ):
        client.execute(statement)
        changes = trail_of(plain)
        for name in ("parent", *actions):
            of_table = [change for change in changes if change.resource_type == name]
            assert _sorted(replayed(of_table).values()) == held(client, name), (statement, name)
    assert held(client, "gone") == []
    assert {row["parent_id"] for row in held(client, "emptied")} == {None}
    assert {row["parent_id"] for row in held(client, "reset")} == {9}


def test_what_triggers_of_the_application_write_is_told(plain: Engine, client: sqlite3.Connection) -> None:
    """A trigger that writes the row that fired it, and others, is told in the order in which rows changed."""
    table = tracked("noted", Column("id", Integer, primary_key=True), Column("text", String), Column("times", Integer))
    ddl = [
        "CREATE TABLE noted (id INTEGER PRIMARY KEY, text TEXT UNIQUE, times INTEGER DEFAULT 0)",
        """CREATE TRIGGER trimmed AFTER INSERT ON noted WHEN NEW.text <> trim(NEW.text)
        BEGIN UPDATE OR REPLACE noted SET text = trim(NEW.text) WHERE id = NEW.id; END""",
    ]
    later = (
        "CREATE TRIGGER counted AFTER UPDATE OF text ON noted BEGIN UPDATE noted SET times = times + 1 "
        "WHERE id = NEW.id; DELETE FROM noted WHERE text = 'gone'; END"
    )
    install(plain, table, ddl=ddl)
    client.execute(later)

    # SQLite lets the newest trigger go first: ours have to be made anew.
    assert {each.problem for each in check_audit_schema_sync(plain, metadata=declared())} == {"outdated"}
    create_audit_tables_sync(plain, metadata=declared())
    assert check_audit_schema_sync(plain, metadata=declared()) == []
    for statement in (
        "INSERT INTO noted VALUES (1, ' a ', 0), (2, 'b', 0), (3, 'gone', 0)",
        "INSERT INTO noted VALUES (4, 'a  ', 0)",
        "UPDATE noted SET text = text || '!'",
        "UPDATE OR REPLACE noted SET text = 'same'",
    ):
        client.execute(statement)
        assert _sorted(replayed(trail_of(plain)).values()) == held(client, "noted"), statement
    assert [row["text"] for row in held(client, "noted")] == ["same"]


# --- tables of every shape -------------------------------------------------------------------------------------------


def test_a_column_may_be_called_rowid(plain: Engine, client: sqlite3.Connection) -> None:
    """Columns called like a rowid hide it; the triggers find another name, and refuse if there is none."""
    table = tracked("named", Column("rowid", Integer, primary_key=True, autoincrement=False), Column("_rowid_", String))
    ddl = ["CREATE TABLE named (rowid TEXT PRIMARY KEY, _rowid_ TEXT UNIQUE)"]
    install(plain, table, ddl=ddl)
    for statement in (
        "INSERT INTO named VALUES ('a', 'x'), ('b', 'y')",
        "REPLACE INTO named VALUES ('a', 'y')",
        "UPDATE OR REPLACE named SET rowid = 'c', _rowid_ = 'z'",
    ):
        client.execute(statement)
        assert _sorted(replayed(trail_of(plain)).values()) == held(client, "named"), statement
    full = tracked("full", *(Column(name, Integer, primary_key=name == "oid") for name in ("oid", "rowid", "_rowid_")))
    with pytest.raises(TrackingError, match="columns called rowid, _rowid_ and oid"):
        install(plain, full, ddl=["CREATE TABLE full (oid INT PRIMARY KEY, rowid INT, _rowid_ INT)"])


def test_generated_columns_are_told(plain: Engine, client: sqlite3.Connection) -> None:
    """What SQLite computes, stored or not, is told with what it is computed of."""
    names = ("twice", "text")
    table = tracked(
        "computed", Column("id", Integer, primary_key=True), Column("n", Integer), *(Column(n, String) for n in names)
    )
    ddl = [
        """CREATE TABLE computed (
            id INTEGER PRIMARY KEY, n INTEGER, twice INTEGER AS (n * 2) STORED UNIQUE, text TEXT AS ('is ' || n) VIRTUAL
        )"""
    ]
    install(plain, table, ddl=ddl)
    client.execute("INSERT INTO computed (id, n) VALUES (1, 1), (2, 2)")
    client.execute("UPDATE computed SET n = 5 WHERE id = 1")
    client.execute("REPLACE INTO computed (id, n) VALUES (3, 5)")

    changes = trail_of(plain)
    assert _sorted(replayed(changes).values()) == held(client, "computed")
    assert changes[2].new_values == {"n": 5, "twice": 10, "text": "is 5"}


def test_a_key_of_several_columns_may_change(plain: Engine, client: sqlite3.Connection) -> None:
    """A changed key ends one resource and begins another, in one transaction; without a rowid, too."""
    columns = Column("a", String, primary_key=True), Column("b", Integer, primary_key=True), Column("c", String)
    install(
        plain,
        tracked("pair", *columns),
        ddl=["CREATE TABLE pair (a TEXT, b INTEGER, c TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID"],
    )
    client.execute("""INSERT INTO pair VALUES ('x"', 1, 'c'), ('y', 1, 'd')""")
    client.execute("""UPDATE OR REPLACE pair SET a = 'y' WHERE c = 'c'""")

    deleted, moved, inserted = trail_of(plain)[2:]
    assert story([deleted]) == [("delete", '["y",1]', {"a": "y", "b": 1, "c": "d"}, None)]
    assert story([moved]) == [("delete", '["x\\"",1]', {"a": 'x"', "b": 1, "c": "c"}, None)]
    assert story([inserted]) == [("insert", '["y",1]', None, {"a": "y", "b": 1, "c": "c"})]
    assert moved.transaction_id == inserted.transaction_id


HOSTILE = ("it's", 'two"quotes"', "100%s %(x)s", "a\nb -- c", "ключ ✓", "$.x['y']", "select", ":name ?", "a\\b")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_may_be_anything(plain: Engine, name: str) -> None:
    """Tables, columns and labels are quoted wherever the triggers name them."""
    key = f"{name} id"
    table = tracked(name, Column(key, Integer, primary_key=True), Column(name, String, unique=True), table_label=name)
    install(plain, table)
    assert check_audit_schema_sync(plain, metadata=declared()) == []
    with plain.begin() as connection:
        connection.execute(table.insert().values({key: 1, name: "a"}))
        connection.execute(table.update().values({name: name}))
        connection.execute(table.insert().prefix_with("OR REPLACE").values({key: 2, name: name}))
        connection.execute(table.delete())

    changes = trail_of(plain)
    assert {change.resource_type for change in changes} == {name}
    assert story(changes) == [
        ("insert", "1", None, {key: 1, name: "a"}),
        ("update", "1", {name: "a"}, {name: name}),
        ("delete", "1", {key: 1, name: name}, None),
        ("insert", "2", None, {key: 2, name: name}),
        ("delete", "2", {key: 2, name: name}, None),
    ]


def test_wide_tables_are_told(plain: Engine, client: sqlite3.Connection) -> None:
    """A table of many columns of types that take many words doesn't go beyond what SQLite can parse."""
    types: list[Any] = [
        sa.JSON(),
        sa.Float(),
        sa.Numeric(12, 3),
        sa.LargeBinary(),
        sa.DateTime(),
        sa.Uuid(),
        sa.Interval(),
    ]
    columns = [Column(f"c{number}", types[number % len(types)]) for number in range(210)]
    install(plain, tracked("wide", Column("id", Integer, primary_key=True), *columns))
    client.execute("INSERT INTO wide (id, c0, c1) VALUES (1, '{}', 0.5)")
    client.execute("UPDATE wide SET c0 = '[1]', c206 = '9'")

    inserted, updated = trail_of(plain)
    assert inserted.new_values is not None
    assert len(inserted.new_values) == 211
    assert story([updated]) == [("update", "1", {"c0": {}, "c206": None}, {"c0": [1], "c206": {"$hex": "39"}})]


# --- values ----------------------------------------------------------------------------------------------------------


def stored_values(client: sqlite3.Connection) -> list[str]:
    """Return the JSON of what was inserted, as it is written."""
    return [document for (document,) in client.execute("SELECT new_values FROM sqlaudit_change ORDER BY id")]


def test_values_of_another_storage_class_are_told(plain: Engine, client: sqlite3.Connection) -> None:
    """SQLite lets any value into any column: it is told as what it is, and no statement fails for it."""
    types: dict[str, Any] = {
        "number": sa.Integer(), "truth": sa.Boolean(), "text": sa.String(), "bytes": sa.LargeBinary(),
        "real": sa.Float(), "decimal": sa.Numeric(10, 2), "day": sa.Date(), "at": sa.DateTime(), "time": sa.Time(),
        "span": sa.Interval(), "token": sa.Uuid(), "document": sa.JSON(),
    }  # fmt: skip
    columns = [Column(name, type_) for name, type_ in types.items()]
    ddl = [f"CREATE TABLE loose (id INTEGER PRIMARY KEY, {', '.join(types)})"]
    install(plain, tracked("loose", Column("id", Integer, primary_key=True), *columns), ddl=ddl)
    for value in (7, 1.5, "é\"'\n", b"\x00\xff", None):
        client.execute(
            f"INSERT INTO loose ({', '.join(types)}) VALUES ({', '.join('?' * len(types))})", [value] * len(types)
        )

    number, real, string, blob, null = (json.loads(document) for document in stored_values(client))
    names = set(types)
    assert {name for name in names if number[name] == 7 and number[name] is not True} == names - {"truth", "decimal"}
    assert (number["truth"], number["decimal"]) == (True, "7.00")
    assert {name for name in names if real[name] == 1.5} == names - {"decimal"}
    assert real["decimal"] == "1.50"
    assert {name for name in names if string[name] == "é\"'\n"} == names - {"bytes", "document"}
    assert string["bytes"] == {"$hex": "é\"'\n".encode().hex().upper()}
    assert string["document"] == {"$json_text": "é\"'\n"}
    assert {name for name in names if blob[name] == {"$hex": "00FF"}} == names - {"bytes"}
    assert blob["bytes"] == "AP8="
    assert {null[name] for name in names} == {None}


def floats() -> Iterator[float]:
    """Yield the floats that are hard to write, and many more."""
    yield from (1e22, 1e23, 5e-324, -2.5e-310, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1 + 0.2, 1 / 3, 1e-5)
    yield from (9007199254740993.0, 2251799813685248.25, 99999.99999999999, 9.5367431640625e-07, 5.684341886080802e-14)
    for exponent in range(-1074, 1024, 3):
        power = math.ldexp(1, exponent)
        yield from (power, math.nextafter(power, 0), -math.nextafter(power, math.inf))
    for exponent in range(-320, 309, 3):
        yield float(f"1e{exponent}")
        yield float(f"123e{exponent - 3}")
    random_ = random.Random(7)
    for _ in range(300):
        yield random_.random()
        yield round(random_.uniform(-1e7, 1e7), random_.randint(0, 9))
        anything = struct.unpack("d", random_.randbytes(8))[0]
        yield anything if math.isfinite(anything) else 0.5


def test_floats_are_written_as_python_writes_them(plain: Engine, client: sqlite3.Connection) -> None:
    """The shortest digits that are this float and no other, whichever way this SQLite prints and reads floats."""
    install(plain, tracked("measured", Column("id", Integer, primary_key=True), Column("value", sa.Float)))
    values = [value for value in floats() if value]
    client.execute("BEGIN")
    client.executemany("INSERT INTO measured (value) VALUES (?)", [(value,) for value in values])
    client.execute("COMMIT")

    written = [document.partition('"value":')[2][:-1] for document in stored_values(client)]
    assert [(told, value) for told, value in zip(written, map(repr, values), strict=True) if told != value] == []


def test_numbers_without_an_end_and_large_ones_are_told(plain: Engine, client: sqlite3.Connection) -> None:
    """Infinities, zeros and integers of 64 bits are written as a session would."""
    value, number = Column("value", sa.Float), Column("number", sa.BigInteger)
    install(plain, tracked("measured", Column("id", Integer, primary_key=True), value, number))
    client.executemany(
        "INSERT INTO measured (value, number) VALUES (?, ?)",
        [(math.inf, 2**63 - 1), (-math.inf, -(2**63)), (-0.0, 2**53 + 1), (3, 0)],
    )

    assert [document.partition(",")[2] for document in stored_values(client)] == [
        '"value":"inf","number":9223372036854775807}',
        '"value":"-inf","number":-9223372036854775808}',
        '"value":0.0,"number":9007199254740993}',
        '"value":3.0,"number":0}',
    ]


def test_bytes_of_every_length_are_told(plain: Engine, client: sqlite3.Connection) -> None:
    """Base64 is written without a function for it, beyond the chunks that it is made in."""
    install(plain, tracked("kept", Column("id", Integer, primary_key=True), Column("data", sa.LargeBinary)))
    random_ = random.Random(1)
    values = [random_.randbytes(size) for size in (0, 1, 2, 3, 4, 5, 2999, 3000, 3001, 10_000)]
    client.executemany("INSERT INTO kept (data) VALUES (?)", [(value,) for value in values])

    told = [json.loads(document)["data"] for document in stored_values(client)]
    assert told == [base64.b64encode(value).decode() for value in values]


def test_documents_that_others_wrote_are_told_as_a_session_would(plain: Engine, client: sqlite3.Connection) -> None:
    """JSON in any form of its text is told minified, with its characters as they are; what is none is kept as text."""
    install(plain, tracked("paper", Column("id", Integer, primary_key=True), Column("document", sa.JSON)))
    documents = [
        r'{ "a" : "\u00e9\u2713\ud83d\udc18", "b": "\/\\u0041\u0022\u005c\n" }', r'"\ud83d"', r'["\u0000\u001F\u007f"]',
        "[1.50, 1e3, true, null]", '{"$json": 1}', '{"a": {"$x": 1}}', "null", "[1e400]", "{oops", "[1,2", '"x"',
    ]  # fmt: skip
    client.executemany("INSERT INTO paper (document) VALUES (?)", [(document,) for document in documents])

    assert [document.partition('"document":')[2][:-1] for document in stored_values(client)] == [
        r'{"a":"é✓🐘","b":"/\\u0041\"\\\n"}', r'"\ud83d"', '["\\u0000\\u001f\x7f"]',
        "[1.50,1e3,true,null]", '{"$json":{"$json":1}}', '{"a":{"$x":1}}', '{"$json":null}',
        '{"$json_text":"[1e400]"}', '{"$json_text":"{oops"}', '{"$json_text":"[1,2"}', '"x"',
    ]  # fmt: skip


# --- who writes ------------------------------------------------------------------------------------------------------


def account() -> Table:
    """Return a table to write."""
    return tracked("account", Column("id", Integer, primary_key=True), Column("name", String))


def published(client: sqlite3.Connection) -> list[Any]:
    """Return what is committed of what writers say of themselves: it has to be nothing."""
    return client.execute("SELECT * FROM sqlaudit_published").fetchall()


@pytest.mark.parametrize("is_as_it_comes", [True, False])
def test_a_savepoint_leaves_nobody_behind(plain: Engine, client: sqlite3.Connection, is_as_it_comes: bool) -> None:
    """Released or rolled back, also where the driver begins no transaction before it: what was told is withdrawn."""
    table = account()
    install(plain, table)
    engine = create_engine(plain.url) if is_as_it_comes else plain
    register_hooks()
    with audit_context(user_id="somebody"):
        with Session(engine) as session:
            with session.begin_nested():
                session.execute(table.insert().values(id=1))
            assert published(client) == []
            session.rollback()
        with Session(engine) as session:
            session.execute(table.insert().values(id=2))
            savepoint = session.begin_nested()
            session.execute(table.insert().values(id=3))
            savepoint.rollback()
            session.commit()
        assert published(client) == []
        with engine.connect() as connection, audited_connection(connection):
            savepoint_of_it = connection.begin_nested()
            connection.execute(table.insert().values(id=4))
            savepoint_of_it.commit()
            connection.rollback()
    assert published(client) == []
    client.execute("INSERT INTO account (id) VALUES (9)")
    if is_as_it_comes:
        engine.dispose()

    changes = trail_of(plain)
    assert changes[-1].what == ("insert", "account", "9")
    assert changes[-1].changed_by is None
    assert ("2", "somebody") in {(change.resource_id, change.changed_by) for change in changes}


KILLED = """
import os, sys
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine
from sqlaudit import Capture, audited_connection, track

table = track(Table("account", MetaData(), Column("id", Integer, primary_key=True)), capture=Capture.TRIGGERS)
with create_engine(sys.argv[1]).connect() as connection, audited_connection(connection, user_id="killed"):
    connection.execute(table.insert().values(id=1))
    connection.commit()
    connection.execute(table.insert(), [{"id": number} for number in range(2, 5000)])
    connection.exec_driver_sql("PRAGMA cache_spill = 1")
    os.kill(os.getpid(), 9)
"""


def test_a_writer_that_is_killed_leaves_nobody_behind(plain: Engine) -> None:
    """Of a process that dies within its transaction the next writer finds neither rows nor name."""
    install(plain, account())
    died = subprocess.run([sys.executable, "-c", KILLED, str(plain.url)], check=False, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    client = connected(plain)
    client.execute("INSERT INTO account (id) VALUES (2)")
    client.close()

    assert [(change.resource_id, change.changed_by) for change in trail_of(plain)] == [("1", "killed"), ("2", None)]


def test_another_process_with_python_alone_is_recorded(plain: Engine) -> None:
    """The triggers need nothing that a connection would have to bring: no function, no setting, no library."""
    install(
        plain,
        tracked("account", Column("id", Integer, primary_key=True), Column("at", sa.Float), Column("doc", sa.JSON)),
    )
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
        "c.execute('INSERT INTO account VALUES (1, 0.1, \\'{}\\')'); "
        "c.execute('UPDATE account SET at = 1e22'); c.commit()"
    )
    subprocess.run([sys.executable, "-I", "-c", program, str(plain.url.database)], check=True)

    inserted, updated = trail_of(plain)
    assert story([inserted, updated]) == [
        ("insert", "1", None, {"id": 1, "at": 0.1, "doc": {}}),
        ("update", "1", {"at": 0.1}, {"at": 1e22}),
    ]
    assert (inserted.changed_by, inserted.context, updated.changed_by) == (None, None, None)
    assert abs(inserted.recorded_at.timestamp() - time.time()) < 3600


async def test_a_database_without_triggers_says_so(engine: AsyncEngine, plain: Engine) -> None:
    """Where nobody could be told who writes, the block isn't entered, and the error says what to do."""
    async with engine.connect() as connection:
        with pytest.raises(CaptureError, match="create_audit_tables"):
            await audited_connection(connection, user_id=1).__aenter__()
    with plain.connect() as connection, pytest.raises(CaptureError, match="create_audit_tables"):
        audited_connection(connection, user_id=1).__enter__()


# --- places, and what is altered -------------------------------------------------------------------------------------


def test_a_view_is_refused(plain: Engine) -> None:
    """What has no triggers that fire after a row is written isn't left out in silence."""
    ddl = ["CREATE TABLE kept (id INTEGER PRIMARY KEY)", "CREATE VIEW seen AS SELECT id FROM kept"]
    with pytest.raises(TrackingError, match="seen is a view"):
        install(plain, tracked("seen", Column("id", Integer, primary_key=True)), ddl=ddl)


@pytest.mark.parametrize("is_guarded", [True, False])
def test_an_old_sqlite_is_refused(plain: Engine, is_guarded: bool) -> None:
    """Triggers that this SQLite can't run aren't installed: they would fail each write."""
    set_config(SQLAuditConfig(append_only=is_guarded))
    if not is_guarded:
        account()
        with plain.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE account (id INTEGER PRIMARY KEY, name TEXT)")
    with plain.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.create_function("sqlite_version", 0, lambda: "3.34.1")
        with pytest.raises(CaptureError, match=r"3\.35 or newer .* 3\.34\.1"):
            create_audit_tables_sync(connection)


def test_attached_databases_are_refused(plain: Engine, tmp_path: Path) -> None:
    """Triggers don't write into another file: a table, or a trail, in an attached one is refused."""
    set_config(SQLAuditConfig())
    elsewhere = track(
        Table("far", MetaData(schema="other"), Column("id", Integer, primary_key=True)), capture=Capture.TRIGGERS
    )
    _declared.append(elsewhere)
    with plain.connect() as connection:
        connection.exec_driver_sql(f"ATTACH '{tmp_path / 'other.sqlite'}' AS other")
        with pytest.raises(TrackingError, match="attached database other"):
            elsewhere.metadata.create_all(connection)


def test_tables_of_the_triggers_that_were_altered_are_found(plain: Engine, client: sqlite3.Connection) -> None:
    """A table that the triggers use, made otherwise or dropped, is outdated or missing, and made anew."""
    install(plain, account())
    client.execute("DROP TABLE sqlaudit_replaced")
    client.execute("DROP TABLE sqlaudit_published")
    client.execute("CREATE TABLE sqlaudit_published (one INTEGER PRIMARY KEY, document TEXT)")

    found = {(each.kind, each.problem, each.name) for each in check_audit_schema_sync(plain, metadata=declared())}
    assert found == {("table", "outdated", "sqlaudit_published"), ("table", "missing", "sqlaudit_replaced")}
    create_audit_tables_sync(plain, metadata=declared())
    assert check_audit_schema_sync(plain, metadata=declared()) == []
    with plain.begin() as connection:
        connection.exec_driver_sql("INSERT INTO account VALUES (1, 'a')")
    assert len(trail_of(plain)) == 1
