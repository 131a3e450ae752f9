"""Where the CRM keeps its data."""

import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///crm.sqlite"))
async_session = async_sessionmaker(engine, expire_on_commit=False)

if engine.dialect.name == "sqlite":

    @event.listens_for(engine.sync_engine, "connect")
    def wait_for_the_others(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 60000")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_immediate(connection: Connection) -> None:
        # SQLite locks no rows: who reads in order to change must have the database first.
        connection.exec_driver_sql("BEGIN IMMEDIATE")


async def get_session() -> AsyncIterator[AsyncSession]:
    async with async_session() as session:
        yield session


DatabaseSession = Annotated[AsyncSession, Depends(get_session)]
