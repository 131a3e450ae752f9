"""Every way in which a FastAPI application learns who acts, and in which it writes."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import Scope

from asgi_apps.shop import Customer as Row, add, add_in_thread, async_session, lifespan, run_in_thread_of_its_own
from sqlaudit import audit_context, set_audit_context
from sqlaudit.integrations.asgi import AuditMiddleware, identify

router = APIRouter(prefix="/customers")


async def name_sent(request: Request) -> str:
    """Stand for a token that only the application understands."""
    return request.headers["x-token"].removeprefix("token of ")


Sent = Annotated[str, Depends(name_sent)]

# --- who acts --------------------------------------------------------------------------------------------------------


async def by_state(request: Request, user: Sent) -> None:
    request.state.user_id = user


async def by_async_dependency(user: Sent) -> None:
    set_audit_context(user_id=user)


async def by_async_generator(user: Sent) -> AsyncIterator[None]:
    with audit_context(user_id=user):
        yield


def by_sync_dependency(user: Sent) -> None:
    identify(user)


def by_sync_generator(user: Sent) -> Iterator[None]:
    identify(user)
    yield


def by_thread(request: Request, user: Sent) -> None:
    run_in_thread_of_its_own(identify, user, request=request)


def lost_in_sync_dependency(user: Sent) -> None:
    set_audit_context(user_id=user)


def lost_in_sync_generator(user: Sent) -> Iterator[None]:
    with audit_context(user_id=user):
        yield


@router.post("/state/{name}", dependencies=[Depends(by_state)])
@router.post("/async-dependency/{name}", dependencies=[Depends(by_async_dependency)])
@router.post("/async-generator/{name}", dependencies=[Depends(by_async_generator)])
@router.post("/sync-dependency/{name}", dependencies=[Depends(by_sync_dependency)])
@router.post("/sync-generator/{name}", dependencies=[Depends(by_sync_generator)])
@router.post("/thread/{name}", dependencies=[Depends(by_thread)])
@router.post("/lost-in-sync-dependency/{name}", dependencies=[Depends(lost_in_sync_dependency)])
@router.post("/lost-in-sync-generator/{name}", dependencies=[Depends(lost_in_sync_generator)])
async def write(name: str) -> str:
    await add(name)
    return name


# --- who writes ------------------------------------------------------------------------------------------------------


@router.post("/sync-endpoint/{name}", dependencies=[Depends(by_sync_dependency)])
def write_in_thread(name: str) -> None:
    add_in_thread(name)


@router.post("/background/{name}", dependencies=[Depends(by_sync_dependency)])
async def write_in_background(name: str, tasks: BackgroundTasks) -> None:
    tasks.add_task(add, name)


@router.post("/sync-background/{name}", dependencies=[Depends(by_async_dependency)])
async def write_in_background_thread(name: str, tasks: BackgroundTasks) -> None:
    tasks.add_task(add_in_thread, name)


@router.post("/stream/{name}", dependencies=[Depends(by_sync_dependency)])
async def write_while_streaming(name: str) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"first "
        await add(name)
        yield b"last"

    return StreamingResponse(body())


async def session_that_commits_at_teardown() -> AsyncIterator[AsyncSession]:
    async with async_session.begin() as session:
        yield session


@router.post("/teardown/{name}")
async def write_at_teardown(
    name: str,
    session: Annotated[AsyncSession, Depends(session_that_commits_at_teardown)],
    _: Annotated[None, Depends(by_sync_generator)],
) -> None:
    session.add(Row(name=name))


@router.post("/failing/{name}", dependencies=[Depends(by_sync_dependency)])
async def fail(name: str) -> None:
    await add(name)
    raise RuntimeError(name)


@router.websocket("/socket/{user}")
async def write_at_each_message(websocket: WebSocket, user: str) -> None:
    await websocket.accept()
    identify(user, request=websocket)
    async for name in websocket.iter_text():
        await add(name)
        await websocket.send_text(name)


# --- the application -------------------------------------------------------------------------------------------------


def user_of(scope: Scope) -> str | None:
    user: str | None = scope.get("state", {}).get("user_id")
    return user


app = FastAPI(lifespan=lifespan)
app.include_router(router, prefix="/v1")
app.add_middleware(AuditMiddleware, user=user_of)

part = FastAPI()


@part.post("/customers/{name}", dependencies=[Depends(by_sync_dependency)])
async def write_in_part(name: str) -> None:
    await add(name)


app.mount("/part", part)
