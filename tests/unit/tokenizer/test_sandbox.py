"""Templates that are not meant well end with an error; all others give what jinja2 gives."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
