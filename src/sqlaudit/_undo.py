"""Undoing the changes of one transaction, newest first."""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, ForeignKeyConstraint, MetaData, Row, Table, func, inspect, literal, select
from sqlalchemy.orm import Mapper, Session

from sqlaudit._replay import Folded, StoredChange, unwound
from sqlaudit._restore import default_reason, find_object, make_current, recreate, remove, root_of, settable, write_back
from sqlaudit._snapshots import Past, StoredField, read_past, stored_change
from sqlaudit._subjects import Moment, Part, Subject, subject_of
from sqlaudit.config import SQLAuditConfig
from sqlaudit.exceptions import RestoreError, RetrievalError, UndoConflictError
from sqlaudit.tracking import all_tracked, mappers_of, resolve_all, tracking_of
from sqlaudit.types import Operation

__all__ = ["Conflict", "undo"]


@dataclass(frozen=True, slots=True)
class Conflict:
    """Why a change can't be undone."""

    resource_type: str
    """The label of the table."""
    resource_id: Any
    """The key of the row."""
    fields: tuple[str, ...]
    """The attributes that it is about; none for the whole row."""
    change_id: int | None
    """The later change that stands against it; None if the values are masked."""

    def __str__(self) -> str:
        what = f"{self.resource_type} {self.resource_id}"
        fields = f" ({', '.join(self.fields)})" if self.fields else ""
        if self.change_id is None:
            return f"the trail withholds what {what}{fields} was"
        return f"{what}{fields} was changed since, by change {self.change_id}"


@dataclass(frozen=True, slots=True)
class _Target:
    """A row of one table: what the transaction did to it, and what it was before."""

    part: Part
    changes: tuple[StoredChange, ...]
    """Newest first."""
    before: Folded

    @property
    def was_inserted(self) -> bool:
        """Whether there was no row before."""
        return self.before.is_known and self.before.values is None

    @property
    def was_deleted(self) -> bool:
        """Whether there was no row afterwards."""
        return self.changes[0].operation == Operation.DELETE.value


@dataclass(frozen=True, slots=True)
class _Step:
    """An object, or a row of a Core table, that is put back."""

    subject: Subject
    text: str
    targets: tuple[_Target, ...]

    @property
    def creates_nothing(self) -> bool:
        """Whether the transaction made the object: it has to go."""
        return any(each.was_inserted for each in self.targets)

    def singly(self) -> Iterator["_Step"]:
        """Yield a step for each thing that was done to the object; it comes and goes in all of its tables at once."""
        changes = sorted(
            ((each.id, target.part, each) for target in self.targets for each in target.changes), key=itemgetter(0)
        )
        group: dict[Part, StoredChange] = {}
        for _, part, change in changes:
            is_one = change.operation != Operation.UPDATE.value and part not in group
            if group and not (is_one and all(each.operation == change.operation for each in group.values())):
                yield self._of(group)
                group = {}
            group[part] = change
        yield self._of(group)

    def _of(self, group: Mapping[Part, StoredChange]) -> "_Step":
        targets = (_Target(part, (change,), unwound([change])) for part, change in group.items())
        return _Step(self.subject, self.text, tuple(targets))

    @property
    def first(self) -> int:
        """The first change of it."""
        return min(each.changes[-1].id for each in self.targets)

    @property
    def position(self) -> int:
        """Where in the order of the changes it is undone: an object goes when all that came after it is undone."""
        return self.first if self.creates_nothing else max(each.changes[0].id for each in self.targets)


def undo(
    session: Session, transaction_id: uuid.UUID, config: SQLAuditConfig, metadata: MetaData | None, *, force: bool
) -> list[int]:
    """
    Undo the changes of a transaction, flush, and return their ids, newest first.

    Raises:
        RetrievalError: there are none.
        UndoConflictError: others have changed the same since, and it isn't to be forced.
        RestoreError: a row can't be put back.
    """
    trail = config.trail
    rows = session.execute(
        select(trail).where(trail.c.transaction_id == transaction_id).order_by(trail.c.id.desc())
    ).all()
    if not rows:
        raise RetrievalError(f"The trail has no change of a transaction {transaction_id}.")
    steps = _steps(session, rows, config, metadata)
    if not force:
        conflicts = [conflict for step in steps for conflict in _conflicts(session, step, transaction_id)]
        conflicts += _dependents(session, steps)
        if conflicts:
            raise UndoConflictError(transaction_id, conflicts)
    with default_reason(session, f"undid transaction {transaction_id}"):
        for run in _runs(steps):
            instances = [_put_back(session, step) for step in run]
            session.flush()
            for instance, written in (each for each in instances if each is not None):
                make_current(session, instance, written)
    return [row.id for row in rows]


def _runs(steps: Sequence[_Step]) -> Iterator[list[_Step]]:
    """
    Yield what is put back in one flush, newest first: objects of one model, each once.

    Change by change, rather than each object at once: whatever a foreign key
    asks for was there in each state that the transaction went through.
    """
    in_order = sorted((single for step in steps for single in step.singly()), key=lambda each: -each.position)
    run: list[_Step] = []
    for step in in_order:
        if run and (
            (step.subject, step.creates_nothing) != (run[0].subject, run[0].creates_nothing)
            or step.text in (each.text for each in run)
        ):
            yield run
            run = []
        run.append(step)
    if run:
        yield run


# --- what is to be undone --------------------------------------------------------------------------------------------


def _steps(
    session: Session, rows: Sequence[Row[Any]], config: SQLAuditConfig, metadata: MetaData | None
) -> list[_Step]:
    tables = _tables_of({row.resource_type for row in rows}, metadata)
    subjects: dict[Any, Subject] = {}
    changes: dict[tuple[Subject, str], dict[Part, list[StoredChange]]] = {}
    for row in rows:
        table = tables[row.resource_type]
        model = _model_of(table)
        if model not in subjects:
            subjects[model] = subject_of(model, session, config)
        subject = subjects[model]
        part = next(each for each in subject.parts if each.table is table)
        of_row = changes.setdefault((subject, row.resource_id), {}).setdefault(part, [])
        if row.operation != Operation.BASELINE.value:
            of_row.append(stored_change(part, row))
    return [
        _Step(
            subject,
            text,
            tuple(_Target(part, tuple(each), unwound(each)) for part, each in of_object.items() if each),
        )
        for (subject, text), of_object in changes.items()
        if any(of_object.values())
    ]


def _tables_of(labels: Collection[str], metadata: MetaData | None) -> dict[str, Table]:
    """Return the tracked tables of *labels*, those of today or former ones."""
    resolve_all()
    found: dict[str, Table] = {}
    for table in all_tracked():
        tracking = tracking_of(table)
        if tracking is None or (metadata is not None and table.metadata is not metadata):
            continue
        for label in {*labels} & {*tracking.labels}:
            if label in found:
                raise RestoreError(
                    f"Several tracked tables have the label {label!r}; say whose are meant with metadata=."
                )
            found[label] = table
    if missing := sorted(set(labels) - found.keys()):
        raise RestoreError(
            f"No tracked table has the label {', '.join(map(repr, missing))}; track it, or name it in the "
            f"former_labels of the table that it is now."
        )
    return found


def _model_of(table: Table) -> Any:
    """Return the class whose objects have their first row where those of *table* have it; a Core table itself."""
    roots = {root_of(mapper) for mapper in mappers_of(table)}
    return min((root.class_ for root in roots), key=lambda cls: cls.__qualname__, default=table)


# --- what stands against it ------------------------------------------------------------------------------------------


def _conflicts(session: Session, step: _Step, transaction_id: uuid.UUID) -> Iterator[Conflict]:
    trail = step.subject.trail
    for target in step.targets:
        part = target.part
        label, key = part.tracking.label, part.key_of(step.text)
        names = part.resource.names

        def named(keys: Collection[str], names: Mapping[str, str] = names) -> tuple[str, ...]:
            return tuple(sorted(names.get(each, each) for each in keys))

        touched = set() if target.was_inserted else {*(target.before.values or {})}
        if masked := touched & part.tracking.masked:
            yield Conflict(label, key, named(masked), None)
        query = (
            select(trail)
            .where(
                trail.c.resource_type.in_(part.resource.labels),
                trail.c.resource_id == step.text,
                trail.c.id > target.changes[-1].id,
                trail.c.transaction_id != transaction_id,
                trail.c.operation != Operation.BASELINE.value,
            )
            .order_by(trail.c.id)
        )
        for row in session.execute(query, bind_arguments=dict(step.subject.bind_arguments)):
            later = stored_change(part, row)
            is_update = later.operation == Operation.UPDATE.value
            if target.was_inserted or target.was_deleted or not is_update:
                yield Conflict(label, key, (), later.id)
            elif both := touched & later.new.keys():
                yield Conflict(label, key, named(both), later.id)


def _dependents(session: Session, steps: Sequence[_Step]) -> Iterator[Conflict]:
    """Yield the rows of others that refer to one that has to go: they would go with it, or hold it."""
    own = {(target.part.table, step.text) for step in steps for target in step.targets}
    for step in steps:
        for target in step.targets:
            if not target.was_inserted:
                continue
            inserted = target.changes[-1].new
            for constraint in _referring(target.part.table):
                keys = [element.column.key for element in constraint.elements]
                stored = [StoredField(target.part, key, inserted.get(key)) for key in keys]
                if any(each.codec is None or each.stored is None for each in stored):
                    continue
                values = [each.value for each in stored]
                for conflict in _rows_with(session, step.subject.config, constraint, values):
                    if (constraint.table, conflict[0]) not in own:
                        yield conflict[1]


def _referring(table: Table) -> Iterator[ForeignKeyConstraint]:
    """Yield the foreign keys of other tracked tables, and of itself, that refer to *table*."""
    for other in table.metadata.tables.values():
        if tracking_of(other) is None or mappers_share_rows(other, table):
            continue
        for constraint in other.foreign_key_constraints:
            if constraint.referred_table is table:
                yield constraint


def mappers_share_rows(one: Table, other: Table) -> bool:
    """Return whether two tables are of one object: joined inheritance."""
    return one is not other and bool({*mappers_of(one)} & {*mappers_of(other)})


def _rows_with(
    session: Session, config: SQLAuditConfig, constraint: ForeignKeyConstraint, values: Sequence[Any]
) -> Iterator[tuple[str, Conflict]]:
    table: Any = constraint.table
    subject = subject_of(table, session, config)
    part, trail = subject.base, subject.trail
    query = select(*(table.columns[key] for key in part.tracking.resource_key)).where(
        *(column == value for column, value in zip(constraint.columns, values, strict=True))
    )
    for row in session.execute(query, bind_arguments=dict(subject.bind_arguments)).all():
        key = tuple(row) if len(row) > 1 else row[0]
        text = part.text_of(key)
        last = select(func.max(trail.c.id)).where(
            trail.c.resource_type.in_(part.resource.labels), trail.c.resource_id == text
        )
        change_id = session.execute(last, bind_arguments=dict(subject.bind_arguments)).scalar()
        fields = tuple(column.key for column in constraint.columns)
        yield text, Conflict(part.tracking.label, key, fields, change_id)


# --- putting back ----------------------------------------------------------------------------------------------------


def _put_back(session: Session, step: _Step) -> tuple[Any, Collection[str]] | None:
    """Put one object back, and return it with the attributes that were set; None for what is gone, or no object."""
    if step.subject.mapper is None:
        _put_row_back(session, step)
        return None
    instance = find_object(session, step.subject, step.text)
    if step.creates_nothing:
        if instance is not None:
            remove(session, instance)
        return None
    if instance is None:
        moment = Moment(None, step.first - 1)
        key = step.subject.base.key_of(step.text)
        return recreate(session, read_past(session, step.subject, key, moment), {}), ()
    mapper: Mapper[Any] = inspect(instance).mapper
    past = Past(mapper.class_, mapper, step.text, None, _fields(step))
    return instance, write_back(session, step.subject, instance, past, None)


def _fields(step: _Step) -> dict[str, StoredField]:
    return {
        target.part.resource.names[key]: StoredField(target.part, key, stored)
        for target in step.targets
        for key, stored in (target.before.values or {}).items()
        if key in target.part.resource.names and key in target.part.tracking.recorded
    }


def _put_row_back(session: Session, step: _Step) -> None:
    """Put a row of a table back that no class is mapped to."""
    (target,) = step.targets
    table, tracking = target.part.table, target.part.tracking
    key = target.part.key_of(step.text)
    parts = key if len(tracking.resource_key) > 1 else (key,)
    is_it: list[ColumnElement[bool]] = [
        table.columns[name] == value for name, value in zip(tracking.resource_key, parts, strict=True)
    ]
    bind_arguments = dict(step.subject.bind_arguments)
    values = {
        name: settable(each)
        for name, each in _fields(step).items()
        if each.codec is not None and table.columns[name].computed is None
    }
    if target.was_inserted:
        session.execute(table.delete().where(*is_it), bind_arguments=bind_arguments)
    elif session.execute(select(literal(1)).where(*is_it), bind_arguments=bind_arguments).first() is None:
        session.execute(table.insert().values(values), bind_arguments=bind_arguments)
    else:
        session.execute(table.update().where(*is_it).values(values), bind_arguments=bind_arguments)
    _expire_links(session, table)


def _expire_links(session: Session, secondary: Table) -> None:
    """Let objects forget what they knew of a secondary table: the unit of work would rely on it."""
    for instance in list(session.identity_map.values()):
        state = inspect(instance)
        names = [
            each.key for each in state.mapper.relationships if each.secondary is secondary and each.key in state.dict
        ]
        if names:
            session.expire(instance, names)
