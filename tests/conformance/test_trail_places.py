"""Where the trail lives: names, schemas, tenants, search paths, MetaData, several engines. Laws 1, 2 and 10."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, delete, event, inspect, text, update
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from conformance_setup import Maker
from databases import Database, sqlite_database
from sqlaudit import (
    SQLAuditConfig,
    audit_context,
    check_audit_tables,
    check_audit_tables_sync,
    create_audit_tables,
    create_audit_tables_sync,
    get_resource_changes,
    get_resource_changes_sync,
    register_hooks,
    set_config,
    track_table,
    trail_table,
    upgrade_audit_tables,
)
from sqlaudit.exceptions import ConfigurationError, TrailMissingError, TrailOutdatedError
from sqlaudit.tables import change_table
from trail_releases import release_next


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(Base):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class OtherBase(DeclarativeBase):
    pass


@track_table()
class Invoice(OtherBase):
    __tablename__ = "invoice"

    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int]


Told = list[tuple[str, str, str, str | None]]


@contextlib.contextmanager
def schemas(database: Database, engine: AsyncEngine, folder: Path, count: int) -> Iterator[list[str]]:
    """Give names of new schemas: a database each on MariaDB, an attached file on SQLite; gone afterwards."""
    names = [f"place_{uuid.uuid4().hex}" for _ in range(count)]
    if database.kind == "sqlite":

        @event.listens_for(engine.sync_engine, "connect")
        def _(connection: Any, _: Any) -> None:
            cursor = connection.cursor()
            for name in names:
                cursor.execute(f"ATTACH DATABASE '{folder / name}' AS {name}")
            cursor.close()

        yield names
        return
    administrator = database.make_engine(isolation_level="AUTOCOMMIT")
    what, cascade = ("DATABASE", "") if database.kind == "mariadb" else ("SCHEMA", "CASCADE")
    with administrator.connect() as connection:
        for name in names:
            connection.execute(text(f"CREATE {what} {name}"))
    try:
        yield names
    finally:
        engine.sync_engine.dispose(close=False)
        with administrator.connect() as connection:
            for name in names:
                connection.execute(text(f"DROP {what} {name} {cascade}"))
        administrator.dispose()


@pytest.fixture(name="schema")
async def _schema(database: Database, tmp_path: Path) -> AsyncIterator[tuple[AsyncEngine, str]]:
    """An engine, and the name of a schema beside its default one."""
    engine = database.make_async_engine()
    with schemas(database, engine, tmp_path, 1) as (name,):
        yield engine, name
        await engine.dispose()


@pytest.fixture(name="tenants")
async def _tenants(database: Database, tmp_path: Path) -> AsyncIterator[tuple[AsyncEngine, list[str]]]:
    """An engine, and the names of three schemas beside its default one."""
    engine = database.make_async_engine()
    with schemas(database, engine, tmp_path, 3) as names:
        yield engine, names
        await engine.dispose()


async def told_in(engine: AsyncEngine, table: str) -> Told:
    """Return what a trail's table holds, by plain SQL: operation, type, id, who."""
    query = f"SELECT operation, resource_type, resource_id, changed_by FROM {table} ORDER BY id"
    async with engine.connect() as connection:
        return [(row[0], row[1], row[2], row[3]) for row in await connection.execute(text(query))]


async def tables_in(engine: AsyncEngine, schema: str | None = None) -> set[str]:
    """Return the names of the tables in a schema."""
    async with engine.connect() as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names(schema=schema)))


async def create(engine: AsyncEngine, *models: type[DeclarativeBase]) -> None:
    """Create the tables of models."""
    async with engine.begin() as connection:
        for each in models:
            await connection.run_sync(each.metadata.create_all)


async def use(maker: Maker, user_id: int = 1) -> None:
    """Insert, update and delete, through the unit of work and by statements."""
    with audit_context(user_id=user_id):
        async with maker() as session:
            session.add_all([Customer(id=1, name="a"), Customer(id=2, name="b")])
            await session.commit()
            (await session.get_one(Customer, 1)).name = "c"
            await session.commit()
            await session.execute(update(Customer).where(Customer.id == 1).values(name="d"))
            await session.execute(delete(Customer).where(Customer.id == 2))
            await session.commit()


def used(user_id: int = 1) -> Told:
    """Return what `use` leaves."""
    return [
        (operation, "Customer", str(key), str(user_id))
        for operation, key in (("insert", 1), ("insert", 2), ("update", 1), ("update", 1), ("delete", 2))
    ]


async def retrieved(session: AsyncSession, config: SQLAuditConfig | None = None) -> list[tuple[str, int, Any, Any]]:
    """Return the changes of names as retrieval tells them, oldest first."""
    changes = await get_resource_changes(
        Customer, session=session, filter_fields="name", sort_direction="asc", config=config
    )
    return [(str(each.operation), each.resource_id, each.old_value, each.new_value) for each in changes]


RETRIEVED = [
    ("insert", 1, None, "a"),
    ("insert", 2, None, "b"),
    ("update", 1, "a", "c"),
    ("update", 1, "c", "d"),
    ("delete", 2, "b", None),
]


# --- a name, a schema ------------------------------------------------------------------------------------------------


async def test_trail_of_another_name_holds_everything(engine: AsyncEngine, maker: Maker) -> None:
    """A trail of another name is created with the models, written by every capture, and read; the usual one isn't."""
    set_config(SQLAuditConfig(trail=trail_table("History of changes")))
    register_hooks(maker)
    await create(engine, Base)

    await use(maker)

    quoted = engine.dialect.identifier_preparer.quote("History of changes")
    assert await tables_in(engine) == {"customer", "History of changes"}
    assert await told_in(engine, quoted) == used()
    async with maker() as session:
        assert await retrieved(session) == RETRIEVED


async def test_trail_in_a_schema_of_its_own(schema: tuple[AsyncEngine, str]) -> None:
    """A trail in another schema, database or attached file is created, checked, written with the change, and read."""
    engine, name = schema
    maker = async_sessionmaker(engine)
    set_config(SQLAuditConfig(trail=trail_table("history", schema=name)))
    register_hooks(maker)
    await create(engine, Base)
    await check_audit_tables(engine)

    await use(maker)
    async with maker() as session:
        session.add(Customer(id=9, name="rolled back"))
        await session.flush()
        await session.rollback()

    assert await tables_in(engine) == {"customer"}
    assert await tables_in(engine, name) == {"history"}
    assert await told_in(engine, f"{name}.history") == used()
    async with maker() as session:
        assert await retrieved(session) == RETRIEVED


async def test_missing_trail_in_a_schema_is_named_with_it(schema: tuple[AsyncEngine, str]) -> None:
    """Without the table in that schema the change fails, and the error names both; nothing goes to the default one."""
    engine, name = schema
    maker = async_sessionmaker(engine)
    set_config(SQLAuditConfig())
    await create(engine, Base)
    set_config(SQLAuditConfig(trail=trail_table("history", schema=name)))
    register_hooks(maker)

    with pytest.raises(TrailMissingError, match=f"{name}.history"):
        await check_audit_tables(engine)
    async with maker() as session:
        session.add(Customer(id=1, name="a"))
        with pytest.raises(TrailMissingError, match=rf"{name}\.history.*create_audit_tables"):
            await session.commit()
        await session.rollback()

    assert await told_in(engine, "sqlaudit_change") == []
    assert await told_in_customers(engine) == []


async def told_in_customers(engine: AsyncEngine, table: str = "customer") -> list[tuple[int, str]]:
    """Return the customers that are stored, by plain SQL."""
    async with engine.connect() as connection:
        return [(row[0], row[1]) for row in await connection.execute(text(f"SELECT id, name FROM {table} ORDER BY id"))]


async def test_trail_in_a_schema_that_is_missing_fails_the_change(engine: AsyncEngine, maker: Maker) -> None:
    """When not even the schema is there, the change fails with the same error."""
    set_config(SQLAuditConfig())
    await create(engine, Base)
    set_config(SQLAuditConfig(trail=trail_table("history", schema="nowhere_at_all")))
    register_hooks(maker)

    async with maker() as session:
        session.add(Customer(id=1, name="a"))
        with pytest.raises(TrailMissingError, match=r"nowhere_at_all\.history"):
            await session.commit()

    assert await told_in_customers(engine) == []


async def test_trail_in_the_applications_metadata_is_created_once(engine: AsyncEngine, maker: Maker) -> None:
    """A trail that is part of the application's MetaData comes with its create_all, and goes with drop_all."""

    class Models(DeclarativeBase):
        pass

    @track_table()
    class Thing(Models):
        __tablename__ = "thing"

        id: Mapped[int] = mapped_column(primary_key=True)

    set_config(SQLAuditConfig(trail=trail_table("history", metadata=Models.metadata)))
    register_hooks(maker)
    await create(engine, Models, Models)
    await create_audit_tables(engine)
    await check_audit_tables(engine)
    async with maker() as session:
        session.add(Thing(id=1))
        await session.commit()

    assert await tables_in(engine) == {"thing", "history"}
    assert await told_in(engine, "history") == [("insert", "Thing", "1", None)]
    async with engine.begin() as connection:
        await connection.run_sync(Models.metadata.drop_all)
    assert await tables_in(engine) == set()


def test_name_that_the_metadata_has_is_refused() -> None:
    """A trail can't take the name of a table that the MetaData has."""
    with pytest.raises(Exception, match="customer"):
        trail_table("customer", metadata=Base.metadata)


@pytest.mark.parametrize(
    "trail",
    [
        "history",
        None,
        Base.metadata,
        Customer,
        Customer.__table__,
        Table("other", MetaData(), Column("id", Integer, primary_key=True)),
        trail_table("alias").alias(),
        trail_table,
    ],
    ids=["name", "none", "metadata", "model", "tracked table", "another table", "alias", "function"],
)
def test_what_is_no_trail_is_refused_at_configuration(trail: Any) -> None:
    """A `trail` that isn't a table of trail_table()'s is refused when the configuration is made, with the remedy."""
    with pytest.raises(ConfigurationError, match=r"trail_table\(\)"):
        SQLAuditConfig(trail=trail)


# --- one configuration beside another --------------------------------------------------------------------------------


async def test_trail_of_one_maker_beside_the_default_one(engine: AsyncEngine) -> None:
    """A maker hooked with its own configuration writes to its own trail, the other one to the default's."""
    own = SQLAuditConfig(trail=trail_table("own_history"))
    set_config(SQLAuditConfig())
    first, second = async_sessionmaker(engine), async_sessionmaker(engine)
    register_hooks(first)
    register_hooks(second, config=own)
    await create(engine, Base)
    await create_audit_tables(engine, config=own)

    async with first() as session:
        session.add(Customer(id=1, name="a"))
        await session.commit()
    async with second() as session:
        await session.execute(update(Customer).values(name="b"))
        await session.commit()

    assert await told_in(engine, "sqlaudit_change") == [("insert", "Customer", "1", None)]
    assert await told_in(engine, "own_history") == [("update", "Customer", "1", None)]
    async with first() as session:
        assert await retrieved(session) == [("insert", 1, None, "a")]
        assert await retrieved(session, own) == [("update", 1, "a", "b")]


# --- creating and checking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("configured", ["default", "given", "nothing"])
async def test_trail_is_created_and_checked(engine: AsyncEngine, configured: str) -> None:
    """Creating takes the configured table, the given one, or sqlaudit's own; twice is once; checking tells of it."""
    table = change_table if configured == "nothing" else trail_table("history")
    config = SQLAuditConfig(trail=table) if configured == "given" else None
    if configured == "default":
        set_config(SQLAuditConfig(trail=table))

    with pytest.raises(TrailMissingError, match=rf"{table.name}.*create_audit_tables"):
        await check_audit_tables(engine, config=config)
    await create_audit_tables(engine, config=config)
    await create_audit_tables(engine, config=config)
    await check_audit_tables(engine, config=config)

    assert await tables_in(engine) == {table.name}


def test_trail_is_created_and_checked_by_synchronous_code(database: Database) -> None:
    """The _sync functions, and the plain ones, take an Engine, or a Connection, whose transaction they leave open."""
    engine = database.make_engine()
    config = SQLAuditConfig(trail=trail_table("history"))

    for check, create_ in (
        (check_audit_tables_sync, create_audit_tables_sync),
        (check_audit_tables, create_audit_tables),
    ):
        with pytest.raises(TrailMissingError, match="history"):
            check(engine, config=config)
        with engine.connect() as connection:
            create_(connection, config=config)
            check(connection, config=config)
            assert connection.in_transaction()
            connection.rollback()
        # MariaDB commits a CREATE TABLE by itself.
        create_(engine, config=config)
        check(engine, config=config)
        config.trail.drop(engine)

    engine.dispose()


async def test_creating_belongs_to_the_transaction_of_the_connection(engine: AsyncEngine) -> None:
    """On a connection, creating is undone with its transaction (where the database can undo it)."""
    async with engine.connect() as connection:
        await create_audit_tables(connection)
        await check_audit_tables(connection)
        await connection.rollback()

    assert await tables_in(engine) == ({"sqlaudit_change"} if engine.dialect.name == "mariadb" else set())


async def test_outdated_trail_is_told_with_the_columns_that_it_lacks(engine: AsyncEngine, maker: Maker) -> None:
    """Checking a table without some columns names them and what to do; a change fails, too."""
    set_config(SQLAuditConfig(trail=trail_table("history")))
    register_hooks(maker)
    await create(engine, Base)
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE history DROP COLUMN impersonated_by"))
        await connection.execute(text("ALTER TABLE history DROP COLUMN reason"))

    with pytest.raises(TrailOutdatedError, match=r"history lacks impersonated_by, reason;.*migrate") as raised:
        await check_audit_tables(engine)
    assert raised.value.missing == ["impersonated_by", "reason"]
    async with maker() as session:
        session.add(Customer(id=1, name="a"))
        with pytest.raises(TrailOutdatedError, match=r"history lacks (impersonated_by|reason);.*upgrade") as raised:
            await session.commit()
    assert raised.value.missing in (["impersonated_by"], ["reason"])

    assert await told_in_customers(engine) == []


# --- tenants ---------------------------------------------------------------------------------------------------------


async def test_tenants_by_a_map_of_the_engine_have_trails_of_their_own(tenants: tuple[AsyncEngine, list[str]]) -> None:
    """With a schema_translate_map on the engine, each tenant's changes are in the tenant's trail, and nowhere else."""
    engine, (first, second, _) = tenants
    set_config(SQLAuditConfig())
    makers = {}
    for number, tenant in enumerate((first, second), 1):
        there = engine.execution_options(schema_translate_map={None: tenant})
        makers[tenant] = async_sessionmaker(there)
        register_hooks(makers[tenant])
        await create(there, Base)
        await use(makers[tenant], number)

    assert await tables_in(engine) == set()
    for number, tenant in enumerate((first, second), 1):
        assert await told_in(engine, f"{tenant}.sqlaudit_change") == used(number)
        assert await told_in_customers(engine, f"{tenant}.customer") == [(1, "d")]
        async with makers[tenant]() as session:
            assert await retrieved(session) == RETRIEVED


async def test_tenants_by_a_map_of_the_session_have_their_own_trails(tenants: tuple[AsyncEngine, list[str]]) -> None:
    """A schema_translate_map for one transaction leads its changes to that tenant's trail; not the next one's."""
    engine, (first, second, _) = tenants
    maker = async_sessionmaker(engine)
    set_config(SQLAuditConfig())
    register_hooks(maker)
    for tenant in (first, second):
        await create(engine.execution_options(schema_translate_map={None: tenant}), Base)

    async with maker(expire_on_commit=False) as session:
        for tenant in (first, second, first):
            await session.connection(execution_options={"schema_translate_map": {None: tenant}})
            with audit_context(user_id=tenant):
                customer = await session.get(Customer, 1, populate_existing=True)
                if customer is None:
                    session.add(Customer(id=1, name=tenant))
                else:
                    customer.name = "again"
                await session.flush()
                await session.execute(
                    update(Customer).values(name="z"), execution_options={"synchronize_session": None}
                )
            await session.commit()
            session.expunge_all()

    for tenant, story in ((first, ["insert", "update", "update", "update"]), (second, ["insert", "update"])):
        told = await told_in(engine, f"{tenant}.sqlaudit_change")
        assert told == [(operation, "Customer", "1", tenant) for operation in story]
        async with maker() as session:
            await session.connection(execution_options={"schema_translate_map": {None: tenant}})
            assert (await retrieved(session))[0] == ("insert", 1, None, tenant)
            assert len(await retrieved(session)) == len(story)


async def test_each_tenants_trail_is_checked_and_upgraded(
    tenants: tuple[AsyncEngine, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checking and upgrading go where a schema_translate_map leads; a tenant's trail doesn't stand for another's."""
    engine, names = tenants
    first, second, _ = (engine.execution_options(schema_translate_map={None: name}) for name in names)
    await create_audit_tables(first)
    await check_audit_tables(first)
    with pytest.raises(TrailMissingError):
        await check_audit_tables(second)
    await create_audit_tables(second)
    release_next(monkeypatch)
    config = SQLAuditConfig(trail=trail_table())

    await upgrade_audit_tables(first, config=config)

    await check_audit_tables(first, config=config)
    with pytest.raises(TrailOutdatedError):
        await check_audit_tables(second, config=config)


async def test_one_trail_for_all_tenants(tenants: tuple[AsyncEngine, list[str]]) -> None:
    """A trail with a schema of its own isn't moved by a map of the models' schema; one with a mapped name is."""
    engine, (first, second, shared) = tenants
    set_config(SQLAuditConfig(trail=trail_table("history", schema="audit")))
    there = {
        tenant: engine.execution_options(schema_translate_map={None: tenant, "audit": shared})
        for tenant in (first, second)
    }

    for number, (tenant, bind) in enumerate(there.items(), 1):
        maker = async_sessionmaker(bind)
        register_hooks(maker)
        await create(bind, Base)
        await use(maker, number)
        assert await tables_in(engine, tenant) == {"customer"}

    assert await told_in(engine, f"{shared}.history") == used(1) + used(2)


async def test_tenant_without_a_trail_fails_alone(tenants: tuple[AsyncEngine, list[str]]) -> None:
    """A tenant whose trail is missing can't change anything; nothing of it gets into another tenant's trail."""
    engine, (first, second, _) = tenants
    set_config(SQLAuditConfig())
    for tenant in (first, second):
        await create(engine.execution_options(schema_translate_map={None: tenant}), Base)
    async with engine.begin() as connection:
        await connection.execute(text(f"DROP TABLE {second}.sqlaudit_change"))
    await create_audit_tables(engine)

    there = engine.execution_options(schema_translate_map={None: second})
    maker = async_sessionmaker(there)
    register_hooks(maker)
    async with maker() as session:
        session.add(Customer(id=1, name="a"))
        with pytest.raises(TrailMissingError):
            await session.commit()

    assert await told_in_customers(engine, f"{second}.customer") == []
    assert await told_in(engine, f"{first}.sqlaudit_change") == await told_in(engine, "sqlaudit_change") == []


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_search_path_leads_rows_and_trail_to_one_schema(tenants: tuple[AsyncEngine, list[str]]) -> None:
    """What SET LOCAL search_path says of the rows it says of their trail; the next transaction is elsewhere."""
    engine, (first, second, _) = tenants
    maker = async_sessionmaker(engine)
    set_config(SQLAuditConfig())
    register_hooks(maker)
    for tenant in (first, second):
        async with engine.begin() as connection:
            await connection.execute(text(f"SET LOCAL search_path TO {tenant}"))
            await connection.run_sync(Base.metadata.create_all)
            await check_audit_tables(connection)

    for tenant in (first, second, first):
        async with maker() as session:
            await session.execute(text(f"SET LOCAL search_path TO {tenant}"))
            customer = await session.get(Customer, 1)
            if customer is None:
                session.add(Customer(id=1, name=tenant))
            else:
                customer.name = "again"
            await session.flush()
            assert len(await retrieved(session)) == (1 if customer is None else 2)
            await session.commit()

    assert [each[0] for each in await told_in(engine, f"{first}.sqlaudit_change")] == ["insert", "update"]
    assert [each[0] for each in await told_in(engine, f"{second}.sqlaudit_change")] == ["insert"]


# --- several engines -------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def second_engine(folder: Path) -> AsyncIterator[AsyncEngine]:
    """Give an engine of another database, of SQLite."""
    with sqlite_database(folder) as database:
        engine = database.make_async_engine()
        yield engine
        await engine.dispose()


async def test_each_change_goes_to_the_bind_that_made_it(engine: AsyncEngine, tmp_path: Path) -> None:
    """In one session with two binds, each database has the trail of its own rows, with one transaction id."""
    async with second_engine(tmp_path) as other:
        maker = async_sessionmaker(binds={Base: engine, OtherBase: other})
        set_config(SQLAuditConfig())
        register_hooks(maker)
        await create(engine, Base)
        await create(other, OtherBase)

        with audit_context(user_id=1):
            async with maker() as session:
                session.add_all([Invoice(id=1, total=1), Customer(id=1, name="a")])
                await session.flush()
                await session.execute(update(Invoice).values(total=2))
                await session.execute(update(Customer).values(name="b"))
                await session.commit()
                totals = await get_resource_changes(
                    Invoice, session=session, filter_fields="total", sort_direction="asc"
                )
                names = await retrieved(session)

        assert await told_in(engine, "sqlaudit_change") == [
            (operation, "Customer", "1", "1") for operation in ("insert", "update")
        ]
        assert await told_in(other, "sqlaudit_change") == [
            (operation, "Invoice", "1", "1") for operation in ("insert", "update")
        ]
        assert [each.new_value for each in totals] == [1, 2]
        assert names == [("insert", 1, None, "a"), ("update", 1, "a", "b")]
        assert len({each.transaction_id for each in totals}) == 1


@pytest.mark.parametrize("how", ["flush", "statement"])
async def test_bind_without_a_trail_fails_the_change(engine: AsyncEngine, tmp_path: Path, how: str) -> None:
    """A change on a bind without a trail fails, and nothing is committed, there or on the other bind."""
    async with second_engine(tmp_path) as other:
        maker = async_sessionmaker(binds={Base: engine, OtherBase: other})
        set_config(SQLAuditConfig())
        register_hooks(maker)
        await create(engine, Base)
        await create(other, OtherBase)
        async with other.begin() as connection:
            await connection.execute(text("INSERT INTO invoice (id, total) VALUES (1, 1)"))
            await connection.execute(text("DROP TABLE sqlaudit_change"))
        with pytest.raises(TrailMissingError):
            await check_audit_tables(other)
        await check_audit_tables(engine)

        async with maker() as session:
            session.add(Customer(id=1, name="a"))
            await session.flush()
            if how == "flush":
                session.add(Invoice(id=2, total=2))
                with pytest.raises(TrailMissingError, match="create_audit_tables"):
                    await session.commit()
                with pytest.raises(PendingRollbackError):
                    await session.commit()
            else:
                with pytest.raises(TrailMissingError, match="create_audit_tables"):
                    await session.execute(update(Invoice).values(total=2))
                with pytest.raises(Exception, match="roll back"):
                    await session.commit()
            await session.rollback()
            session.add(Customer(id=2, name="b"))
            await session.commit()

        async with other.connect() as connection:
            rows = (await connection.execute(text("SELECT id, total FROM invoice"))).all()
        assert [tuple(row) for row in rows] == [(1, 1)]
        assert await told_in_customers(engine) == [(2, "b")]
        assert await told_in(engine, "sqlaudit_change") == [("insert", "Customer", "2", None)]


def test_binds_of_a_synchronous_session(database: Database, tmp_path: Path) -> None:
    """A plain Session with two binds writes each change where its row is, and reads it there."""

    def told(engine: Engine) -> list[tuple[str, str]]:
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT operation, resource_type FROM history ORDER BY id")).all()
            return [(row[0], row[1]) for row in rows]

    with sqlite_database(tmp_path) as second:
        engine, other = database.make_engine(), second.make_engine()
        set_config(SQLAuditConfig(trail=trail_table("history")))
        maker: sessionmaker[Session] = sessionmaker(binds={Customer: engine, Invoice: other})
        register_hooks(maker)
        Base.metadata.create_all(engine)
        OtherBase.metadata.create_all(other)

        with maker() as session:
            session.add_all([Invoice(id=1, total=1), Customer(id=1, name="a")])
            session.commit()
            assert [each.new_value for each in get_resource_changes_sync(Invoice, 1, session, "total")] == [1]
            assert [each.new_value for each in get_resource_changes_sync(Customer, 1, session, "name")] == ["a"]

        assert told(engine) == [("insert", "Customer")]
        assert told(other) == [("insert", "Invoice")]
        engine.dispose()
        other.dispose()
