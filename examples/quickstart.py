"""
Two users change a customer, and the trail tells who did what, when and why.

Needs aiosqlite, and nothing else: python examples/quickstart.py
"""

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlaudit import (
    FieldChange,
    SQLAuditConfig,
    audit_context,
    create_audit_tables,
    get_resource_changes,
    register_hooks,
    set_config,
    track_table,
)

engine = create_async_engine("sqlite+aiosqlite://")  # in memory
async_session = async_sessionmaker(engine)

# Whoever is logged in; an application sets it for each request.
current_user_id: ContextVar[int | None] = ContextVar("current_user_id", default=None)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"

    user_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@track_table(tracked_fields=["name", "email"], table_label="Customer")
class Customer(Base):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str | None]


async def main() -> None:
    set_config(
        SQLAuditConfig(
            session_factory=async_session,
            user_model=User,
            user_model_user_id_field="user_id",
            get_user_id_callback=current_user_id.get,
            time_zone="Europe/Kyiv",
        )
    )
    register_hooks()

    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await create_audit_tables(engine)

    async with async_session() as session:
        session.add_all([User(user_id=1, name="Olena"), User(user_id=42, name="Petro")])
        await session.commit()

        # Olena is logged in: the callback names her.
        current_user_id.set(1)
        customer = Customer(name="Jane Doe", email="jane@example.com")
        session.add(customer)
        await session.commit()

        # The commit has expired the object, so the old name isn't in memory. The trail has it all the same.
        customer.name = "Jane Smith"
        await session.commit()

        # Petro acts within a block, which also says why, and what else is worth keeping.
        with audit_context(user_id=42, reason="GDPR request 17", request_id="r-1"):
            await session.delete(customer)
            await session.commit()

        names = {user.user_id: user.name for user in await session.scalars(select(User))}

    # Without session=, it opens one and closes it. The newest come first, unless you say otherwise.
    print_trail(await get_resource_changes(Customer, sort_direction="asc"), names)

    await engine.dispose()


def print_trail(changes: list[FieldChange], names: Mapping[int, str]) -> None:
    """Print *changes* as a table, with the users' *names*."""
    rows = [("WHEN", "WHO", "WHAT", "FROM", "TO", "WHY")]
    for change in changes:
        facts = [f"{name}: {value}" for name, value in change.context.items()]
        rows.append(
            (
                f"{change.timestamp:%Y-%m-%d %H:%M:%S %Z}",
                names[change.changed_by],
                f"{change.operation} {change.resource_type} {change.resource_id} {change.field_name}",
                str(change.old_value),
                str(change.new_value),
                ", ".join([change.reason or "", *facts]),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    asyncio.run(main())
