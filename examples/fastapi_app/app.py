"""
Customers over HTTP, and who changed them.

Whoever calls says who they are in the X-User-Id header. Behind a gateway that
checks it, that is enough; elsewhere, read a token in `ActorMiddleware` instead.
"""

import datetime as dt
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, String, event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sqlaudit import (
    Operation,
    SQLAuditConfig,
    audit_context,
    create_audit_tables,
    get_resource_changes,
    register_hooks,
    set_config,
    track_table,
)
from sqlaudit.exceptions import ActorRequiredError

# --- the database ----------------------------------------------------------------------------------------------------

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///customers.sqlite"))
async_session = async_sessionmaker(engine, expire_on_commit=False)

if engine.dialect.name == "sqlite":

    @event.listens_for(engine.sync_engine, "connect")
    def wait_for_the_others(connection: Any, _: Any) -> None:
        # Milliseconds: SQLite's lock goes to anybody, not to who has waited longest.
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 60000")
        cursor.close()

    # SQLite locks no rows: who reads a customer in order to change it must have the database first.
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
    note: Mapped[str | None] = mapped_column(String(1000))


async def get_session() -> AsyncIterator[AsyncSession]:
    async with async_session() as session:
        yield session


DatabaseSession = Annotated[AsyncSession, Depends(get_session)]

# --- who acts --------------------------------------------------------------------------------------------------------


class ActorMiddleware:
    """
    Let every request act as the user that its headers name.

    Plain ASGI: the endpoint runs in the task in which the context was set.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        facts = {"request_id": headers["X-Request-Id"]} if "X-Request-Id" in headers else {}
        with audit_context(user_id=headers.get("X-User-Id") or None, **facts):
            await self.app(scope, receive, send)


# --- the application -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    set_config(SQLAuditConfig(session_factory=async_session, require_user=True))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await create_audit_tables(engine)
    with register_hooks(async_session):
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(ActorMiddleware)


@app.exception_handler(ActorRequiredError)
async def refuse_anonymous(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "Say who you are in the X-User-Id header."}, status_code=401)


class NewCustomer(BaseModel):
    name: str
    note: str | None = None


class CustomerPatch(BaseModel):
    name: str = ""  # what isn't sent isn't changed
    note: str | None = None


class CustomerView(NewCustomer):
    model_config = ConfigDict(from_attributes=True)

    id: int


class HistoryEntry(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    timestamp: dt.datetime
    changed_by: str | None
    operation: Operation
    field_name: str
    old_value: Any
    new_value: Any
    reason: str | None
    context: dict[str, Any]


async def find_for_update(session: AsyncSession, customer_id: int) -> Customer:
    customer = await session.get(Customer, customer_id, with_for_update=True)
    if customer is None:
        raise HTTPException(404, "There is no such customer.")
    return customer


# Each endpoint commits by itself: a dependency that did so after its `yield` would come after the answer.
@app.post("/customers", status_code=201)
async def create_customer(body: NewCustomer, session: DatabaseSession) -> CustomerView:
    customer = Customer(**body.model_dump())
    session.add(customer)
    await session.commit()
    return CustomerView.model_validate(customer)


@app.patch("/customers/{customer_id}")
async def change_customer(customer_id: int, body: CustomerPatch, session: DatabaseSession) -> CustomerView:
    customer = await find_for_update(session, customer_id)
    for field, value in body.model_dump(exclude_unset=True).items():
        setattr(customer, field, value)
    await session.commit()
    return CustomerView.model_validate(customer)


@app.delete("/customers/{customer_id}", status_code=204)
async def delete_customer(customer_id: int, session: DatabaseSession) -> None:
    customer = await find_for_update(session, customer_id)
    await session.delete(customer)
    await session.commit()


@app.get("/customers/{customer_id}/history")
async def customer_history(customer_id: int, session: DatabaseSession) -> list[HistoryEntry]:
    changes = await get_resource_changes(Customer, session=session, filter_resource_ids=customer_id)
    if not changes:
        raise HTTPException(404, "There was never such a customer.")
    return [HistoryEntry.model_validate(change) for change in changes]
