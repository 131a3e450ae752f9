"""Which capture records the rows of a table: the session, or the triggers of the database."""

from collections.abc import Collection, Iterator, Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

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
    "tracked_here",
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


def tracked_here(metadatas: Collection[MetaData] | None = None) -> Iterator[tuple[Table, Tracking]]:
    """Yield the tracked tables, whatever captures them, by name: those of *metadatas*, if given."""
    resolve_all()
    for table in sorted(all_tracked(), key=lambda table: table.fullname):
        tracking = tracking_of(table)
        if tracking is not None and (metadatas is None or table.metadata in metadatas):
            yield table, tracking


def tables_with_triggers(metadatas: Collection[MetaData] | None = None) -> Iterator[tuple[Table, Tracking]]:
    """Return the tables whose rows triggers capture, all or some of them, by name: those of *metadatas*, if given."""
    return (pair for pair in tracked_here(metadatas) if capture_of(pair[1]) is not Capture.SESSION)


def leading_to_triggers() -> AbstractSet[Table]:
    """Return the tables to which a write may fire triggers of ours: their own, or those of what it cascades to."""
    return _leading().tables


def labels_by_session(table: Table | None, *, cascades: bool) -> tuple[str, ...]:
    """
    Return the labels whose rows triggers leave to a session that records a statement on *table*.

    With *cascades*, also of the rows that foreign keys change with those of the table.
    """
    if table is None:
        return ()
    if cascades:
        return _leading().labels.get(table, ())
    tracking = tracking_of(table)
    return (tracking.label,) if tracking is not None and capture_of(tracking) is Capture.BOTH else ()


@dataclass(frozen=True, slots=True)
class _Leading:
    declared: tuple[int, Capture]
    tables: WeakSet[Table]
    labels: WeakKeyDictionary[Table, tuple[str, ...]]
    """What both captures record of the rows that are reached from a table."""


def _leading() -> _Leading:
    global _known
    # Asked for every statement; another declaration, or configuration, makes the answer a new one.
    if _known.declared != (declared_so_far(), _default()):
        tables: WeakSet[Table] = WeakSet()
        labels: WeakKeyDictionary[Table, tuple[str, ...]] = WeakKeyDictionary()
        for table, tracking in tables_with_triggers():
            for each in _leading_to(table):
                tables.add(each)
                if capture_of(tracking) is Capture.BOTH:
                    labels[each] = (*labels.get(each, ()), tracking.label)
        # To find them, what was declared is resolved.
        _known = _Leading((declared_so_far(), _default()), tables, labels)
    return _known


_known = _Leading((0, Capture.SESSION), WeakSet(), WeakKeyDictionary())


def tables_leading_to_triggers() -> set[Table]:
    """Find them anew."""
    return {each for table, _ in tables_with_triggers() for each in _leading_to(table)}


def _leading_to(table: Table) -> set[Table]:
    """Return the table, and those whose writes foreign keys follow to its rows."""
    found: set[Table] = set()
    to_follow = [table]
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
