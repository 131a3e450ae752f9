"""
advanced-alchemy: its base classes and types, its session maker, a repository and a service, and what they upsert.

    python examples/advanced_alchemy_shop.py
"""

import asyncio
import datetime as dt
import os
import uuid
from typing import Any

from advanced_alchemy.base import UUIDAuditBase
from advanced_alchemy.extensions.fastapi import AsyncSessionConfig, SQLAlchemyAsyncConfig
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from advanced_alchemy.service import SQLAlchemyAsyncRepositoryService
from advanced_alchemy.types import DateTimeUTC, EncryptedString, JsonB
from sqlalchemy import Column, ForeignKey, String, Table
from sqlalchemy.orm import Mapped, mapped_column, relationship

from sqlaudit import SQLAuditConfig, audit_context, get_resource_changes, register_hooks, set_config, track_table

customer_tag = Table(
    "customer_tag",
    UUIDAuditBase.metadata,
    Column("customer_id", ForeignKey("customer.id", ondelete="CASCADE"), primary_key=True),
    Column("tag_id", ForeignKey("tag.id", ondelete="CASCADE"), primary_key=True),
)


@track_table(exclude_fields=["created_at", "updated_at"])
class Tag(UUIDAuditBase):
    __tablename__ = "tag"

    name: Mapped[str] = mapped_column(String(50), unique=True)


# `tags` is many-to-many: its links are told as a field of the customer's.
@track_table(tracked_fields=["email", "iban", "settings", "seen_at", "tags"])
class Customer(UUIDAuditBase):
    __tablename__ = "customer"

    email: Mapped[str] = mapped_column(String(320), unique=True)
    iban: Mapped[str | None] = mapped_column(EncryptedString(key="from your vault"))
    settings: Mapped[dict[str, Any]] = mapped_column(JsonB, default=dict)
    seen_at: Mapped[dt.datetime | None] = mapped_column(DateTimeUTC)
    tags: Mapped[list[Tag]] = relationship(secondary=customer_tag, lazy="selectin")
    orders: Mapped[list["Order"]] = relationship(back_populates="customer", cascade="all, delete-orphan")


@track_table()
class Order(UUIDAuditBase):
    __tablename__ = "orders"

    customer_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("customer.id"))
    state: Mapped[str] = mapped_column(String(20), default="new")
    customer: Mapped[Customer] = relationship(back_populates="orders")


class CustomerService(SQLAlchemyAsyncRepositoryService[Customer]):
    class Repository(SQLAlchemyAsyncRepository[Customer]):
        model_type = Customer

    repository_type = Repository


class OrderRepository(SQLAlchemyAsyncRepository[Order]):
    model_type = Order


alchemy = SQLAlchemyAsyncConfig(
    connection_string=os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///"),
    session_config=AsyncSessionConfig(expire_on_commit=False),
    create_all=True,
)


async def main() -> None:
    sessions = alchemy.create_session_maker()
    set_config(SQLAuditConfig(session_factory=sessions))
    register_hooks()  # every Session: the maker of advanced-alchemy is made anew when it is asked for
    async with alchemy.get_engine().begin() as connection:
        await connection.run_sync(UUIDAuditBase.metadata.create_all)

    async with alchemy.get_session() as session:
        customers = CustomerService(session=session, auto_commit=True)
        orders = OrderRepository(session=session, auto_commit=True)
        with audit_context(user_id="olena"):
            joan = await customers.create({"email": "joan@example.com", "iban": "UA21", "settings": {"theme": "dark"}})
            joan.tags = [Tag(name="vip")]
            await customers.update(joan)
            await customers.create_many([{"email": "a@example.com"}, {"email": "b@example.com"}])
            await orders.add_many([Order(customer_id=joan.id) for _ in range(3)])
        with audit_context(user_id="petro"):
            await customers.update({"iban": "UA22", "seen_at": dt.datetime(2026, 3, 1, tzinfo=dt.UTC)}, item_id=joan.id)
            await customers.upsert({"id": joan.id, "email": "joan@example.org"})
            await customers.upsert_many(
                [{"id": joan.id, "email": "j@example.org"}, {"email": "new@example.org"}], match_fields=["id"]
            )
            first, second, _ = await orders.get_many()
            await orders.update_many([Order(id=first.id, state="sent"), Order(id=second.id, state="sent")])
            await orders.delete_many([first.id, second.id])
            await orders.delete_where(Order.state == "new")
            await customers.get_or_upsert(email="late@example.com", match_fields=["email"])
            joan = await customers.get(joan.id)
            joan.tags.clear()
            await customers.update(joan)
            await customers.delete(joan.id)

        for change in await get_resource_changes(Customer, joan.id, session, sort_direction="asc"):
            print(
                change.changed_by,
                change.operation,
                change.field_name,
                repr(change.old_value),
                "->",
                repr(change.new_value),
            )
    await alchemy.get_engine().dispose()


if __name__ == "__main__":
    asyncio.run(main())
