"""
fastapi-users: who changed which account. The actor is who is logged in; the password's hash is masked.

    uvicorn examples.fastapi_users_app:app
"""

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi_users import BaseUserManager, FastAPIUsers, UUIDIDMixin, schemas
from fastapi_users.authentication import AuthenticationBackend, BearerTransport, JWTStrategy
from fastapi_users_db_sqlalchemy import SQLAlchemyBaseUserTableUUID, SQLAlchemyUserDatabase
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from sqlaudit import SQLAuditConfig, audit_context, get_resource_changes, register_hooks, set_config, track_table

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///users.sqlite"))
async_session = async_sessionmaker(engine, expire_on_commit=False)
SECRET = os.environ.get("SECRET", "keep a secret of at least 32 bytes in the environment")


class Base(DeclarativeBase):
    pass


# Who registers, or sets a forgotten password, isn't logged in: the account itself is the actor.
@track_table(masked_fields=["hashed_password"], user_id_field="id")
class User(SQLAlchemyBaseUserTableUUID, Base):
    pass


class UserRead(schemas.BaseUser[uuid.UUID]):
    pass


class UserCreate(schemas.BaseUserCreate):
    pass


class UserUpdate(schemas.BaseUserUpdate):
    pass


class UserManager(UUIDIDMixin, BaseUserManager[User, uuid.UUID]):
    reset_password_token_secret = SECRET
    verification_token_secret = SECRET


async def get_session() -> AsyncIterator[AsyncSession]:
    async with async_session() as session:
        yield session


async def get_user_manager(session: Annotated[AsyncSession, Depends(get_session)]) -> AsyncIterator[UserManager]:
    yield UserManager(SQLAlchemyUserDatabase(session, User))


def get_strategy() -> JWTStrategy[User, uuid.UUID]:
    return JWTStrategy(SECRET, lifetime_seconds=3600)


backend = AuthenticationBackend("jwt", BearerTransport(tokenUrl="auth/login"), get_strategy)
fastapi_users = FastAPIUsers[User, uuid.UUID](get_user_manager, [backend])
CurrentUser = Annotated[User | None, Depends(fastapi_users.current_user(active=True, optional=True))]


async def act_as_current_user(user: CurrentUser) -> AsyncIterator[None]:
    # Not `def`: a dependency in a thread has a context of its own, and the endpoint wouldn't see what is set there.
    with audit_context(user_id=None if user is None else user.id):
        yield


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    set_config(SQLAuditConfig(session_factory=async_session, user_model=User, user_model_user_id_field="id"))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)  # creates the trail, too
    with register_hooks(async_session):
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan, dependencies=[Depends(act_as_current_user)])
app.include_router(fastapi_users.get_auth_router(backend), prefix="/auth")
app.include_router(fastapi_users.get_register_router(UserRead, UserCreate), prefix="/auth")
app.include_router(fastapi_users.get_reset_password_router(), prefix="/auth")
app.include_router(fastapi_users.get_users_router(UserRead, UserUpdate), prefix="/users")


@app.get("/users/{user_id}/history", dependencies=[Depends(fastapi_users.current_user(superuser=True))])
async def history(user_id: uuid.UUID) -> list[str]:
    return [
        f"{change.changed_by} {change.operation} {change.field_name}: {change.old_value} -> {change.new_value}"
        for change in await get_resource_changes(User, user_id, sort_direction="asc")
    ]
