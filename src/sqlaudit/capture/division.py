"""Which capture records the rows of a table: the session, or the triggers of the database."""

from collections.abc import Collection, Iterator, Set as AbstractSet
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import MetaData, Table
from sqlalchemy.exc import NoReferenceError

from sqlaudit.config import get_config, has_config
from sqlaudit.tracking import Tracking, all_tracked, declared_so_far, resolve_all, tracking_of
from sqlaudit.types import Capture

__all__ = [
    "ACTIONS",
    "capture_of",
    "labels_by_session",
    "leading_to_triggers",
    "tables_leading_to_triggers",
    "tables_with_triggers",
    "tracking_in_session",
]

ACTIONS: Final = ("CASCADE", "SET NULL", "SET DEFAULT")
"""What a foreign key may let the database do to the rows that refer."""


def capture_of(tracking: Tracking) -> Capture:
    """Return what captures the rows of a tracked table: what its declaration says, else the default configuration."""
    return _default() if tracking.capture is None else tracking.capture


def tracking_in_session(table: Any) -> Tracking | None:
    """Return what sessions have to record of *table*; None for nothing, or if triggers alone do it."""
    tracking = tracking_of(table)
    return None if tracking is None or capture_of(tracking) is Capture.TRIGGERS else tracking


def tables_with_triggers(metadatas: Collection[MetaData] | None = None) -> Iterator[tuple[Table, Tracking]]:
    """Yield the tables whose rows triggers capture, all or some of them, by name: those of *metadatas*, if given."""
    resolve_all()
    for table in sorted(all_tracked(), key=lambda table: table.fullname):
        tracking = tracking_of(table)
        if tracking is None or (metadatas is not None and table.metadata not in metadatas):
            continue
        if capture_of(tracking) is not Capture.SESSION:
            yield table, tracking


def labels_by_session() -> list[str]:
    """Return the labels whose rows triggers leave to the sessions that record them."""
    return [tracking.label for _, tracking in tables_with_triggers() if capture_of(tracking) is Capture.BOTH]


def leading_to_triggers() -> AbstractSet[Table]:
    """Return the tables to which a write may fire triggers of ours: their own, or those of what it cascades to."""
    global _leading
    # Asked for every statement; another declaration, or configuration, makes the answer a new one.
    if _leading[0] != (declared_so_far(), _default()):
        found = tables_leading_to_triggers()
        # To find them, what was declared is resolved.
        _leading = ((declared_so_far(), _default()), found)
    return _leading[1]


_leading: tuple[tuple[int, Capture], WeakSet[Table]] = ((0, Capture.SESSION), WeakSet())


def tables_leading_to_triggers() -> WeakSet[Table]:
    """Find them anew."""
    found: WeakSet[Table] = WeakSet()
    to_follow = [table for table, _ in tables_with_triggers()]
    while to_follow:
        table = to_follow.pop()
        if table in found:
            continue
        found.add(table)
        for foreign_key in table.foreign_key_constraints:
            actions = {(foreign_key.ondelete or "").upper(), (foreign_key.onupdate or "").upper()}
            if not actions.isdisjoint(ACTIONS):
                # The other table may not be declared here.
                with suppress(NoReferenceError):
                    to_follow.append(foreign_key.referred_table)
    return found


def _default() -> Capture:
    return get_config().capture if has_config() else Capture.SESSION
