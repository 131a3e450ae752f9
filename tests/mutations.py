"""
Break the library in one way at a time: each must make the conformance suite fail.

``tox run -e mutations`` runs them all in a copy of the repository, and prints what noticed each.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Mutation:
    """A way to break the library: in a module, *before* becomes *after*."""

    name: str
    module: str
    before: str
    after: str


UNIT_OF_WORK = "capture/unit_of_work.py"
STATEMENTS = "capture/statements.py"
LISTENERS = "capture/listeners.py"
POSTGRESQL = "capture/triggers/postgresql.py"

MUTATIONS = [
    Mutation("old values are not read", UNIT_OF_WORK, "            if before.missing:\n", "            if False:\n"),
    Mutation(
        "deletes and orphans are not heard of",
        LISTENERS,
        '"after_insert", "after_update", "after_delete"',
        '"after_insert", "after_update"',
    ),
    Mutation(
        "the value before is taken from the object as it is now",
        UNIT_OF_WORK,
        "value: Any = committed[attribute] if pending else current.get(",
        "value: Any = current.get(",
    ),
    Mutation(
        "what was changed in place is trusted",
        "codec/values.py",
        "return isinstance(value, _IMMUTABLE) and",
        "return True and",
    ),
    Mutation(
        "what the database alters is taken from memory",
        "codec/values.py",
        "return self.is_altered or",
        "return",
    ),
    Mutation("ciphertexts are made anew", "codec/finding.py", "ciphers.append(True)", "pass"),
    Mutation(
        "what is equal for SQLAlchemy, and isn't sent, is told",
        UNIT_OF_WORK,
        "committed is not NO_VALUE and state.manager[name].impl.is_equal(value, committed) is True",
        "False",
    ),
    Mutation(
        "time runs as the process's clock does",
        "recorder.py",
        'return func.max(bindparam("now", type_=trail.c.recorded_at.type), func.coalesce(last, ""))',
        'return bindparam("now", type_=trail.c.recorded_at.type)',
    ),
    Mutation(
        "a commit of the connection keeps what has no trail",
        LISTENERS,
        '        event.listen(engine, "commit", _on_commit)\n',
        "",
    ),
    Mutation(
        "MariaDB's text passes", "capture/refusals.py", 'is_mysql = dialect in ("mysql", "mariadb")', "is_mysql = False"
    ),
    Mutation("baselines are written twice", "baseline.py", "if began > ended)", "if began < ended)"),
    Mutation(
        "older names are not read", "_statements.py", "values.setdefault(renamed[old], value)", "values[old] = value"
    ),
    Mutation("a snapshot is of now", "_subjects.py", "return trail.c.id <= self.change_id", "return true()"),
    Mutation(
        "what the database generates is not read",
        UNIT_OF_WORK,
        "if field.generated or field.attribute in write.state.expired_attributes:",
        "if False:",
    ),
    Mutation(
        "columns that an UPDATE changes by itself are forgotten",
        UNIT_OF_WORK,
        "if whole or pending or field.volatile or field.is_key:",
        "if whole or pending or field.is_key:",
    ),
    Mutation("a row switch is an insert", UNIT_OF_WORK, "return deleted if is_delete else None", "return None"),
    Mutation(
        "another key is the same resource",
        "capture/rows.py",
        "if not is_same_key and (before := self.resource_id(old)) != after:",
        "if False:",
    ),
    Mutation("masked values are stored", "capture/rows.py", "MASK if key in masked else image[key]", "image[key]"),
    Mutation(
        "subscribers are told before the commit",
        "capture/committing.py",
        "    notes.written.setdefault((connection, config.trail, repr(places)), written)\n",
        "    deliver(written)\n",
    ),
    Mutation(
        "what was rolled back is delivered",
        "capture/committing.py",
        "if notes is None or not (notes.is_committed or len(notes.written) > 1):",
        "if notes is None:",
    ),
    Mutation(
        "subscribers are told what others have written",
        "_delivery.py",
        "criterion_of(transaction, scopes, trail), trail.c.id > after,",
        "trail.c.id > after,",
    ),
    Mutation("nobody acts", "recorder.py", "return AuditContext(user_id=user_id).under(context)", "return context"),
    Mutation(
        "the context of the moment is ignored",
        "context.py",
        "    current = get_audit_context()\n",
        "    current = NOBODY\n",
    ),
    Mutation(
        "a failed flush is remembered",
        LISTENERS,
        "    flush = current_flush(session)\n    end_flush(session)\n",
        "    flush = current_flush(session)\n",
    ),
    Mutation(
        "DELETE statements pass",
        STATEMENTS,
        "    if isinstance(statement, Delete):\n        return _read_before_delete",
        "    if isinstance(statement, Delete):\n        return None\n        return _read_before_delete",
    ),
    Mutation(
        "an upsert is an insert",
        "capture/upserts.py",
        "                if row_key in old:\n",
        "                if False:\n",
    ),
    Mutation(
        "keys of many rows are not asked for",
        STATEMENTS,
        "return pending(statement.returning(*columns), _taken)",
        "return pending(statement, list)",
    ),
    Mutation(
        "what foreign keys do is not followed",
        "capture/cascades.py",
        "    return known[1]\n",
        "    return False\n",
    ),
    Mutation(
        "DML in text passes",
        "capture/refusals.py",
        "    written = [(verb.split()[0], name) for verb, name in _WRITES.findall(sql)]\n",
        "    written = []\n",
    ),
    Mutation(
        "rows of secondary tables are taken for a mapper's",
        LISTENERS,
        "    if cache is None or is_bulk(statement)",
        "    if cache is None:\n        return True\n    if is_bulk(statement)",
    ),
    Mutation(
        "rows are not locked", UNIT_OF_WORK, "if not locks_rows and (codecs[key].is_plain", "if (codecs[key].is_plain"
    ),
    Mutation(
        "PostgreSQL's triggers take the new row for the old one",
        POSTGRESQL,
        """f"{_indented(recording.document('o'), 2)} AS old_values,",""",
        """f"{_indented(recording.document('n'), 2)} AS old_values,",""",
    ),
    Mutation(
        "PostgreSQL's triggers ignore the actor",
        POSTGRESQL,
        "    actor := published ->> 'user';\n",
        "",
    ),
    Mutation(
        "PostgreSQL's triggers store masked values",
        "capture/triggers/postgresql_values.py",
        """return replace(known, document=lambda _: \"\"\"'{"$masked": true}'::jsonb\"\"\")""",
        "return known",
    ),
    Mutation(
        "PostgreSQL's triggers run with the rights of the writer",
        POSTGRESQL,
        '        options = ["SECURITY DEFINER"] if self.writes_trail else []\n',
        "        options = []\n",
    ),
    Mutation(
        "all transactions are one",
        "recorder.py",
        "known is None or root is None or known.root() is not root",
        "known is None",
    ),
    Mutation(
        "on SQLite rows that are replaced are not noted",
        "capture/triggers/sqlite.py",
        "replaced = [_record_replaced(audited), *_forget_replaced(audited)]",
        'replaced = ["SELECT 1", *_forget_replaced(audited)]',
    ),
    Mutation(
        "on SQLite a float has 15 digits",
        "capture/triggers/sqlite_floats.py",
        "ELSE (SELECT shown FROM exact) END",
        "ELSE shown END",
    ),
    Mutation(
        "on SQLite an actor outlives a savepoint that is rolled back",
        "capture/publishing.py",
        "_published[connection] = replace(known, document=None)",
        "forget(connection)",
    ),
    Mutation(
        "MariaDB's triggers follow no foreign keys",
        "capture/triggers/mysql.py",
        "in cascades(keys, writers):",
        "in cascades([], writers):",
    ),
    Mutation(
        "MariaDB's triggers compare as the collation does",
        "capture/triggers/mysql_values.py",
        'return f"NOT (BINARY {old} <=> BINARY {new})"',
        'return f"NOT ({old} <=> {new})"',
    ),
    Mutation(
        "MariaDB's connections keep their actor in the pool",
        "capture/publishing.py",
        "connection.info[_INFO_KEY] = True",
        "pass",
    ),
]


def main() -> int:
    """Apply each mutation to a copy of the sources; return how many nobody noticed."""
    survivors = 0
    chosen = [each for each in MUTATIONS if not sys.argv[1:] or any(word in each.name for word in sys.argv[1:])]
    with tempfile.TemporaryDirectory(prefix="sqlaudit-mutations-") as folder:
        for mutation in chosen:
            copy = Path(folder) / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
            source = copy / "src" / "sqlaudit" / mutation.module
            text = source.read_text()
            if text.count(mutation.before) != 1:
                sys.exit(
                    f"{mutation.name}: the text to change is in {mutation.module} {text.count(mutation.before)} times"
                )
            source.write_text(text.replace(mutation.before, mutation.after))
            command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
            run = subprocess.run(
                [*command, "-o", "pythonpath=src tests", "tests/conformance"],
                # For the programs that the tests start, too.
                env={**os.environ, "PYTHONPATH": str(copy / "src")},
                cwd=copy, capture_output=True, text=True, check=False,
            )  # fmt: skip
            noticed = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
            survivors += noticed is None
            print(f"{mutation.name}: {noticed.group(1) if noticed else 'NOT NOTICED'}", flush=True)  # noqa: T201
    print(f"{len(chosen) - survivors} of {len(chosen)} were noticed")  # noqa: T201
    return survivors


if __name__ == "__main__":
    sys.exit(main())
