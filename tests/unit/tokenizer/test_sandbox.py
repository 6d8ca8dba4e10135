"""Templates that are not meant well end with an error; all others give what jinja2 gives."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jinja2
import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from outpace.errors import TokenizerError
from outpace.tokenizer import budget, sandbox
from outpace.tokenizer.chat_template import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "You are  kind.\n"},
    {"role": "user", "content": [{"type": "text", "text": "a\tb, <c>"}, {"type": "image"}]},
    {"role": "assistant", "content": "naïve\nlines", "tool_calls": [{"name": "f", "arguments": {"x": [1, 2.5, None]}}]},
]


def render(template: str, **variables: Any) -> str:
    return ChatTemplate(template).render(MESSAGES, variables)


# -- for ever --------------------------------------------------------------------------------------

ENDLESS = {
    "nested loops": "{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "a recursive loop": "{% for x in [5, 5] recursive %}{% if loop.depth < 60 %}{{ loop([5, 5]) }}{% endif %}"
    "{% endfor %}",
    "a call block": "{% macro f() %}{{ caller() }}{% endmacro %}{% for a in r %}{% for b in r %}"
    "{% call f() %}x{% endcall %}{% endfor %}{% endfor %}",
    "loops in a block": "{% set x %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}{% endset %}",
    "comparisons": "{% for a in r %}{{ " + " or ".join(["a == -1"] * 99) + " }}{% endfor %}",
    "a filter for every item of a list": "{% for a in r %}{{ r | map('abs') | list }}{% endfor %}",
    "a test for every item of a list": "{% for a in r %}{{ r | select('even') | list }}{% endfor %}",
    "operators": "{% for a in r %}{{ " + " + ".join(["a"] * 99) + " }}{% endfor %}",
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_takes_too_many_steps_ends(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(budget, "STEPS", 20_000)
    monkeypatch.setattr(budget, "SECONDS", 1e9)
    with pytest.raises(TokenizerError, match="the chat template failed: it takes more than 20000 steps"):
        render(template, r=list(range(2000)))


SLOW = {
    "comparisons": "{% for a in r %}{% for b in r %}{{ 1 if x == y }}{% endfor %}{% endfor %}",
    "searches": "{% for a in r %}{% for b in r %}{{ 1 if y in x }}{% endfor %}{% endfor %}",
    "searches for every item": "{{ r | select('in', s) | list }}",
    "loops that filter all": "{% for a in r %}{% for b in r if false %}{% endfor %}{% endfor %}",
    "sorting": "{% for a in r %}{{ r | sort | length }}{% endfor %}",
}


@pytest.mark.parametrize("template", SLOW.values(), ids=SLOW)
def test_a_template_that_takes_too_long_ends_whatever_its_steps(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(budget, "STEPS", 1 << 60)
    monkeypatch.setattr(budget, "SECONDS", 0.05)
    long = "x" * 1_000_000
    with pytest.raises(TokenizerError, match=r"the chat template failed: it takes more than 0\.05 seconds"):
        render(template, x=long, y=long[:-1] + "y", r=list(range(20_000)), s=list(range(20_000, 40_000)))


def test_the_budget_holds_in_any_thread() -> None:
    template = ChatTemplate("{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}")
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(template.render, MESSAGES, {"r": list(range(2000))}) for _ in range(4)]:
            with pytest.raises(TokenizerError, match="steps"):
                future.result()


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
        render(template)


def test_none_of_them_takes_more_memory_than_it_may() -> None:
    """All of them in one process that may have 1 GiB of addresses; the interpreter itself takes some of it."""
    code = """
import resource, sys
from outpace.errors import TokenizerError
from outpace.tokenizer.chat_template import ChatTemplate
from tests.unit.tokenizer.test_sandbox import HUGE
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


# -- the same as ever ------------------------------------------------------------------------------

HARMLESS = [
    "{% for m in messages %}{{ loop.index }}{{ loop.length }}{{ loop.last }}{{ loop.previtem is defined }}"
    "{{ loop.nextitem is defined }}{{ loop.revindex0 }}{{ loop.cycle('a', 'b') }}"
    "{{ loop.changed(m.role) }}{% endfor %}",
    "{% for m in messages if m.role != 'system' %}{{ m.role }}{% else %}none{% endfor %}",
    "{% for x in [] %}{% else %}none{% endfor %}",
    "{% for k, v in messages[2].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].keys() | list }}",
    "{% for x in [1, [2, [3]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% set n = namespace(a=1, b=[]) %}{% for m in messages %}{% set n.a = n.a + 1 %}"
    "{% set n.b = n.b + [m.role] %}{% endfor %}{{ n.a }}{{ n.b }}",
    "{% macro f(a, b=2, c=3) %}{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs }}{% endmacro %}"
    "{{ f(1) }}{{ f(1, 3, 4, 5) }}{{ f(1, d=6) }}",
    "{% macro f() %}<{{ caller('x') }}>{% endmacro %}{% call(y) f() %}{{ y }}{% endcall %}",
    "{% set x %}{{ messages[0].content }}!{% endset %}[{{ x }}]{% set y | upper %}a{% endset %}{{ y }}",
    "{% filter upper %}a{{ messages[0].role }}{% endfilter %}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{% raw %}{{ x }}{% endraw %}{# nothing #}",
    "{{ messages[1:] | length }}{{ messages[::-1][0].role }}{{ 'abc'[1:] }}{{ 'abc'[-1] }}{{ messages[-1]['role'] }}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list }}",
    "{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='role') | list }}{{ [3, 1, 2] | sort | first }}",
    "{{ messages[1].content | map(attribute='type') | unique | list }}{{ [1, 2] | sum }}{{ 'a b' | wordcount }}",
    "{{ messages[0].content | trim }}{{ messages[0].content.strip() }}{{ 'a,b'.split(',')[-1] }}{{ '-'.join(['a']) }}",
    "{{ ', '.join(messages | map(attribute='role')) }}{{ 'ab' | join('-') }}{{ {'a': 1} | join }}{{ 'a' | indent }}",
    "{{ 'a' ~ 1 ~ none ~ [2] }}{{ 'a' + 'b' }}{{ 'ab' * 2 }}{{ [1] * 2 }}{{ 7 // 2 }}{{ 7 / 2 }}"
    "{{ -7 % 3 }}{{ 2 ** 9 }}",
    "{{ '%s-%05.1f' % ('a', 1.25) }}{{ '%s' | format('b') }}{{ '{}{x:>4}'.format(1, x='b') }}"
    "{{ '{:{}}'.format(1, 3) }}",
    "{{ {'a': [1, {'b': none}]} }}{{ (1, 2) }}{{ [] }}{{ {} }}{{ true }}{{ none }}{{ 1.0 }}{{ undefined_thing }}|",
    "{{ undefined_thing is defined }}{{ undefined_thing | default('d') }}{{ '' | default('d', true) }}",
    "{{ 1 if messages is iterable and messages is not mapping else 0 }}{{ 'x' in 'xyz' }}{{ 1 < 2 <= 2 }}{{ not 1 }}",
    "{{ messages[2].tool_calls[0].arguments | tojson }}{{ {'b': 1, 'a': '<é>'} | tojson(indent=2) }}",
    "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}{{ {'b': 1, 'a': 2} | dictsort }}",
    "{{ '<b>' | e }}{{ '<b>' | safe }}{{ ('<b>' | safe) ~ '<' }}{{ ('%s' | safe) | format('<') }}",
    "{{ [1, 2, 3] | batch(2) | list }}{{ [1, 2, 3] | slice(2) | list }}{{ 3.14159 | round(2) }}{{ '5' | int + 1 }}",
    "{{ [{'a': 1}, {'a': 2}] | groupby('a') }}{{ range(3) | list }}{{ dict(a=1) }}"
    "{{ 'a' | center(5) }}{{ 'aa' | replace('a', 'b', 1) }}",
    "{{ namespace(a=1).a }}{{ cycler('a', 'b').next() }}{{ joiner(',')() }}{{ [1, 2] | random in [1, 2] }}",
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% endif %}{{ s }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% for a, b in [(1, 2), (3, 4)] %}{{ a * b }}{% endfor %}{{ loop is defined }}",
    "{{ 'A' | lower }}{{ 'ab' | first }}{{ 'abcdefghi' | truncate(5, true, '..', 0) }}{{ 'a\\nb' | indent(2, true) }}",
    "{% block x %}in {{ messages[0].role }}{% endblock %}{{ self.x() }}",
]


@pytest.mark.parametrize("template", HARMLESS)
def test_a_harmless_template_gives_what_jinja2_gives(template: str) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    plain.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    assert render(template) == plain.from_string(template).render(messages=MESSAGES)


def test_templates_cannot_reach_the_budget() -> None:
    for name in ("step!", "made!", "concat!"):
        with pytest.raises(TokenizerError, match="cannot be compiled"):
            render("{{ 1 | " + name + " }}")
    assert sandbox._BUDGET.get(None) is None


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in r %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "9" * 5000 + " }}",
        "{{ " + "-" * 50_000 + "1 }}",
        "{{ lipsum.x }}{% frobnicate %}",
        "x" * ((1 << 20) + 1),
    ],
)
def test_what_cannot_be_compiled_is_a_tokenizer_error(template: str) -> None:
    with pytest.raises(TokenizerError, match=r"the chat template (cannot be compiled|has 1048577 characters)"):
        ChatTemplate(template)
