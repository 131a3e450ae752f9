"""A Litestar application: a dependency knows who acts, in a thread."""

from typing import Any

from litestar import Litestar, Request, Router, WebSocket, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.di import Provide
from litestar.middleware import DefineMiddleware
from litestar.response import Response

from asgi_apps.shop import add, lifespan
from sqlaudit.integrations.asgi import AuditMiddleware, identify


def acting(request: Request[Any, Any, Any]) -> str:
    user: str = request.headers["x-token"].removeprefix("token of ")
    identify(user)
    return user


@post("/state/{name:str}", dependencies={"user": Provide(acting, sync_to_thread=True)})
async def write(name: str, user: str) -> str:
    await add(name)
    return name


@post("/background/{name:str}", dependencies={"user": Provide(acting, sync_to_thread=True)})
async def write_in_background(name: str, user: str) -> Response[str]:
    return Response("later", background=BackgroundTask(add, name))


@websocket("/socket/{user:str}")
async def write_at_each_message(socket: WebSocket[Any, Any, Any], user: str) -> None:
    await socket.accept()
    identify(user, request=socket)
    async for name in socket.iter_data("text"):
        await add(name)
        await socket.send_text(name)


app = Litestar(
    [Router("/v1/customers", route_handlers=[write, write_in_background, write_at_each_message])],
    lifespan=[lifespan],
    middleware=[DefineMiddleware(AuditMiddleware)],
)
