"""Who is measured. Each is imported in a process of its own: several of them hook every Mapper and Session there is."""

from importlib import import_module
from typing import Final

from benchmarks.contestants.base import Contestant

__all__ = ["CONTESTANTS", "Contestant", "make_contestant"]

_ANY: Final = ("sqlite", "postgresql")
_POSTGRESQL: Final = ("postgresql",)

CONTESTANTS: Final[dict[str, tuple[str, bool, tuple[str, ...]]]] = {
    "plain": ("plain", False, _ANY),
    "floor": ("floor", False, _ANY),
    "sqlaudit": ("ours", False, _ANY),
    "Continuum": ("continuum", False, _ANY),
    "Continuum, fastest": ("continuum", True, _ANY),
    "history": ("history", False, _ANY),
    "history, fastest": ("history", True, _ANY),
    "audit-trail": ("audit_trail_peer", False, _POSTGRESQL),
    "audit-trail, fastest": ("audit_trail_peer", True, _POSTGRESQL),
    "postgresql-audit": ("postgresql_audit_peer", False, _POSTGRESQL),
    "postgresql-audit, fastest": ("postgresql_audit_peer", True, _POSTGRESQL),
}
"""Name: module, whether it is tuned, databases that it supports."""


def make_contestant(name: str, kind: str) -> Contestant:
    """Return the contestant, set up for a kind of database, whose hooks are now registered in this process."""
    module, tuned, _ = CONTESTANTS[name]
    contestant: Contestant = import_module(f"benchmarks.contestants.{module}").make(kind, tuned=tuned)
    return contestant
