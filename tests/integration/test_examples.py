"""The examples are programs that run, and print what happened."""

import re
from pathlib import Path

from programs import EXAMPLES, printed_by


def test_the_quickstart_prints_who_changed_what_from_what_to_what_and_why(tmp_path: Path) -> None:
    """The quickstart prints each change with its time in Kyiv, its user's name, the values and the reason."""
    why = "GDPR request 17, request_id: r-1"

    lines = printed_by(EXAMPLES / "quickstart.py", tmp_path)

    assert [re.split(r"\s{2,}", line) for line in lines] == [
        ["WHEN", "WHO", "WHAT", "FROM", "TO", "WHY"],
        ["(time)", "Olena", "insert Customer 1 name", "None", "Jane Doe"],
        ["(time)", "Olena", "insert Customer 1 email", "None", "jane@example.com"],
        ["(time)", "Olena", "update Customer 1 name", "Jane Doe", "Jane Smith"],
        ["(time)", "Petro", "delete Customer 1 name", "Jane Smith", "None", why],
        ["(time)", "Petro", "delete Customer 1 email", "jane@example.com", "None", why],
    ]


def test_the_quickstart_prints_aligned_columns(tmp_path: Path) -> None:
    """Every cell of the quickstart's table stands under its heading."""
    header, *lines = printed_by(EXAMPLES / "quickstart.py", tmp_path, times=False)

    starts = [header.index(heading) for heading in ("WHO", "WHAT", "FROM", "TO", "WHY")]

    assert lines
    for line in lines:
        padded = line.ljust(len(header))
        assert [padded[start - 2 : start] for start in starts] == ["  "] * len(starts)
        assert all(padded[start] != " " for start in starts[:-1])


def test_the_example_of_sqlaudit_prints_its_lines(tmp_path: Path) -> None:
    """A program that uses nothing but what SQLAudit documents prints SQLAudit's line per change, newest first."""
    lines = printed_by(EXAMPLES / "sqlaudit_example.py", tmp_path)

    assert lines == [
        "FIELD: 'name' CHANGED AT (time) TO Grace Hopper (OLD: Grace Murray) BY USER ID 1",
        "FIELD: 'name' CHANGED AT (time) TO Grace Murray (OLD: None) BY USER ID 1",
        "FIELD: 'email' CHANGED AT (time) TO grace@example.com (OLD: None) BY USER ID 1",
        "FIELD: 'user_id' CHANGED AT (time) TO 1 (OLD: None) BY USER ID 1",
        "FIELD: 'name' CHANGED AT (time) TO Ada Byron (OLD: None) BY USER ID 1",
        "FIELD: 'email' CHANGED AT (time) TO ada@example.com (OLD: None) BY USER ID 1",
        "FIELD: 'user_id' CHANGED AT (time) TO 1 (OLD: None) BY USER ID 1",
    ]


def test_the_example_of_sqlaudit_imports_what_sqlaudit_has() -> None:
    """The example of SQLAudit needs no module of ours that SQLAudit doesn't document."""
    text = (EXAMPLES / "sqlaudit_example.py").read_text()

    imports = re.findall(r"^from (sqlaudit\S*) import (.+)$", text, re.MULTILINE)

    assert imports == [
        ("sqlaudit.config", "SQLAuditConfig, set_config"),
        ("sqlaudit.decorators", "track_table"),
        ("sqlaudit.hooks", "register_hooks"),
        ("sqlaudit.retrieval", "get_resource_changes"),
    ]
