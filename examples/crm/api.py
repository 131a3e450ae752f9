"""The CRM over HTTP. Whoever calls sends the key of a user in the X-Api-Key header."""

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict
from sqlalchemy import CursorResult, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from sqlaudit import (
    OldNew,
    Operation,
    SQLAuditConfig,
    audit_context,
    bind_audit_context,
    get_changes,
    get_resource_snapshot,
    register_hooks,
    restore_resource,
    set_config,
)

from .database import DatabaseSession, async_session, engine
from .models import (
    Activity,
    Address,
    Base,
    Call,
    Company,
    Deal,
    DealLine,
    Meeting,
    Note,
    Party,
    Person,
    Product,
    Role,
    Stage,
    Tag,
    Team,
    User,
)

Record = TypeVar("Record", Company, Person, Party, Deal, Product, Team)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    set_config(SQLAuditConfig(session_factory=async_session, user_model=User, require_user=True))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    with register_hooks(async_session):
        async with async_session() as session:
            if await session.scalar(select(User.id).limit(1)) is None:
                with audit_context(user_id="setup"):
                    session.add(User(name="Root", role=Role.ADMIN, api_key="root-key"))
                    await session.commit()
        yield
    await engine.dispose()


app = FastAPI(title="CRM", lifespan=lifespan)

# --- who calls -------------------------------------------------------------------------------------------------------


async def get_user(
    session: DatabaseSession,
    x_api_key: Annotated[str, Header()] = "",
    x_reason: Annotated[str | None, Header()] = None,
) -> User:
    user = await session.scalar(select(User).where(User.api_key == x_api_key))
    if user is None:
        raise HTTPException(401, "Send the key of a user in the X-Api-Key header.")
    user.last_seen = dt.datetime.now(dt.UTC)
    bind_audit_context(session, user_id=user.id, reason=x_reason)
    return user


CurrentUser = Annotated[User, Depends(get_user)]


async def find(session: AsyncSession, model: type[Record], key: int) -> Record:
    found = await session.get(model, key)
    if found is None or getattr(found, "deleted_at", None) is not None:
        raise HTTPException(404, f"There is no such {model.__name__.lower()}.")
    return found


# --- what comes and goes ---------------------------------------------------------------------------------------------


class View(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int


class NewUser(BaseModel):
    name: str
    api_key: str
    role: Role = Role.SALES


class NewTeam(BaseModel):
    name: str
    members: list[int] = []


class NewAddress(BaseModel):
    street: str
    city: str


class NewCompany(BaseModel):
    name: str
    vat_number: str | None = None
    addresses: list[NewAddress] = []


class NewPerson(BaseModel):
    name: str
    email: str | None = None
    birthday: dt.date | None = None
    company_id: int | None = None


class PartyPatch(BaseModel):
    name: str = ""  # what isn't sent isn't changed
    vat_number: str | None = None
    email: str | None = None
    company_id: int | None = None
    addresses: list[NewAddress] = []


class NewProduct(BaseModel):
    name: str
    price: Decimal


class NewDeal(BaseModel):
    party_id: int
    title: str
    amount: Decimal = Decimal(0)
    custom: dict[str, Any] = {}


class DealPatch(BaseModel):
    title: str = ""
    stage: Stage = Stage.LEAD
    amount: Decimal = Decimal(0)
    custom: dict[str, Any] = {}  # merged into what is there


class NewLine(BaseModel):
    product_id: int
    quantity: int


class NewActivity(BaseModel):
    kind: str
    party_id: int
    deal_id: int | None = None
    text: str
    minutes: int | None = None
    place: str | None = None


class Reassignment(BaseModel):
    from_user: int
    to_user: int


# --- users and teams -------------------------------------------------------------------------------------------------


@app.post("/users", status_code=201)
async def create_user(body: NewUser, session: DatabaseSession, user: CurrentUser) -> View:
    new = User(**body.model_dump())
    session.add(new)
    await session.commit()
    return View.model_validate(new)


@app.post("/teams", status_code=201)
async def create_team(body: NewTeam, session: DatabaseSession, user: CurrentUser) -> View:
    members = list(await session.scalars(select(User).where(User.id.in_(body.members))))
    team = Team(name=body.name, members=members)
    session.add(team)
    await session.commit()
    return View.model_validate(team)


# --- parties ---------------------------------------------------------------------------------------------------------


@app.post("/companies", status_code=201)
async def create_company(body: NewCompany, session: DatabaseSession, user: CurrentUser) -> View:
    company = Company(name=body.name, vat_number=body.vat_number)
    company.addresses = [Address(**each.model_dump()) for each in body.addresses]
    session.add(company)
    await session.commit()
    return View.model_validate(company)


@app.post("/people", status_code=201)
async def create_person(body: NewPerson, session: DatabaseSession, user: CurrentUser) -> View:
    person = Person(**body.model_dump())
    session.add(person)
    await session.commit()
    return View.model_validate(person)


@app.patch("/parties/{party_id}")
async def change_party(party_id: int, body: PartyPatch, session: DatabaseSession, user: CurrentUser) -> View:
    party = await find(session, Party, party_id)
    given = body.model_dump(exclude_unset=True)
    if "addresses" in given:
        await session.refresh(party, ["addresses"])
        party.addresses = [Address(**each) for each in given.pop("addresses")]
    for field, value in given.items():
        setattr(party, field, value)
    await session.commit()
    return View.model_validate(party)


@app.put("/parties/{party_id}/tags")
async def tag_party(party_id: int, names: list[str], session: DatabaseSession, user: CurrentUser) -> View:
    party = await find(session, Party, party_id)
    known = {tag.name: tag for tag in await session.scalars(select(Tag).where(Tag.name.in_(names)))}
    party.tags = [known.get(name) or Tag(name=name) for name in names]
    await session.commit()
    return View.model_validate(party)


@app.delete("/parties/{party_id}", status_code=204)
async def delete_party(party_id: int, session: DatabaseSession, user: CurrentUser) -> None:
    party = await find(session, Party, party_id)
    party.deleted_at = dt.datetime.now(dt.UTC)
    await session.commit()


# --- products and deals ----------------------------------------------------------------------------------------------


@app.post("/products", status_code=201)
async def create_product(body: NewProduct, session: DatabaseSession, user: CurrentUser) -> View:
    product = Product(**body.model_dump())
    session.add(product)
    await session.commit()
    return View.model_validate(product)


@app.post("/deals", status_code=201)
async def create_deal(body: NewDeal, session: DatabaseSession, user: CurrentUser) -> View:
    await find(session, Party, body.party_id)
    deal = Deal(**body.model_dump(), owner_id=user.id)
    session.add(deal)
    await session.commit()
    return View.model_validate(deal)


@app.patch("/deals/{deal_id}")
async def change_deal(deal_id: int, body: DealPatch, session: DatabaseSession, user: CurrentUser) -> View:
    deal = await find(session, Deal, deal_id)
    given = body.model_dump(exclude_unset=True)
    deal.custom.update(given.pop("custom", {}))
    for field, value in given.items():
        setattr(deal, field, value)
    await session.commit()
    return View.model_validate(deal)


@app.put("/deals/{deal_id}/lines")
async def set_lines(deal_id: int, body: list[NewLine], session: DatabaseSession, user: CurrentUser) -> View:
    deal = await find(session, Deal, deal_id)
    existing = {line.product_id: line for line in deal.lines}
    lines = []
    for each in body:
        product = await find(session, Product, each.product_id)
        line = existing.get(product.id) or DealLine(product_id=product.id, price=product.price)
        line.quantity = each.quantity
        lines.append(line)
    deal.lines = lines
    deal.amount = sum((line.quantity * line.price for line in lines), Decimal(0))
    await session.commit()
    return View.model_validate(deal)


@app.post("/deals/reassign")
async def reassign_deals(body: Reassignment, session: DatabaseSession, user: CurrentUser) -> int:
    open_deals = update(Deal).where(Deal.owner_id == body.from_user, Deal.stage.in_([Stage.LEAD, Stage.OFFER]))
    result = await session.execute(open_deals.values(owner_id=body.to_user, version=Deal.version + 1))
    await session.commit()
    assert isinstance(result, CursorResult)
    moved: int = result.rowcount
    return moved


@app.delete("/deals/{deal_id}", status_code=204)
async def delete_deal(deal_id: int, session: DatabaseSession, user: CurrentUser) -> None:
    await session.delete(await find(session, Deal, deal_id))
    await session.commit()


@app.post("/activities", status_code=201)
async def create_activity(body: NewActivity, session: DatabaseSession, user: CurrentUser) -> View:
    about = {"party_id": body.party_id, "deal_id": body.deal_id, "text": body.text}
    activity: Activity
    if body.kind == "call":
        activity = Call(**about, duration=None if body.minutes is None else dt.timedelta(minutes=body.minutes))
    elif body.kind == "meeting":
        activity = Meeting(**about, place=body.place)
    else:
        activity = Note(**about)
    session.add(activity)
    await session.commit()
    return View.model_validate(activity)


# --- who did what ----------------------------------------------------------------------------------------------------


class ChangeView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    change_id: int
    timestamp: dt.datetime
    operation: Operation
    resource_type: str
    resource_id: Any
    changed_by: Any
    reason: str | None
    fields: dict[str, OldNew]


@app.get("/parties/{party_id}/history")
async def party_history(party_id: int, session: DatabaseSession, user: CurrentUser) -> list[ChangeView]:
    changes = await get_changes(Party, session=session, resource_ids=party_id, include=["addresses", "tags"])
    return [ChangeView.model_validate(each) for each in changes]


@app.get("/deals/{deal_id}/history")
async def deal_history(deal_id: int, session: DatabaseSession, user: CurrentUser) -> list[ChangeView]:
    changes = await get_changes(Deal, session=session, resource_ids=deal_id, include=["lines"])
    return [ChangeView.model_validate(each) for each in changes]


@app.get("/audit")
async def audit(
    session: DatabaseSession, user: CurrentUser, by: int | None = None, after: int | None = None, limit: int = 50
) -> list[ChangeView]:
    changes = await get_changes(session=session, user_ids=by, after=after, limit=limit)
    return [ChangeView.model_validate(each) for each in changes]


@app.get("/deals/{deal_id}/as-of")
async def deal_as_of(deal_id: int, at: int, session: DatabaseSession, user: CurrentUser) -> dict[str, Any]:
    snapshot = await get_resource_snapshot(Deal, deal_id, session=session, at=at, include=["lines"])
    if snapshot.state is None:
        raise HTTPException(404, "There was no such deal then.")
    return {**snapshot.state, "lines": [line.state for line in snapshot.related["lines"]]}


@app.post("/deals/{deal_id}/restore")
async def restore_deal(deal_id: int, at: int, session: DatabaseSession, user: CurrentUser) -> View:
    await restore_resource(Deal, deal_id, session=session, at=at)
    await session.commit()
    return View(id=deal_id)
