"""Any order of what may happen to trees of runs; `python -m tests.chaos trees` tries many more."""

import pytest

from tests.chaos.tree_machine import any_order


@pytest.mark.guarantee("G1")
@pytest.mark.guarantee("G4")
@pytest.mark.guarantee("G8")
def test_any_order_of_what_happens_to_trees(valkey_url: str) -> None:
    assert any_order(valkey_url, examples=12, steps=50) >= 12
