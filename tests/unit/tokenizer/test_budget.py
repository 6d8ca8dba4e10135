"""Whatever a template builds, it is told before it is too large; nothing that makes values goes unpaid."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outpace.errors import TokenizerError
from outpace.tokenizer import budget
from outpace.tokenizer.budget import Budget, BudgetError
from outpace.tokenizer.chat_template import ChatTemplate

# -- gigabytes -------------------------------------------------------------------------------------


def repeated(step: str, first: str) -> str:
    return (
        f"{{% set n = namespace(x={first}) %}}{{% for i in range(60) %}}{{% set n.x = {step} %}}{{% endfor %}}"
        "{{ n.x }}"
    )


HUGE = {
    "text times": "{{ 'a' * 10**10 }}",
    "times text": "{{ 10**10 * 'a' }}",
    "a constant": "{% set x = 'ab' * 999999999 %}",
    "a list times": "{{ [0] * 10**9 }}",
    "a power": "{{ (2 ** 65000) ** 65000 }}",
    "squares": repeated("n.x * n.x", "3"),
    "text doubled": repeated("n.x ~ n.x", "'a'"),
    "text added": repeated("n.x + n.x", "'a'"),
    "lists added": repeated("n.x + n.x", "['a']"),
    "lists in lists": repeated("[n.x, n.x]", "['a']"),
    "tuples in tuples": repeated("(n.x, n.x)", "('a',)"),
    "objects in objects": repeated("{'a': n.x, 'b': n.x}", "{}"),
    "objects by dict": repeated("dict(a=n.x, b=n.x)", "{}"),
    "output": "{% set x = 'a' * 999999 %}{% for i in range(9999) %}{{ x }}{% endfor %}",
    "output of literals": "{% for i in range(99999) %}" + "a" * 999 + "{% endfor %}",
    "a block": "{% set x = 'a' * 999999 %}{% set y %}{% for i in range(9999) %}{{ x }}{% endfor %}{% endset %}",
    "a macro": "{% macro f() %}{% for i in range(99999) %}" + "a" * 999 + "{% endfor %}{% endmacro %}{% set x = f() %}",
    "a filter block": "{% filter center(10**10) %}a{% endfilter %}",
    "slices kept": "{% set n = namespace(x=[]) %}{% set x = 'a' * 999999 %}"
    "{% for i in range(9999) %}{% set n.x = [n.x, x[i:]] %}{% endfor %}",
    "lists kept": "{% set n = namespace(x=[]) %}{% for i in range(999) %}"
    "{% set n.x = [n.x, range(9999) | list] %}{% endfor %}",
    "center": "{{ 'a' | center(10**10) }}",
    "the method center": "{{ 'a'.center(10**10) }}",
    "a named argument": "{{ 'a' | center(width=10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "expandtabs": "{{ ('\\t' * 99999).expandtabs(99999) }}",
    "translate": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "replace": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "replace nothing": "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "the filter replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "join": "{{ ('b' * 99999).join(range(99999) | map('string')) }}",
    "join text": "{{ ('b' * 99999).join('a' * 99999) }}",
    "the filter join": "{{ range(99999) | join('b' * 99999) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent with a precision": "{{ '%.1000000000f' % 1.5 }}",
    "percent with a width that is given": "{{ '%*d' % (10**9, 1) }}",
    "percent many times": "{{ ('%(a)s' * 99999) % {'a': 'x' * 999999} }}",
    "the filter format": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format with a width that is given": "{{ '{:>{}}'.format(1, 10**9) }}",
    "format with a width within": "{{ '{a:>{b[0]}}'.format_map({'a': 1, 'b': [10**9]}) }}",
    "format many times": "{{ ('{0}' * 99999).format('x' * 999999) }}",
    "format by attr": "{{ ('{:1000000000}' | attr('format'))(1) }}",
    "indent": "{{ ('\\n' * 999999) | indent(99999) }}",
    "indent with text": "{{ ('\\n' * 99) | indent('b' * 999999) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 1 | round(10**9) }}",
    "tojson with an indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "tojson with separators": "{{ [1, 2] | tojson(separators=(',' * 9999999, ':')) }}",
    "tojson of nested lists": "{{ ([[[[]]]] * 99999) | tojson(indent=60) }}",
    "bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "an integer of another base": "{{ ('f' * 9999999) | int(base=16) }}",
    "split": "{{ ('x,' * 4999999).split(',') | length }}",
    "sum": "{{ ([[0] * 1000] * 1000) | sum(start=[]) | length }}",
    "wordwrap": "{{ ('a ' * 99999) | wordwrap(1, wrapstring='b' * 99999) }}",
    "urlize": "{{ ('www.a ' * 99999) | urlize }}",
    "values of a dictionary": "{{ dict.fromkeys(range(99999), 'x' * 999999).values() }}",
}


@pytest.mark.parametrize("template", HUGE.values(), ids=HUGE)
def test_a_template_that_builds_too_much_ends(template: str) -> None:
    with pytest.raises(TokenizerError, match=r"the chat template failed: (it|tojson) "):
        ChatTemplate(template).render([], {})


def test_none_of_them_takes_more_memory_than_it_may() -> None:
    """All of them in one process that may have 1 GiB of addresses; the interpreter itself takes some of it."""
    code = """
import resource, sys
from outpace.errors import TokenizerError
from outpace.tokenizer.chat_template import ChatTemplate
from tests.unit.tokenizer.test_budget import HUGE
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for template in HUGE.values():
    try:
        ChatTemplate(template).render([], {})
    except TokenizerError as error:
        assert "MemoryError" not in str(error), template
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_chat_may_be_as_large_as_its_user_likes() -> None:
    large = "x" * (budget.LARGEST + 1)
    template = ChatTemplate("{% for m in messages %}{{ '<' + m.content | trim + '>' }}{{ m.content ~ 1 }}{% endfor %}")
    assert len(template.render([{"role": "user", "content": large}] * 2, {})) == 2 * (2 * len(large) + 3)


# -- everything that makes values is accounted for --------------------------------------------------

LINEAR = {
    str: "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
    "isnumeric isprintable isspace istitle isupper lower lstrip maketrans partition removeprefix removesuffix rfind "
    "rindex rpartition rstrip startswith strip swapcase title upper",
    bytes: "capitalize count endswith find fromhex hex index isalnum isalpha isascii isdigit islower isspace istitle "
    "isupper lower lstrip maketrans partition removeprefix removesuffix rfind rindex rpartition rstrip startswith "
    "strip swapcase title upper",
    int: "as_integer_ratio bit_count bit_length conjugate denominator from_bytes imag is_integer numerator real",
    float: "as_integer_ratio conjugate fromhex hex imag is_integer real",
    list: "append clear copy count extend index insert pop remove reverse sort",
    tuple: "count index",
    dict: "clear copy fromkeys get items keys pop popitem setdefault update values",
}


@pytest.mark.parametrize("kind", LINEAR, ids=lambda kind: kind.__name__)
def test_every_method_of_a_built_in_type_is_known_to_be_linear_or_asked_before(kind: type) -> None:
    public = {name for name in dir(kind) if not name.startswith("_")}
    bounded = {*budget._METHODS, "to_bytes"}
    assert public - bounded <= set(LINEAR[kind].split())


def test_every_filter_is_known_to_be_linear_or_asked_before() -> None:
    linear = (
        "abs attr capitalize count d default dictsort e escape filesizeformat first float forceescape groupby int "
        "items last length lower map max min random reject rejectattr reverse safe select selectattr sort string title "
        "tojson trim unique upper urlencode wordcount"
    )
    assert {*jinja2.defaults.DEFAULT_FILTERS} - {*budget._FILTERS} - budget._SLOW_FILTERS <= set(linear.split())


# -- one rendering's account -------------------------------------------------------------------------


def test_steps_are_paid_for_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "STEPS", 3)
    own = Budget([])
    own.step()
    assert own.made("a") == "a", "a value that is made is a step too"
    own.step()
    with pytest.raises(BudgetError, match="it takes more than 3 steps"):
        own.step()


def test_small_values_add_up_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MEMORY", 100_000)
    own = Budget("")
    for _ in range(9):
        own.made("x" * 10_000)
    with pytest.raises(BudgetError, match="it makes 100000 bytes of values and more"):
        own.made("x" * 10_000)


def test_the_memory_grows_with_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MEMORY", 100_000)
    own = Budget("x" * 1000)
    for _ in range(16):
        own.made("x" * 10_000)


@pytest.mark.parametrize(
    ("value", "size"), [("abc", 3), (b"ab", 2), (255, 3), (None, 8), (["a", "b"], 8), ({"key": "a"}, 10), ([[]], 6)]
)
def test_a_container_counts_with_all_that_is_in_it(value: Any, size: int) -> None:
    assert Budget("").size(value) == size


def test_lists_that_share_their_parts_are_measured_in_no_time() -> None:
    shared: list[Any] = []
    for _ in range(60):
        shared = [shared, shared]
    assert Budget("").size(shared) > 1 << 60
    with pytest.raises(BudgetError, match="it makes a value of"):
        Budget("").made(shared)


def test_a_view_of_a_dictionary_is_made_a_list() -> None:
    assert Budget("").made({"a": 1}.items()) == [("a", 1)]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_a_size_is_about_what_a_value_takes_when_it_is_written(value: Any) -> None:
    size, written = Budget(None).size(value), len(str(value))
    assert size <= 8 * written + 8
    assert written <= 12 * size + 12  # a character may be escaped, as \\U0001f600


def test_nothing_is_made_before_it_is_asked_for() -> None:
    tracemalloc.start()
    huge = 1 << 40
    for operator, left, right in [("*", "x", huge), ("*", huge, [0]), ("**", 10, huge), ("%", "%999999999d", 1)]:
        with pytest.raises(BudgetError):
            Budget(None).before_operator(operator, left, right)
    for name, args in [("center", [huge]), ("replace", ["x", "y" * 30_000_000])]:
        with pytest.raises(BudgetError):
            Budget(None).before_method("x", name, args, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26
