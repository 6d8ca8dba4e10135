"""Assemble the page: template, style, script and data become one file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from outpace.measure.explain.overview import summarise
from outpace.measure.explain.read import HEADER, STEP, check_trace

_SCRIPTS = ("data.js", "step.js", "text.js", "charts.js", "blocks.js", "page.js")


def explain(trace: Mapping[str, Any]) -> str:
    """Return the web page of a trace (`Trace.as_dict()`). Raises UsageError, naming the field, for anything else.

    The page forbids itself all requests, and runs no script but its own (by their hashes): text that looks like
    HTML stays text.
    """
    check_trace(trace)
    summary = summarise(trace)
    style = _asset("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, _SCRIPTS)) + "\n})();\n"
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    values = {
        "policy": html.escape(policy),
        "style": style,
        "script": script,
        "data": _data({"trace": _shown(trace), "summary": summary}),
        "headline": html.escape(summary["headline"]),
        "lead": html.escape(summary["lead"]),
        "passage_sentence": html.escape(summary["passage_sentence"]),
        "speed_sentence": html.escape(summary["speed_sentence"]),
        "promise": html.escape(_promise(trace)),
        "text": html.escape("".join(trace["pieces"])),
        "guessers": "".join(map(_guesser, summary["guessers"])),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _asset("template.html"))


def _shown(trace: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page draws, all of it checked."""
    texts = ("prompt", "prompt_pieces", "tokens", "pieces", "sources", "texts", "logprobs")
    stats = {name: trace["stats"][name] for name in ("prompt_tokens", "cached_tokens", "prefill_seconds")}
    shown = {name: trace[name] for name in (*HEADER, *texts) if trace.get(name) is not None}
    kv = {name: trace["kv"][name] for name in ("format", "block_size") if name in trace.get("kv", {})}
    steps = [{name: step[name] for name in STEP if name in step} for step in trace["steps"]]
    return {**shown, "kv": kv, "stats": stats, "steps": steps}


def _guesser(row: Mapping[str, str]) -> str:
    """Return one drafter's line of the list under the text."""
    about = f": {row['about']}." if row["about"] else ": a drafter of the caller's own."
    return f"<li><strong>{html.escape(row['name'])}</strong>{html.escape(about)} {html.escape(row['sure'])}</li>"


def _asset(name: str) -> str:
    return files("outpace.measure.explain").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _data(value: object) -> str:
    """Return JSON that no text in it can end early: `<` is written so that HTML sees no tag."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _promise(trace: Mapping[str, Any]) -> str:
    if trace.get("verification", "exact") == "exact" or not trace.get("temperature"):
        return (
            "Every token here is the target's own, sampled at its place after all that stands before it. Drafts only "
            "decide how many of them fit into one pass. So the text is, bit for bit, the one that plain decoding "
            "writes: Outpace calls that lossless."
        )
    if trace["verification"] == "typical":
        return (
            "This text was verified by typical acceptance: a guess is kept where the target finds it likely enough, "
            "whether or not it would have written it. So the text is lossy: neither plain decoding's nor one of its "
            "distribution."
        )
    return (
        "This text was verified by rejection sampling: a guess is kept with just the odds that make the result follow "
        "the target's own distribution. The text may differ from plain decoding's; its probabilities do not."
    )
