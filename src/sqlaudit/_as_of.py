"""Read-only instances of mapped classes, as they were then."""

from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state, set_committed_value
from sqlalchemy.orm.base import LoaderCallableStatus, PassiveFlag
from sqlalchemy.orm.state import InstanceState

from sqlaudit._snapshots import Past
from sqlaudit.exceptions import NotRecordedError, ReadOnlyError

__all__ = ["as_instance"]


class _PastState(InstanceState[Any]):
    """The state of an instance that can't be modified: SQLAlchemy asks here before it sets, deletes or appends."""

    def _modified_event(self, *_: Any, **__: Any) -> None:
        raise ReadOnlyError(self.class_.__name__)


def as_instance(past: Past) -> Any:
    """
    Return what an object was as a transient instance of its class; None when there was no row.

    ``__init__`` isn't called. What isn't known as of then, relationships among
    it, raises a `NotRecordedError` when it is read; nothing is ever loaded.
    """
    mapper = past.mapper
    if past.fields is None or mapper is None:
        return None
    cls: Any = mapper.class_
    instance = cls.__new__(cls)
    state = _PastState(instance, mapper.class_manager)
    mapper.class_manager.setup_instance(instance, state)
    for name, each in past.fields.items():
        set_committed_value(instance, name, each.value)
    # What SQLAlchemy calls for an attribute that has no value, in place of a loader.
    state.callables = {
        name: _not_recorded(mapper.class_.__name__, name)
        for name in (*mapper.column_attrs.keys(), *mapper.relationships.keys())
        if name not in past.fields
    }
    return instance


def _not_recorded(owner: str, name: str) -> Any:
    def refuse(state: object, passive: PassiveFlag) -> Any:
        if not passive & PassiveFlag.SQL_OK:
            # It isn't read: what is there already is asked for, and nothing is.
            return LoaderCallableStatus.PASSIVE_NO_RESULT
        raise NotRecordedError(owner, name)

    return refuse


@event.listens_for(Session, "before_attach")
def _refuse_past(session: Session, instance: Any) -> None:
    """Runs before an object becomes a session's own; loaded objects don't come here."""
    if isinstance(instance_state(instance), _PastState):
        raise ReadOnlyError(type(instance).__name__)
