"""Law 2: hooks hold for as long as what they were registered for, and say nothing of what takes its place in memory."""

import gc

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from conformance_setup import save, stored_changes
from sqlaudit import SQLAuditConfig, create_audit_tables, register_hooks, set_config, track_table


async def test_makers_that_come_after_dead_makers_are_hooked(engine: AsyncEngine) -> None:
    """A maker that is made where another was, which is gone, is recorded as the first one was."""

    class Base(DeclarativeBase):
        pass

    @track_table()
    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    set_config(SQLAuditConfig())
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await create_audit_tables(connection)

    for number in range(8):
        maker = async_sessionmaker(engine)
        register_hooks(maker)
        async with maker() as session:
            await save(session, Item(name=f"item {number}"))
        del maker, session
        gc.collect()

    assert len(await stored_changes(async_sessionmaker(engine), "Item")) == 8
