"""What an ASGI scope tells of a request: functions of the scope alone."""

import ipaddress
import re
from collections.abc import Collection, Iterator, MutableMapping
from itertools import chain
from typing import Any, Final, TypeAlias

__all__ = ["Network", "Scope", "client_of", "header_of", "printable", "template_of"]

Scope: TypeAlias = MutableMapping[str, Any]
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_PATH: Final = 512

# Backwards, an opening quote is the first that no backslash stands before.
_QUOTED_BACKWARDS: Final = r'"(?:[^"]|"(?=\\))*+"(?!\\)'
_PART_BACKWARDS: Final = {
    separator: re.compile(rf'((?:[^"{separator}]|{_QUOTED_BACKWARDS})*+){separator}') for separator in ",;"
}


def header_of(scope: Scope, name: bytes) -> list[str]:
    """Return the values of a header, one for each line."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def printable(text: str, length: int) -> str:
    """Return the beginning of what a client sent, without what can't be printed or stored."""
    return "".join(each if each.isprintable() else "?" for each in text[:length])


def template_of(scope: Scope) -> str | None:
    """Return the path as the application declares it, once a router has found it; None before, and where none tells."""
    if isinstance(of_litestar := scope.get("path_template"), str):
        return printable(of_litestar, MAX_PATH)
    route = scope.get("route")
    if not hasattr(route, "endpoint"):
        # None yet, or a mount, which tells where the template begins but not what is behind.
        return None
    # A route that FastAPI included with a prefix knows only its own part of the path.
    included = (scope.get("fastapi") or {}).get("effective_route_context")
    if getattr(included, "original_route", None) is not route:
        included = None
    path = next((path for path in _paths(included, route) if isinstance(path, str)), None)
    if path is None:
        return None
    # Below a mount, the root path has become longer by what the mount matched.
    mounted = scope.get("root_path", "").removeprefix(scope["app_root_path"]) if "app_root_path" in scope else ""
    return printable(f"{mounted}{path}", MAX_PATH)


def _paths(*routes: Any) -> Iterator[Any]:
    for route in routes:
        yield getattr(route, "path_format", None)
        yield getattr(route, "path", None)


def client_of(scope: Scope, forwarded_header: bytes, trusted: Collection[Network], *, trusts_unix: bool) -> str | None:
    """Walk from whoever connected towards the client, as far as who is trusted tells of the next one."""
    peer = scope.get("client")
    if not peer and not trusts_unix:
        return None
    forwarded = _split_backwards(",".join(header_of(scope, forwarded_header)), ",")
    client: Address | None = None
    for hop in chain([peer[0]] if peer else [], forwarded):
        address = _address(hop)
        if address is None:
            break
        client = address
        if not any(address in network for network in trusted):
            break
    return None if client is None else str(client)


def _split_backwards(text: str, separator: str) -> Iterator[str]:
    """
    Yield the parts of a header, the last one first; in quotes, the separator is none.

    From the end, where the nearest proxy writes: what the client began, even a quote that it didn't close, changes
    nothing of what comes after it. Nothing is told of a part whose quotes make no sense, and of those before it.
    """
    backwards, place = text[::-1] + separator, 0
    while (part := _PART_BACKWARDS[separator].match(backwards, place)) is not None:
        yield part[1][::-1]
        place = part.end()


def _address(hop: str) -> Address | None:
    """Return the address of a hop of X-Forwarded-For, or of an element of Forwarded; None if it has none."""
    for parameter in reversed([*_split_backwards(hop, ";")]):
        name, has_name, value = parameter.partition("=")
        if not has_name or name.strip().lower() == "for":
            text = (value if has_name else name).strip().strip('"')
            break
    else:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
