"""What foreign keys do to the rows that refer, for which MariaDB fires no triggers of these."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import indent

from sqlalchemy import Connection, bindparam, text

from sqlaudit.capture.triggers.mysql_changes import BEGINNING, DECLARED, Place, Row, Writer, row
from sqlaudit.capture.triggers.mysql_values import identifier

__all__ = ["cascades", "foreign_keys"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKey:
    """A foreign key that hands on what happens to the row that it refers to."""

    table: Place
    columns: tuple[str, ...]
    referred: Place
    referred_columns: tuple[str, ...]
    on_delete: str
    on_update: str

    def refers(self, own: str, others: Row) -> str:
        """Return the condition that the row *own* refers to another."""
        pairs = zip(self.columns, self.referred_columns, strict=True)
        return " AND ".join(f"{own}.{identifier(column)} = {others(its)}" for column, its in pairs)


_ACTING = ("CASCADE", "SET NULL")


def foreign_keys(connection: Connection, schemas: Collection[str]) -> list[ForeignKey]:
    """Return the foreign keys of *schemas* that act, whoever has declared them."""
    # For one schema after the other: asked for several, the server opens the tables of all.
    query = text(
        "SELECT k.table_schema, k.table_name, k.constraint_name, k.column_name, "
        "k.referenced_table_schema, k.referenced_table_name, k.referenced_column_name, r.delete_rule, r.update_rule "
        "FROM information_schema.key_column_usage AS k "
        "JOIN information_schema.referential_constraints AS r ON r.table_name = k.table_name "
        "AND r.constraint_name = k.constraint_name "
        "WHERE k.table_schema = :schema AND k.referenced_table_name IS NOT NULL AND r.constraint_schema = :schema "
        "AND (r.delete_rule IN :acting OR r.update_rule IN :acting) "
        "ORDER BY k.table_name, k.constraint_name, k.ordinal_position"
    ).bindparams(bindparam("acting", expanding=True))
    rows = [
        each for schema in sorted(schemas) for each in connection.execute(query, {"schema": schema, "acting": _ACTING})
    ]
    found = []
    for _, group in groupby(rows, key=lambda each: tuple(each)[:3]):
        parts = list(group)
        schema, table, _, _, referred_schema, referred, _, on_delete, on_update = parts[0]
        found.append(
            ForeignKey(
                table=Place(schema, table),
                columns=tuple(part[3] for part in parts),
                referred=Place(referred_schema, referred),
                referred_columns=tuple(part[6] for part in parts),
                on_delete=on_delete,
                on_update=on_update,
            )
        )
    return found


def cascades(keys: Sequence[ForeignKey], writers: Mapping[Place, Writer]) -> Iterator[tuple[Place, str, str]]:
    """Yield the tables that others refer to, the event, and the body of its trigger."""
    for place in sorted({key.referred for key in keys}):
        if statements := list(_deletes(keys, writers, place)):
            yield place, "DELETE", _body(place, "DELETE", statements, _declared(keys, writers, place))
        if statements := list(_updates(keys, writers, place)):
            yield place, "UPDATE", _body(place, "UPDATE", statements)


def _body(place: Place, event: str, statements: Sequence[str], declared: Sequence[str] = ()) -> str:
    variables = "\n".join((DECLARED, *declared))
    listed = indent("\n".join((BEGINNING, *statements)), "    ")
    return (
        f"BEGIN\n"
        f"  -- sqlaudit, version 1: records what foreign keys do on {event} of {' '.join(place.name.split())}: "
        f"no triggers fire for it\n"
        f"{variables}\n"
        f"  IF @@foreign_key_checks THEN\n"
        f"{listed}\n"
        f"  END IF;\n"
        f"END"
    )


# --- rows that go ----------------------------------------------------------------------------------------------------


def _old(column: str) -> str:
    """Return the variable that holds a value of the row that is deleted: where a WITH is read twice, OLD is unknown."""
    return identifier(f"old {column}")


def _declared(keys: Sequence[ForeignKey], writers: Mapping[Place, Writer], place: Place) -> list[str]:
    """Return the declarations of the variables that hold what others refer to, and the primary key."""
    columns = dict.fromkeys(column for key in keys if key.referred == place for column in key.referred_columns)
    if place in writers:
        columns.update(dict.fromkeys(writers[place].primary_key))
    return [
        f"  DECLARE {_old(column)} TYPE OF {identifier(*place, column)} DEFAULT OLD.{identifier(column)};"
        for column in columns
    ]


def _is_other(name: str, writer: Writer) -> str:
    """Return the condition that the row *name*, of the table of the row that is deleted, is another one."""
    same = " AND ".join(f"{name}.{identifier(column)} = {_old(column)}" for column in writer.primary_key)
    return f"NOT ({same})"


@dataclass(frozen=True, slots=True)
class _Deletion:
    """What goes with a row of *place*: the tables, and what SQL calls their rows, each a table of keys."""

    place: Place
    gone: Mapping[Place, str]
    expression: str
    """The WITH that says which rows."""


def _deletes(keys: Sequence[ForeignKey], writers: Mapping[Place, Writer], place: Place) -> Iterator[str]:
    """Yield the statements that record what happens to others when a row of *place* goes."""
    deletion = _deletion(keys, writers, place)
    for table, name in deletion.gone.items():
        if (writer := writers.get(table)) is not None:
            primary_key = ", ".join(map(identifier, writer.primary_key))
            source = f"FROM {name} JOIN {identifier(*table)} AS `row` USING ({primary_key})"
            if table == place:
                source += f"\nWHERE {_is_other('`row`', writer)}"
            source += "\nLOCK IN SHARE MODE"
            recorded = writer.deleted(row("`row`"), (deletion.expression, source))
            yield writer.unless_by_session(recorded)
    starts: list[tuple[Place, str | None]] = [(place, None), *deletion.gone.items()]
    for referred, source_name in starts:
        for key in keys:
            if key.referred == referred and key.on_delete == "SET NULL":
                upper = _old if source_name is None else row(source_name)
                path = _Path(
                    tables=() if source_name is None else (source_name,),
                    conditions=(key.refers("`row 1`", upper),),
                    key=key,
                    depth=1,
                    effect=dict.fromkeys(key.columns, "NULL"),
                    seen=frozenset({key.table}),
                )
                yield from _handed_on(path, keys, writers, deletion)


def _deletion(keys: Sequence[ForeignKey], writers: Mapping[Place, Writer], place: Place) -> _Deletion:
    gone: dict[Place, str] = {}
    waiting = [place]
    while waiting:
        referred = waiting.pop(0)
        for key in keys:
            if key.referred == referred and key.on_delete == "CASCADE" and key.table not in gone:
                gone[key.table] = f"`gone {len(gone) + 1}`"
                waiting.append(key.table)
    tables = ",\n".join(
        f"  {name} AS (\n{indent(_rows_gone(keys, writers, place, gone, table), '    ')}\n  )"
        for table, name in gone.items()
    )
    return _Deletion(place, gone, f"WITH RECURSIVE\n{tables}\n" if gone else "")


def _rows_gone(
    keys: Sequence[ForeignKey],
    writers: Mapping[Place, Writer],
    place: Place,
    gone: Mapping[Place, str],
    table: Place,
) -> str:
    """Return the SELECT of the rows of *table* that go: their keys, and what others refer to."""
    columns = dict.fromkeys(column for key in keys if key.referred == table for column in key.referred_columns)
    if table in writers:
        columns = dict.fromkeys((*writers[table].primary_key, *columns))
    if not columns:
        return "SELECT 1"
    select = f"SELECT {', '.join(f'`row`.{identifier(column)}' for column in columns)} FROM "
    own = f"{identifier(*table)} AS `row`"
    acting = [key for key in keys if key.table == table and key.on_delete == "CASCADE"]
    # What the recursion begins with stands first.
    from_old = [f"{select}{own} WHERE {key.refers('`row`', _old)}" for key in acting if key.referred == place]
    from_others = [
        f"{select}{gone[key.referred]} AS upper JOIN {own} ON {key.refers('`row`', row('upper'))}"
        for key in acting
        if key.referred in gone
    ]
    return "\nUNION\n".join((*from_old, *from_others))


# --- rows that change ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """How a change was handed on to the rows of a table, which SQL calls `row 1`, `row 2` and so on."""

    tables: tuple[str, ...]
    """What the rows of the last table are joined to."""
    conditions: tuple[str, ...]
    key: ForeignKey
    """The last one."""
    depth: int
    effect: Mapping[str, str]
    """The new values of the last table's columns, by name."""
    seen: frozenset[Place]

    @property
    def name(self) -> str:
        """What SQL calls the rows of the last table."""
        return f"`row {self.depth}`"

    @property
    def source(self) -> str:
        """The FROM and WHERE."""
        tables = ", ".join((*self.tables, f"{identifier(*self.key.table)} AS {self.name}"))
        return f"FROM {tables}\nWHERE " + "\n  AND ".join(self.conditions)


def _updates(keys: Sequence[ForeignKey], writers: Mapping[Place, Writer], place: Place) -> Iterator[str]:
    """Yield the statements that record what happens to others when a row of *place* gets another key."""
    for key in keys:
        # MariaDB refuses it where a table's own rows refer to each other.
        if key.referred == place and key.table != place and key.on_update in _ACTING:
            path = _Path(
                tables=(),
                conditions=(key.refers("`row 1`", row("OLD")), _changed(key, row("OLD"), row("NEW"))),
                key=key,
                depth=1,
                effect=_effect(key, row("NEW")),
                seen=frozenset({place, key.table}),
            )
            yield from _handed_on(path, keys, writers, None)


def _handed_on(
    path: _Path, keys: Sequence[ForeignKey], writers: Mapping[Place, Writer], deletion: _Deletion | None
) -> Iterator[str]:
    """Yield the statements for the last table of *path*, and for those that refer to its rows in turn."""
    old, new = row(path.name), row(path.name, path.effect)
    writer = writers.get(path.key.table)
    if writer is not None:
        yield writer.unless_by_session("\n".join(_recorded(path, writer, deletion)))
    for key in keys:
        if (
            key.referred == path.key.table
            and key.table not in path.seen
            and key.on_update in _ACTING
            and not path.effect.keys().isdisjoint(key.referred_columns)
        ):
            name = f"`row {path.depth + 1}`"
            further = _Path(
                tables=(*path.tables, f"{identifier(*path.key.table)} AS {path.name}"),
                conditions=(*path.conditions, key.refers(name, old), _changed(key, old, new)),
                key=key,
                depth=path.depth + 1,
                effect=_effect(key, new),
                seen=path.seen | {key.table},
            )
            yield from _handed_on(further, keys, writers, deletion)


def _recorded(path: _Path, writer: Writer, deletion: _Deletion | None) -> Iterator[str]:
    old, new = row(path.name), row(path.name, path.effect)
    expression, source = "", path.source
    if deletion is not None:
        if deletion.gone:
            expression = deletion.expression
        if (gone := deletion.gone.get(path.key.table)) is not None:
            primary_key = map(identifier, writer.primary_key)
            same = " AND ".join(f"gone.{column} = {path.name}.{column}" for column in primary_key)
            source += f"\n  AND NOT EXISTS (SELECT 1 FROM {gone} AS gone WHERE {same})"
        if path.key.table == deletion.place:
            source += f"\n  AND {_is_other(path.name, writer)}"
    columns = writer.audited.table.columns
    lock = "\nLOCK IN SHARE MODE"
    if path.effect.keys().isdisjoint(columns[key].name for key in writer.audited.tracking.resource_key):
        differs = f"\n  AND ({writer.differs(old, new)})"
        yield writer.updated(old, new, (expression, source + differs + lock))
        return
    other_key = writer.other_key(old, new)
    others = f"\n  AND {other_key}{lock}"
    yield writer.deleted(old, (expression, source + others))
    yield writer.inserted(new, (expression, source + others))
    differs = f"\n  AND NOT {other_key}\n  AND ({writer.differs(old, new)})"
    yield writer.updated(old, new, (expression, source + differs + lock))


def _effect(key: ForeignKey, upper: Row) -> dict[str, str]:
    if key.on_update == "SET NULL":
        return dict.fromkeys(key.columns, "NULL")
    return {column: upper(its) for column, its in zip(key.columns, key.referred_columns, strict=True)}


def _changed(key: ForeignKey, old: Row, new: Row) -> str:
    changed = (f"NOT (BINARY {old(column)} <=> BINARY {new(column)})" for column in key.referred_columns)
    return f"({' OR '.join(changed)})"
