"""jinja2's immutable sandbox as chat templates need it, with a budget (budget.py) for everything that they do.

The sandbox keeps a template from reaching Python; it limits neither loops nor sizes. So templates are rewritten before
they are compiled: loop bodies and macros take a step, and whatever makes a value hands it over (`_Metered`). Operators,
calls, filters, output and the joining of buffers pass through hooks that jinja2 has for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import cache, wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from outpace.tokenizer.budget import Budget, BudgetError

_BUDGET: ContextVar[Budget] = ContextVar("budget")

# Names of filters of our own, which no template can spell.
_STEP, _MADE, _CONCAT = "step!", "made!", "concat!"


def compile_template(source: str) -> jinja2.Template:
    """Return a template in the environment that transformers gives its templates; raises what jinja2 raises."""
    environment = _environment()
    tree = _Metered().visit(environment.parse(source))
    return environment.template_class.from_code(environment, environment.compile(tree), environment.make_globals(None))


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Return what the template makes of the variables; raises whatever it raises, BudgetError among it."""
    budget = Budget(variables)
    token = _BUDGET.set(budget)
    try:
        parts, size = [], 0
        for part in template.root_render_func(template.new_context(dict(variables))):
            size += len(part)
            budget.reserve(size)
            parts.append(part)
        return "".join(parts)
    finally:
        _BUDGET.reset(token)


@cache
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        optimized=False,  # or constants are computed when it is compiled, without a budget
        finalize=_written,
    )
    environment.filters["tojson"] = _to_json
    environment.filters = {name: _filter(environment, name, function) for name, function in environment.filters.items()}
    tests: dict[str, Any] = environment.tests
    environment.tests = {name: _test(function) for name, function in tests.items()}
    environment.filters |= {_STEP: _step, _MADE: _made, _CONCAT: _concat_values}
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "namespace": _Namespace}
    del environment.globals["lipsum"]  # text to fill pages with
    return environment


class _Generation(Extension):
    """Accepts {% generation %} blocks, which mark the assistant's text for training: here just their content."""

    tags = {"generation"}  # noqa: RUF012 - as its base declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """A namespace that is written as such: unlike other values it can change, so its contents are not measured."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    @staticmethod
    def concat(parts: Any) -> str:
        """Join what a macro or a block wrote."""
        budget, parts = _BUDGET.get(), list(parts)
        budget.reserve(sum(map(len, parts)))
        return str(budget.made("".join(parts)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _BUDGET.get()
        budget.before_operator(operator, left, right)
        return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if name == "join" and args and not isinstance(args[0], str | bytes):
            args = (budget.made(list(args[0])), *args[1:])  # to measure it before
        budget.before_method(owner, name, args, kwargs)
        return budget.made(super().call(__context, __obj, *args, **kwargs))


class _Metered(NodeTransformer):
    """Rewrites a template so that loops, macros, comparisons and new values pass by the budget."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, _step_statement(node))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        node.body.insert(0, _step_statement(node))
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        self.generic_visit(node)
        node.body.insert(0, _step_statement(node))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _through(_CONCAT, nodes.List(node.nodes, lineno=node.lineno, environment=node.environment))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Filter:
        return _through(_STEP, self.generic_visit(node))

    def visit_List(self, node: nodes.List) -> nodes.Filter:
        return _through(_MADE, self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Filter:
        return _through(_MADE, self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _through(_MADE, node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _through(_MADE, node) if isinstance(node.arg, nodes.Slice) else node


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


def _step_statement(node: nodes.Node) -> nodes.ExprStmt:
    nothing = nodes.Const(None, lineno=node.lineno, environment=node.environment)
    return nodes.ExprStmt(_through(_STEP, nothing), lineno=node.lineno, environment=node.environment)


# -- filters ---------------------------------------------------------------------------------------


@pass_context
def _step(context: Context, value: Any) -> Any:
    _BUDGET.get().step()
    return value


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _BUDGET.get().made(value)


@pass_context
def _written(context: Context, value: Any) -> str:
    """Turn a value into what is written of it."""
    budget = _BUDGET.get()
    if isinstance(value, str):
        budget.step()
        return value
    budget.reserve(budget.size(value))
    return str(budget.made(str(value)))


@pass_context
def _concat_values(context: Context, values: list[Any]) -> str:
    budget = _BUDGET.get()
    budget.reserve(sum(map(budget.size, values)))
    return str(budget.made("".join(map(str, values))))


def _filter(environment: _Environment, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of jinja2 within the budget."""
    kind = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @wraps(function)
    def metered(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        if name == "join" and not isinstance(value, str):
            value = budget.made(list(value))
        budget.before_filter(name, value, args, kwargs)
        first: dict[str, Any] = {"context": context, "eval_context": context.eval_ctx, "environment": environment}
        given = [first[kind]] if kind else []
        return budget.made(function(*given, value, *args, **kwargs))

    return pass_context(metered)


def _test(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a test of jinja2 that is a step: filters ask it for every item of a list."""

    @wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        _BUDGET.get().step()
        return function(*args, **kwargs)

    return metered


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Replace jinja2's filter, which escapes HTML."""
    budget = _BUDGET.get()
    for spacing in [indent, *(separators or ())]:
        if (spacing if isinstance(spacing, int) else len(spacing or "")) > 64:
            raise BudgetError("tojson may indent and separate by at most 64 characters")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None:
        budget.reserve(budget.size(value))
        return encoder.encode(value)
    parts, size = [], 0
    for part in encoder.iterencode(value):
        size += len(part)
        budget.reserve(size)
        parts.append(part)
    return "".join(parts)


# -- globals ---------------------------------------------------------------------------------------


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    _BUDGET.get().check_slow(form)
    return datetime.now().strftime(form)
