"""A Starlette application whose authentication is a middleware of Starlette's own."""

from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import Scope
from starlette.websockets import WebSocket

from asgi_apps.shop import add, lifespan
from sqlaudit.integrations.asgi import AuditMiddleware, identify


class ByToken(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        token = conn.headers.get("x-token")
        return (AuthCredentials(), SimpleUser(token.removeprefix("token of "))) if token else None


def user_of(scope: Scope) -> str | None:
    return scope["user"].username or None


async def write(request: Request) -> Response:
    await add(request.path_params["name"])
    return PlainTextResponse(request.path_params["name"])


async def write_in_background(request: Request) -> Response:
    return PlainTextResponse("later", background=BackgroundTask(add, request.path_params["name"]))


async def write_at_each_message(websocket: WebSocket) -> None:
    await websocket.accept()
    identify(websocket.path_params["user"])
    async for name in websocket.iter_text():
        await add(name)
        await websocket.send_text(name)


app = Starlette(
    lifespan=lifespan,
    routes=[
        Mount(
            "/v1/customers",
            routes=[
                Route("/state/{name:str}", write, methods=["POST"]),
                Route("/background/{name}", write_in_background, methods=["POST"]),
                WebSocketRoute("/socket/{user}", write_at_each_message),
            ],
        )
    ],
    # The middleware of the trail is around the one that knows the user: it asks when a change is written.
    middleware=[Middleware(AuditMiddleware, user=user_of), Middleware(AuthenticationMiddleware, backend=ByToken())],
)
