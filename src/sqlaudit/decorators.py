"""What is audited: `track_table` for classes, `track` for tables."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar
from weakref import WeakSet

from sqlalchemy import Column, MetaData, Table, event, inspect
from sqlalchemy.orm import MappedColumn, Mapper
from sqlalchemy.orm.exc import UnmappedClassError

from sqlaudit.capture.listeners import watch
from sqlaudit.exceptions import TrackingError
from sqlaudit.schema import create_trail_with
from sqlaudit.tracking import (
    Declaration,
    await_configuration,
    declaration_of,
    declare_class,
    note_mapper,
    resolve_mapper,
    resolve_table,
    tracked_tables,
    written_tables,
)
from sqlaudit.types import Capture

__all__ = ["track", "track_table"]

Model = TypeVar("Model", bound=type)

_NOT_RENAMED: Final[Mapping[str, str]] = MappingProxyType({})


def track_table(
    tracked_fields: Collection[str] | None = None,
    *,
    exclude_fields: Collection[str] = (),
    masked_fields: Collection[str] = (),
    table_label: str | None = None,
    resource_id_field: str | None = None,
    user_id_field: str | None = None,
    renamed_fields: Mapping[str, str] = _NOT_RENAMED,
    former_labels: Collection[str] = (),
    capture: Capture | None = None,
) -> Callable[[Model], Model]:
    """
    Audit a model: a class decorator for mapped classes, abstract bases and mixins.

    Subclasses inherit the declaration. For an imperatively mapped class call
    ``track_table(...)(Order)`` after ``map_imperatively()``. Field names are
    checked when the mapper is configured, that is, before the first query.

    Args:
        tracked_fields: the names of the audited attributes; None for every column.
        exclude_fields: attributes that aren't audited.
        masked_fields: attributes that are recorded as changed, without their values.
        table_label: the `resource_type` of the changes; the class's name, if not given.
        resource_id_field: the attribute that identifies a row in the trail, if
            not the primary key. It must be unique, and not NULL.
        user_id_field: the attribute that holds who made the change, for when
            neither a context nor the callback knows.
        renamed_fields: the attribute of today by the key that its column had in
            older changes, ``{"fullname": "name"}``: those are read under the
            new name. Nothing that is stored is rewritten.
        former_labels: labels that the table had earlier; the changes under them
            are read as its own. They are of the decorated class, not inherited.
        capture: how the writes to its tables are noticed; what the default
            configuration says, if not given.

    Raises:
        TrackingError: an argument has a wrong type, the class can't be mapped, or is tracked already; at mapper
            configuration, if a label is taken, or an old name is still a column.
        UnknownFieldError: at mapper configuration, if the model has no such attribute.
        UnsupportedTypeError: at mapper configuration, if values of a column can't be stored exactly.
    """
    if isinstance(tracked_fields, type):
        raise TrackingError("track_table is a decorator with arguments; write @track_table(), with parentheses.")
    declaration = Declaration.checked(
        tracked_fields=tracked_fields,
        exclude_fields=exclude_fields,
        masked_fields=masked_fields,
        table_label=table_label,
        resource_id_field=resource_id_field,
        user_id_field=user_id_field,
        renamed_fields=renamed_fields,
        former_labels=former_labels,
        capture=capture,
    )

    def declare(cls: Model) -> Model:
        mapper = _check_class(cls)
        declare_class(cls, declaration)
        metadata = getattr(cls, "metadata", None)
        if isinstance(metadata, MetaData):
            create_trail_with(metadata)
        for each in mapper.self_and_descendants if mapper is not None else ():
            if each.configured:
                _on_mapper_configured(each, each.class_)
            else:
                await_configuration(each)
        if mapper is not None and mapper.configured:
            _on_all_configured()
        return cls

    return declare


def track(
    table: Table,
    *,
    tracked_fields: Collection[str] | None = None,
    exclude_fields: Collection[str] = (),
    masked_fields: Collection[str] = (),
    table_label: str | None = None,
    resource_id_field: str | None = None,
    user_id_field: str | None = None,
    renamed_fields: Mapping[str, str] = _NOT_RENAMED,
    former_labels: Collection[str] = (),
    capture: Capture | None = None,
) -> Table:
    """
    Audit a Core table, as `track_table` does a model; returns the table.

    Fields are column keys, and the label is the table's name, if not given.
    Call it before mappers of the table are configured.

    Raises:
        TrackingError: an argument has a wrong type, a label is taken, or the table has no primary key.
        UnknownFieldError: the table has no such column.
        UnsupportedTypeError: values of a column can't be stored exactly.
    """
    if not isinstance(table, Table):
        raise TrackingError(f"track() is for Core tables, not for {table!r}; decorate a class with @track_table().")
    resolve_table(
        table,
        Declaration.checked(
            tracked_fields=tracked_fields,
            exclude_fields=exclude_fields,
            masked_fields=masked_fields,
            table_label=table_label,
            resource_id_field=resource_id_field,
            user_id_field=user_id_field,
            renamed_fields=renamed_fields,
            former_labels=former_labels,
            capture=capture,
        ),
    )
    create_trail_with(table.metadata)
    return table


@event.listens_for(Mapper, "after_mapper_constructed")
def _on_mapper_constructed(mapper: Mapper[Any], cls: type) -> None:
    """Runs once for every mapper, when its class is defined; a subclass inherits its declaration then."""
    if declaration_of(cls) is not None:
        for table in written_tables(mapper):
            create_trail_with(table.metadata)
        await_configuration(mapper)


@event.listens_for(Mapper, "mapper_configured")
def _on_mapper_configured(mapper: Mapper[Any], cls: type) -> None:
    """Runs once for every mapper, before the first query: declarations become `Tracking`."""
    resolve_mapper(mapper)
    for table, _ in tracked_tables(mapper):
        create_trail_with(table.metadata)
        watch(mapper)
        note_mapper(mapper)
        _with_other_mappers.add(mapper)


@event.listens_for(Mapper, "after_configured")
def _on_all_configured() -> None:
    """Runs when a round of configuration is over: objects of other classes may have rows in the tracked tables, too."""
    for registry in {mapper.registry for mapper in _with_other_mappers}:
        for mapper in registry.mappers:
            if any(tracked_tables(mapper)):
                watch(mapper)
                note_mapper(mapper)
    _with_other_mappers.clear()


_with_other_mappers: WeakSet[Mapper[Any]] = WeakSet()


def _check_class(cls: Any) -> Mapper[Any] | None:
    """Return the mapper of *cls*; None if it isn't mapped yet, or only its subclasses will be."""
    if not isinstance(cls, type):
        hint = "; for a Core table use track()" if isinstance(cls, Table) else ""
        raise TrackingError(f"@track_table() decorates classes, not {cls!r}{hint}.")
    try:
        mapper: Mapper[Any] | None = inspect(cls, raiseerr=False)
    except UnmappedClassError:
        # Deferred reflection and abstract concrete bases are mapped later.
        return None
    if mapper is not None:
        return mapper
    declares = any(isinstance(value, (Column, MappedColumn)) for value in vars(cls).values())
    if not declares and not isinstance(getattr(cls, "metadata", None), MetaData):
        raise TrackingError(
            f"{cls.__name__} is not mapped, and has nothing that could be; decorate a mapped class, an abstract base "
            f"or a mixin with columns. For imperative mapping call track_table(...)({cls.__name__}) after "
            f"map_imperatively()."
        )
    return None
