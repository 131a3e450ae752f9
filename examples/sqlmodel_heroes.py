"""
SQLModel: the decorator on `table=True` classes, SQLModel's own AsyncSession, `session.exec()`.

    python examples/sqlmodel_heroes.py
"""

import asyncio
import datetime as dt
import os
import uuid
from decimal import Decimal
from enum import StrEnum

from sqlalchemy import JSON, Column
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlmodel import Field, Relationship, SQLModel, col, delete, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlaudit import SQLAuditConfig, audit_context, get_resource_changes, register_hooks, set_config, track_table


class Power(StrEnum):
    FLIGHT = "flight"
    STRENGTH = "strength"


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@track_table()
class HeroTeam(SQLModel, table=True):
    """The link of the many-to-many relationship."""

    hero_id: uuid.UUID = Field(foreign_key="hero.id", primary_key=True)
    team_id: int = Field(foreign_key="team.id", primary_key=True)


@track_table()
class Team(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(index=True, max_length=50)

    heroes: list["Hero"] = Relationship(back_populates="teams", link_model=HeroTeam)


class HeroBase(SQLModel):
    """What the API and the table share."""

    name: str = Field(max_length=50)
    age: int | None = Field(default=None, ge=0)
    fee: Decimal = Field(default=Decimal(0), max_digits=10, decimal_places=2)
    power: Power = Power.FLIGHT
    updated_at: dt.datetime | None = Field(default=None, sa_column_kwargs={"onupdate": now})


@track_table(masked_fields=["secret_name"])
class Hero(HeroBase, table=True):
    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    secret_name: str = Field(max_length=50)
    traits: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON))

    teams: list[Team] = Relationship(back_populates="heroes", link_model=HeroTeam)


class HeroUpdate(SQLModel):
    """The body of a PATCH request."""

    name: str | None = Field(default=None, max_length=50)
    age: int | None = None


async def use(engine: AsyncEngine) -> uuid.UUID:
    """Do what an application does; return the key of a hero."""
    sessions = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)
    set_config(SQLAuditConfig(session_factory=sessions))
    register_hooks(sessions)
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)  # creates the trail, too

    async with sessions() as session:
        with audit_context(user_id="olena", reason="new in town"):
            hero = Hero.model_validate({"name": "Deadpond", "secret_name": "Dive Wilson", "fee": "9.90"})
            hero.teams = [Team(name="Preventers"), Team(name="Z-Force")]
            session.add(hero)
            await session.commit()

        with audit_context(user_id="petro"):
            found = (await session.exec(select(Hero).where(Hero.name == "Deadpond"))).one()
            found.sqlmodel_update(HeroUpdate(age=30).model_dump(exclude_unset=True))
            found.traits = {"humour": "dark"}
            session.add(found)
            await session.commit()

            await session.exec(update(Hero).where(col(Hero.age) > 18).values(fee=Hero.fee + 1, power=Power.STRENGTH))
            await session.exec(delete(HeroTeam).where(col(HeroTeam.hero_id) == hero.id))
            await session.exec(delete(Team).where(col(Team.name) == "Z-Force"))
            await session.commit()
    return hero.id


async def main() -> None:
    engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite://"))
    hero_id = await use(engine)
    async with AsyncSession(engine) as session:
        for change in await get_resource_changes(Hero, hero_id, session, sort_direction="asc"):
            what = f"{change.operation} {change.field_name}: {change.old_value!r} -> {change.new_value!r}"
            print(f"{change.changed_by} {what}")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
