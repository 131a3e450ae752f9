"""What the applications of test_asgi.py have in common: a tracked customer, and ways to change one."""

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Connection, String, create_engine, event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlaudit import SQLAuditConfig, create_audit_tables, register_hooks, set_config, track_table

engine = create_async_engine(os.environ["DATABASE_URL"])
async_session = async_sessionmaker(engine)

if engine.dialect.name == "sqlite":

    @event.listens_for(engine.sync_engine, "connect")
    def wait_for_the_others(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 60000")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_immediate(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(Base):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))


set_config(SQLAuditConfig(session_factory=async_session))
register_hooks()


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await create_audit_tables(engine)
    yield
    await engine.dispose()


async def add(name: str) -> None:
    """Add a customer in a transaction of its own."""
    async with async_session.begin() as session:
        session.add(Customer(name=name))


def add_in_thread(name: str) -> None:
    """Add a customer with a plain session; SQLite only."""
    plain = create_engine(os.environ["DATABASE_URL"].replace("+aiosqlite", ""))
    with Session(plain) as session, session.begin():
        session.add(Customer(name=name))
    plain.dispose()


def run_in_thread_of_its_own(function: Any, *args: Any, **kwargs: Any) -> None:
    """Run *function* where nothing of the request's context is."""
    thread = threading.Thread(target=function, args=args, kwargs=kwargs)
    thread.start()
    thread.join()
