"""Every wrong version of the method in tests/mutations.py is noticed by a test, and its table matches the code."""

from __future__ import annotations

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation, noticed


@pytest.mark.slow  # it reads source text, which may change without any change of behaviour
def test_the_table_of_mutations_matches_the_code():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    for mutation in MUTATIONS:
        assert (ROOT / "sere_jax" / mutation.file).read_text().count(mutation.old) == 1, mutation.name
        assert (ROOT / mutation.tests).is_file(), mutation.tests


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_wrong_method_is_noticed(mutation: Mutation):
    assert noticed(mutation)
