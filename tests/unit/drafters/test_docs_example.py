import re
from pathlib import Path

import pytest

from outpace.drafters import Combined, Suffix
from outpace.types.tree import TreeBuilder
from tests.simulated import hashing, plain, reciting, simulate

PAGE = (Path(__file__).parents[3] / "docs" / "adding-a-drafter.md").read_text()
[EXAMPLE] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def names():
    """Return what the page's example defines, its class among them."""
    defined: dict[str, object] = {}
    exec(EXAMPLE, defined)
    return defined


def test_the_example_has_at_most_thirty_lines():
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 30


def test_the_example_takes_fewer_steps_than_tokens(names):
    run = simulate(names["LastFollower"](), reciting([3, 1, 4, 2, 5, 9]), [3], 100)
    assert run.output == plain(reciting([3, 1, 4, 2, 5, 9]), [3], 100)
    assert run.tokens_per_step > 3


def test_the_example_works_beside_others(names):
    combined = Combined([names["LastFollower"](), Suffix()])
    assert simulate(combined, hashing(9), [3], 100).output == plain(hashing(9), [3], 100)


def test_the_example_forgets(names):
    drafter = names["LastFollower"]()
    simulate(drafter, reciting([1, 2]), [1], 10)
    assert drafter.memories == {}


def test_the_other_snippets_of_the_page_run(names):
    builder, use = (
        next(block for block in re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL) if mark in block)
        for mark in ("TreeBuilder", "simulate")
    )
    scope = names | {"TreeBuilder": TreeBuilder, "simulate": simulate, "reciting": reciting, "print": lambda _: None}
    exec("def draft(self):\n" + re.sub("^", "    ", builder, flags=re.MULTILINE), scope)
    tree = scope["draft"](names["LastFollower"]())
    assert tree.tokens == (464, 3797, 3290)
    assert tree.parents == (-1, 0, 0)
    exec(use, scope)
    assert scope["run"].tokens_per_step > 1
