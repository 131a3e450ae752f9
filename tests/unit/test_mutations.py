"""The mutations still fit the library that they break."""

import pytest

from mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_a_mutation_breaks_is_there_once(mutation: Mutation) -> None:
    """A mutation that changes nothing would be noticed by nobody."""
    source = (ROOT / "src" / "sqlaudit" / mutation.module).read_text(encoding="utf-8")
    assert source.count(mutation.before) == 1
    assert mutation.after != mutation.before
