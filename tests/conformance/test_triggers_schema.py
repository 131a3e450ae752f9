"""How triggers come into a database, what is said when they aren't right, and what guards the trail."""

import contextlib
import datetime as dt
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, MetaData, String, Table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from conformance_setup import Maker, story_of
from databases import Database
from observing import sent_statements, stored_trail
from sqlaudit import (
    Capture,
    SchemaFinding,
    SQLAuditConfig,
    append_only_grants,
    append_only_grants_sync,
    audit_context,
    audited_connection,
    check_audit_schema,
    check_audit_schema_sync,
    create_audit_tables,
    purge_changes,
    purge_changes_sync,
    register_hooks,
    set_config,
    track,
    track_table,
    trail_table,
)
from sqlaudit.exceptions import CaptureError, ConfigurationError, RetentionError, TrackingError
from witness import watch_rows


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(40))
    email: Mapped[str | None] = mapped_column(String(40))


PERSON = Base.metadata.tables["person"]


_declared: list[Table] = []


@pytest.fixture(autouse=True)
def _one_declaration_at_a_time() -> Iterator[None]:
    """Tables of one name in several MetaData are one in the database: those of other tests count no more."""
    yield
    for table in _declared:
        table.info.clear()


def tracked(**options: Any) -> Table:
    """Return the table in a MetaData of its own, tracked; no other one is."""
    for table in _declared:
        table.info.clear()
    table = track(PERSON.to_metadata(MetaData()), table_label="Person", **options)
    _declared.append(table)
    return table


async def create(engine: AsyncEngine, table: Table, **config: Any) -> None:
    """Create the table, the trail, and what else today's declarations want."""
    set_config(SQLAuditConfig(**config))
    async with engine.begin() as connection:
        await connection.run_sync(table.metadata.create_all)


def declared() -> MetaData:
    """Return the MetaData of the table declared last: those of other tests may have tables of the same names."""
    return _declared[-1].metadata


async def install(engine: AsyncEngine) -> None:
    """Bring the triggers to what is declared."""
    await create_audit_tables(engine, metadata=declared())


async def findings(engine: AsyncEngine) -> list[SchemaFinding]:
    """Return what isn't as it should be."""
    return await check_audit_schema(engine, metadata=declared())


async def execute(engine: AsyncEngine, *statements: str) -> None:
    """Execute SQL as a client that has never heard of sqlaudit."""
    async with engine.begin() as connection:
        for each in statements:
            await connection.exec_driver_sql(each)


async def problems(engine: AsyncEngine) -> set[tuple[str, str]]:
    """Return kind and problem of all that isn't as it should be."""
    return {(each.kind, each.problem) for each in await findings(engine)}


async def test_installing_twice_is_installing_once(engine: AsyncEngine) -> None:
    """What stands as it should is left alone."""
    await create(engine, tracked(capture=Capture.TRIGGERS), append_only=True)
    assert await findings(engine) == []

    with sent_statements(engine) as sent:
        await install(engine)
    assert [each for each in sent if each.verb in {"CREATE", "DROP", "ALTER", "/*M!"}] == []


async def test_the_configuration_may_say_it_for_all_tables(maker: Maker, engine: AsyncEngine) -> None:
    """Capture of the default configuration holds for tables that don't say; theirs goes before it."""
    table = tracked()
    other = Table("other", table.metadata, *(column._copy() for column in PERSON.columns))
    track(other, capture=Capture.SESSION)
    await create(engine, table, session_factory=maker, capture=Capture.TRIGGERS)
    for name in ("person", "other"):
        await execute(engine, f"INSERT INTO {name} (id, name) VALUES (1, 'a')")

    assert [change.resource_type for change in await stored_trail(engine)] == ["Person"]


async def test_missing_triggers_are_found(engine: AsyncEngine, database: Database) -> None:
    """A trigger that somebody dropped is missing; installing brings it back."""
    await create(engine, tracked(capture=Capture.TRIGGERS))
    dropped = {
        "postgresql": 'DROP TRIGGER "00_sqlaudit_update" ON person',
        "sqlite": "DROP TRIGGER sqlaudit_update_person",
        "mariadb": "DROP TRIGGER sqlaudit_update_person",
    }
    await execute(engine, dropped[database.kind])

    (finding,) = await findings(engine)
    assert (finding.kind, finding.problem) == ("trigger", "missing")
    assert "sqlaudit_update" in str(finding)
    assert "create_audit_tables" in str(finding)
    await install(engine)
    assert await findings(engine) == []


async def test_outdated_triggers_are_found(maker: Maker, engine: AsyncEngine) -> None:
    """Triggers of an earlier declaration are outdated; installing replaces them."""
    earlier = tracked(capture=Capture.TRIGGERS, tracked_fields=["name"])
    await create(engine, earlier, session_factory=maker)
    table = tracked(capture=Capture.TRIGGERS)

    assert {problem for _, problem in await problems(engine)} == {"outdated"}
    await install(engine)
    assert await findings(engine) == []
    await execute(engine, "INSERT INTO person (id, name, email) VALUES (1, 'a', 'b')")
    (change,) = await stored_trail(engine)
    assert change.new_values == {"id": 1, "name": "a", "email": "b"}
    assert table.info["sqlaudit"].recorded == ("id", "name", "email")


async def test_altered_triggers_are_outdated(engine: AsyncEngine, database: Database) -> None:
    """A trigger that somebody disabled, or put another in the place of, isn't as it should be."""
    await create(engine, tracked(capture=Capture.TRIGGERS))
    statements = {
        "postgresql": ['ALTER TABLE person DISABLE TRIGGER "00_sqlaudit_update"'],
        "sqlite": [
            "DROP TRIGGER sqlaudit_update_person",
            "CREATE TRIGGER sqlaudit_update_person AFTER UPDATE ON person BEGIN SELECT 1; END",
        ],
        "mariadb": [
            "DROP TRIGGER sqlaudit_update_person",
            "CREATE TRIGGER sqlaudit_update_person AFTER UPDATE ON person FOR EACH ROW BEGIN END",
        ],
    }
    await execute(engine, *statements[database.kind])

    assert ("trigger", "outdated") in await problems(engine)
    await install(engine)
    assert await findings(engine) == []


async def test_triggers_that_nobody_wants_are_foreign(engine: AsyncEngine) -> None:
    """Triggers of a table that sessions record would tell each change twice: they are found, and go."""
    table = tracked(capture=Capture.TRIGGERS)
    await create(engine, table)
    tracked(capture=Capture.SESSION)

    found = await problems(engine)
    assert ("trigger", "foreign") in found
    assert {problem for _, problem in found} == {"foreign"}
    await install(engine)
    assert await findings(engine) == []
    await execute(engine, "INSERT INTO person (id, name) VALUES (1, 'a')")
    assert await stored_trail(engine) == []


async def test_columns_that_wait_for_their_migration_are_found(maker: Maker, engine: AsyncEngine) -> None:
    """A tracked column that the database lacks is found; the triggers record the others until it is there."""
    await execute(engine, "CREATE TABLE person (id INTEGER PRIMARY KEY, name VARCHAR(40))")
    table = tracked(capture=Capture.TRIGGERS)
    await create(engine, table, session_factory=maker)

    (finding,) = await findings(engine)
    assert (finding.kind, finding.problem, finding.name) == ("column", "missing", "email")
    assert "migrate" in str(finding)
    await execute(engine, "INSERT INTO person (id, name) VALUES (1, 'a')")
    await execute(engine, "ALTER TABLE person ADD COLUMN email VARCHAR(40)")
    assert "outdated" in {problem for _, problem in await problems(engine)}
    await install(engine)
    await execute(engine, "UPDATE person SET email = 'e'")

    inserted, updated = await stored_trail(engine)
    assert inserted.new_values == {"id": 1, "name": "a"}
    assert updated.new_values == {"email": "e"}


async def test_a_missing_trail_is_found(engine: AsyncEngine, database: Database) -> None:
    """Without the trail's table nothing can be recorded."""
    set_config(SQLAuditConfig())
    plain = database.make_engine()
    (finding,) = check_audit_schema_sync(plain, metadata=MetaData())
    plain.dispose()

    assert finding == SchemaFinding(kind="table", problem="missing", name="sqlaudit_change", table="sqlaudit_change")


async def test_what_triggers_record_is_what_happened(maker: Maker, engine: AsyncEngine) -> None:
    """Statements of any client, with and without effect, are told as the witness saw them."""
    table = tracked(capture=Capture.TRIGGERS)
    await create(engine, table, session_factory=maker)
    async with engine.begin() as connection:
        await connection.run_sync(watch_rows, table)
    await execute(
        engine,
        "INSERT INTO person (id, name) VALUES (1, 'a'), (2, 'b'), (3, 'c')",
        "UPDATE person SET name = name WHERE id = 1",
        "UPDATE person SET name = 'x', email = 'y' WHERE id > 1",
        "DELETE FROM person WHERE id < 3",
    )

    await story_of(maker, table)


# --- the guard -------------------------------------------------------------------------------------------------------


async def refused(engine: AsyncEngine, statement: str) -> None:
    """Fail unless the database refuses *statement*."""
    with pytest.raises(DBAPIError, match="append-only"):
        await execute(engine, statement)


async def test_a_guarded_trail_is_only_added_to(engine: AsyncEngine, database: Database) -> None:
    """The database refuses to update, delete, replace and truncate what is stored."""
    await create(engine, tracked(capture=Capture.TRIGGERS), append_only=True)
    await execute(engine, "INSERT INTO person (id, name) VALUES (1, 'a')")
    before = await stored_trail(engine)

    await refused(engine, "UPDATE sqlaudit_change SET changed_by = 'somebody else'")
    await refused(engine, "DELETE FROM sqlaudit_change")
    if database.kind == "postgresql":
        await refused(engine, "TRUNCATE sqlaudit_change")
    else:
        await refused(
            engine,
            "REPLACE INTO sqlaudit_change (id, transaction_id, recorded_at, operation, resource_type, resource_id) "
            "SELECT id, transaction_id, recorded_at, operation, resource_type, 'other' FROM sqlaudit_change",
        )
    assert await stored_trail(engine) == before
    # Nobody who forgets to say so takes the guard away.
    set_config(SQLAuditConfig())
    await install(engine)
    await refused(engine, "DELETE FROM sqlaudit_change")


async def test_sessions_write_to_a_guarded_trail(maker: Maker, engine: AsyncEngine) -> None:
    """The guard is in nobody's way who adds; it needs no tables with triggers."""
    table = tracked(capture=Capture.SESSION)
    await create(engine, table, append_only=True)
    register_hooks(maker)
    async with maker() as session:
        with audit_context(user_id=1):
            await session.execute(table.insert().values(id=1, name="a"))
            await session.commit()

    assert [change.changed_by for change in await stored_trail(engine)] == ["1"]
    assert await findings(engine) == []
    await refused(engine, "DELETE FROM sqlaudit_change")


@pytest.mark.parametrize("is_guarded", [True, False])
async def test_old_changes_are_purged(engine: AsyncEngine, database: Database, is_guarded: bool) -> None:
    """Changes before a moment go, also from a guarded trail, which is guarded again afterwards."""
    await create(engine, tracked(capture=Capture.TRIGGERS), append_only=is_guarded)
    await execute(engine, "INSERT INTO person (id, name) VALUES (1, 'a'), (2, 'b')")
    last = (await stored_trail(engine))[-1]
    await execute(engine, "DELETE FROM person WHERE id = 1")

    assert await purge_changes(engine, before=last.recorded_at + dt.timedelta(microseconds=1)) == 2
    assert [change.operation for change in await stored_trail(engine)] == ["delete"]
    if is_guarded:
        await refused(engine, "DELETE FROM sqlaudit_change")
    plain = database.make_engine()
    assert purge_changes_sync(plain, before=last.recorded_at) == 0
    plain.dispose()


async def test_any_guard_is_lifted(engine: AsyncEngine) -> None:
    """Also one that the configuration at hand doesn't know of; and none needs to be there."""
    await create(engine, tracked(capture=Capture.SESSION))
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    for each in (engine, autocommit):
        assert await purge_changes(each, before=dt.datetime.now(dt.UTC)) == 0
    await create(engine, tracked(capture=Capture.TRIGGERS), append_only=True)
    await execute(engine, "INSERT INTO person (id, name) VALUES (1, 'a'), (2, 'b')")
    with pytest.raises(CaptureError, match="AUTOCOMMIT"):
        await purge_changes(autocommit, before=dt.datetime.now(dt.UTC))
    set_config(SQLAuditConfig())

    assert await purge_changes(engine, before=dt.datetime.now(dt.UTC)) == 2
    await execute(engine, "DELETE FROM person")
    await refused(engine, "DELETE FROM sqlaudit_change")


@pytest.mark.parametrize("capture", [Capture.TRIGGERS, Capture.BOTH])
async def test_who_writes_is_known_after_a_purge(maker: Maker, engine: AsyncEngine, capture: Capture) -> None:
    """In its transaction, savepoints and all, sessions and blocks are told again; and each change is recorded once."""
    table = tracked(capture=capture)
    await create(engine, table, append_only=True)
    register_hooks(maker)
    async with maker() as session:
        with audit_context(user_id=1):
            await session.execute(table.insert().values(id=1, name="a"))
            connection = await session.connection()
            old = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
            assert await purge_changes(connection, before=old) == 0
            await session.execute(table.insert().values(id=2, name="a"))
            savepoint = await session.begin_nested()
            assert await purge_changes(connection, before=old) == 0
            await savepoint.rollback()
            await session.execute(table.insert().values(id=3, name="a"))
            await session.commit()
    async with engine.begin() as raw:
        async with audited_connection(raw, user_id=4):
            await raw.execute(text("INSERT INTO person (id, name) VALUES (4, 'a')"))
            savepoint_of_it = await raw.begin_nested()
            assert await purge_changes(raw, before=old) == 0
            await raw.exec_driver_sql("INSERT INTO person (id, name) VALUES (5, 'a')")
            await savepoint_of_it.commit()
        await raw.execute(text("INSERT INTO person (id, name) VALUES (6, 'a')"))
        assert await purge_changes(raw, before=old) == 0
    await execute(engine, "INSERT INTO person (id, name) VALUES (7, 'a')")

    changes = [(change.resource_id, change.changed_by) for change in await stored_trail(engine)]
    assert changes == [("1", "1"), ("2", "1"), ("3", "1"), ("4", "4"), ("5", "4"), ("6", None), ("7", None)]
    await refused(engine, "DELETE FROM sqlaudit_change")


async def test_what_to_purge_is_said_exactly(engine: AsyncEngine) -> None:
    """A naive datetime, or one to come, is refused."""
    unsure: Sequence[Any] = [dt.datetime(2026, 1, 1), dt.date(2026, 1, 1), None]  # noqa: DTZ001 what is refused
    for each in unsure:
        with pytest.raises(RetentionError, match="aware"):
            await purge_changes(engine, before=each)
    with pytest.raises(RetentionError, match="future"):
        await purge_changes(engine, before=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))


async def test_grants_leave_nothing_but_adding_and_reading(engine: AsyncEngine, database: Database) -> None:
    """The statements to print, executed, let a user of the database add to the trail and read it."""
    await create(engine, tracked(capture=Capture.SESSION))
    role = "sqlaudit_test@localhost" if database.kind == "mariadb" else "sqlaudit 'test\" role"
    grants = await append_only_grants(engine, role)
    plain = database.make_engine()
    assert append_only_grants_sync(plain, role) == grants
    if database.kind == "postgresql":
        with plain.connect() as connection:
            quoted = connection.dialect.identifier_preparer.quote(role)
            connection.exec_driver_sql(f"CREATE ROLE {quoted}")
            for grant in grants:
                connection.exec_driver_sql(grant)
            rights = "SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"
            granted = [right for right in rights if _has_right(connection, role, right)]
            connection.rollback()
        assert granted == ["SELECT", "INSERT"]
    elif database.kind == "mariadb":
        assert [grant.split(" ON ")[0] for grant in grants] == ["GRANT SELECT, INSERT"]
        assert grants[0].endswith("TO 'sqlaudit_test'@'localhost'")
    else:
        assert grants == []
    plain.dispose()


def _has_right(connection: Connection, role: str, right: str) -> bool:
    query = text("SELECT has_table_privilege(:role, 'sqlaudit_change', :right)")
    return bool(connection.scalar(query, {"role": role, "right": right}))


def test_a_capture_is_one_of_three() -> None:
    """Anything else is refused where it is said."""
    wrong: Any = "trigger"
    with pytest.raises(TrackingError, match="Capture"):
        track_table(capture=wrong)
    with pytest.raises(ConfigurationError, match="Capture"):
        SQLAuditConfig(capture=wrong)


def _person_elsewhere(**options: Any) -> Table:
    """Return the table in one more MetaData, tracked beside the others."""
    table = track(PERSON.to_metadata(MetaData()), table_label="Person", **options)
    _declared.append(table)
    return table


async def test_declarations_of_one_name_are_told_apart(maker: Maker, engine: AsyncEngine) -> None:
    """Two MetaData have a table of one name: whose triggers it shall have is said, never guessed."""
    of_names = tracked(capture=Capture.TRIGGERS, tracked_fields=["name"])
    of_all = _person_elsewhere(capture=Capture.TRIGGERS)
    await create(engine, of_names, session_factory=maker)
    with pytest.raises(TrackingError, match=r"person.*metadata="):
        await create_audit_tables(engine)
    with pytest.raises(TrackingError, match=r"person.*metadata="):
        await check_audit_schema(engine)

    assert await check_audit_schema(engine, metadata=of_names.metadata) == []
    assert {each.problem for each in await check_audit_schema(engine, metadata=of_all.metadata)} == {"outdated"}
    await execute(engine, "INSERT INTO person (id, name, email) VALUES (1, 'a', 'b')")
    await create_audit_tables(engine, metadata=of_all.metadata)
    await execute(engine, "INSERT INTO person (id, name, email) VALUES (2, 'a', 'b')")

    first, second = await stored_trail(engine)
    assert first.new_values == {"id": 1, "name": "a"}
    assert second.new_values == {"id": 2, "name": "a", "email": "b"}


@pytest.mark.parametrize("label", ["Person", "Human"])
async def test_labels_that_tables_share_are_found(maker: Maker, engine: AsyncEngine, label: str) -> None:
    """Two MetaData have tables of one label, of today or formerly: the check says that their histories mix."""
    people = tracked(former_labels=["Human"])
    others = Table("other", MetaData(), *(column._copy() for column in PERSON.columns))
    _declared.append(track(others, table_label=label))
    await create(engine, people, session_factory=maker)
    assert await labels_found(engine) == []  # the other table is of another database

    await create(engine, others, session_factory=maker)

    expected = f"The label {label} of {{}} is shared; give each table its own, with table_label=."
    assert await labels_found(engine) == [expected.format("other"), expected.format("person")]


async def test_one_table_that_is_declared_twice_has_one_label(maker: Maker, engine: AsyncEngine) -> None:
    """With and without the default schema, it is the same table."""
    people = tracked()
    await create(engine, people, session_factory=maker)
    async with engine.connect() as connection:
        schema = str(connection.dialect.default_schema_name)
    again = PERSON.to_metadata(MetaData(), schema=schema)
    _declared.append(track(again, table_label="Person"))

    assert await labels_found(engine) == []


async def labels_found(engine: AsyncEngine) -> list[str]:
    """Return what is said of labels."""
    return [str(finding) for finding in await check_audit_schema(engine) if finding.kind == "label"]


async def test_other_applications_keep_their_triggers(maker: Maker, engine: AsyncEngine) -> None:
    """Who has never heard of a table doesn't drop its triggers, nor what they use."""
    theirs = tracked(capture=Capture.TRIGGERS)
    await create(engine, theirs, session_factory=maker)
    theirs.info.clear()
    for capture in (Capture.SESSION, Capture.TRIGGERS, Capture.SESSION):
        ours = Table("other", MetaData(), *(column._copy() for column in PERSON.columns))
        _declared.append(track(ours, capture=capture))
        await create(engine, ours, session_factory=maker)
        await execute(engine, "DELETE FROM person", "INSERT INTO person (id, name) VALUES (1, 'a')")
        await execute(engine, "DELETE FROM other", "INSERT INTO other (id, name) VALUES (1, 'a')")
        ours.info.clear()

    told = [(change.resource_type, change.operation) for change in await stored_trail(engine)]
    of_theirs = [operation for label, operation in told if label == "Person"]
    assert of_theirs == ["insert", "delete", "insert", "delete", "insert"]
    assert [operation for label, operation in told if label == "other"] == ["delete", "insert"]


async def test_tables_that_are_not_tracked_keep_their_triggers(maker: Maker, engine: AsyncEngine) -> None:
    """Who declares another application's table, and doesn't track it, leaves its triggers, and is told of them."""
    theirs = tracked(capture=Capture.TRIGGERS)
    await create(engine, theirs, session_factory=maker)
    theirs.info.clear()
    ours = Table("other", MetaData(), *(column._copy() for column in PERSON.columns))
    PERSON.to_metadata(ours.metadata)
    _declared.append(track(ours, capture=Capture.TRIGGERS))
    for _ in range(2):
        await create(engine, ours, session_factory=maker)
        await install(engine)
    await execute(
        engine, "INSERT INTO person (id, name) VALUES (1, 'a')", "INSERT INTO other (id, name) VALUES (1, 'a')"
    )

    assert [change.resource_type for change in await stored_trail(engine)] == ["Person", "other"]
    found = await findings(engine)
    assert {(each.kind, each.problem, str(each.table).split(".")[-1]) for each in found} == {
        ("trigger", "foreign", "person")
    }
    assert 'op.drop_audit_triggers("person")' in str(found[0])


@contextlib.contextmanager
def another_schema(database: Database) -> Iterator[str]:
    """Give the name of a new schema on the same server."""
    name = f"test_{uuid.uuid4().hex}"
    plain = database.make_engine(isolation_level="AUTOCOMMIT")
    with plain.connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        try:
            yield name
        finally:
            connection.exec_driver_sql(f"DROP SCHEMA {name}{' CASCADE' if database.kind == 'postgresql' else ''}")
    plain.dispose()


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
async def test_a_guarded_trail_in_a_schema_of_its_own(engine: AsyncEngine, database: Database) -> None:
    """What guards it is found where it stands: installing twice is installing once."""
    with another_schema(database) as schema:
        await create(engine, tracked(capture=Capture.TRIGGERS), trail=trail_table(schema=schema), append_only=True)
        await install(engine)
        await execute(engine, "INSERT INTO person (id, name) VALUES (1, 'a')")

        await refused(engine, f"DELETE FROM {schema}.sqlaudit_change")
        assert await findings(engine) == []
        if database.kind == "postgresql":
            await execute(engine, f'DROP TRIGGER "00_sqlaudit_guard_delete" ON {schema}.sqlaudit_change')
        else:
            await execute(engine, f"DROP TRIGGER {schema}.sqlaudit_guard_delete_sqlaudit_change")
        (finding,) = await findings(engine)
        assert (finding.problem, finding.table) == ("missing", f"{schema}.sqlaudit_change")


async def test_a_view_is_refused(engine: AsyncEngine) -> None:
    """What can't have triggers isn't left out in silence by who installs, who checks, and a session."""
    table = tracked(capture=Capture.TRIGGERS)
    set_config(SQLAuditConfig())
    await execute(
        engine,
        "CREATE TABLE people (id INTEGER PRIMARY KEY, name VARCHAR(40), email VARCHAR(40))",
        "CREATE VIEW person AS SELECT * FROM people",
    )
    for refusing in (create(engine, table), install(engine), findings(engine)):
        with pytest.raises(TrackingError, match=r"person is a view.*Capture\.SESSION"):
            await refusing
    async with AsyncSession(engine) as session:
        register_hooks(session)
        with pytest.raises(TrackingError, match="person is a view"):
            await session.execute(table.insert().values(id=1, name="a"))
