"""What a trace says in numbers and in plain words; every figure on the page is computed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from outpace.measure.explain.passages import passages, sentence
from outpace.trace import PHASES

Json = Mapping[str, Any]

_ABOUT = {
    "eagle": "a small network, trained to continue this model's own hidden states. It makes each guess from the one "
    "before it, so every further guess costs as much again",
    "medusa": "heads, trained on this model's last hidden state. Each guesses one position further, all at once, and "
    "none sees what the others guess",
    "block": "a small network, trained to fill a block of masked positions from this model's hidden states in one "
    "pass, however long the block",
    "ngram": "what followed the same tokens earlier in the text",
    "suffix": "what followed the longest stretch of the same tokens earlier in the text",
    "prediction": "the text that the caller expected",
    "lookahead": "what the model itself wrote behind other guesses that it checked",
    "jacobi": "what the model itself wrote behind the last guesses",
    "draft_model": "a second, cheaper model with the same vocabulary",
}
_MIN_GUESSES = 10  # fewer say nothing of how sure a drafter may be


def summarise(trace: Json) -> dict[str, Any]:
    """Return the page's figures as plain JSON values; `trace` has passed `check_trace`."""
    found = passages(trace["pieces"], step_shares(trace))
    speed = compare_with_plain(trace)
    return {
        "headline": headline(trace),
        "lead": lead(trace),
        "passage_sentence": sentence(found) if any(trace["sources"]) else "",
        "speed_sentence": speed_sentence(speed),
        "speed": speed,
        "passages": [passage.as_dict() for passage in found],
        "owners": owners(trace),
        "by_depth": by_depth(trace["steps"]),
        "by_drafter": by_drafter(trace["steps"]),
        "guessers": guessers(trace["steps"]),
        "seconds": {phase: sum(step["seconds"][phase] for step in trace["steps"]) for phase in PHASES},
        "example": example(trace["steps"]),
    }


def headline(trace: Json) -> str:
    """Return what the text took in a few words."""
    return f"This text took {_count(len(trace['steps']), 'step')} for {_count(len(trace['tokens']), 'token')}"


def lead(trace: Json) -> str:
    """Say what drafts saved, or that they saved nothing."""
    tokens, steps = len(trace["tokens"]), len(trace["steps"])
    if not tokens or not steps:
        return "No token was written."
    drafted = sum(len(step["tree"]["tokens"]) for step in trace["steps"])
    if not drafted:
        return "Nobody drafted, so every token took a step of its own: this is plain decoding."
    if steps >= tokens:
        return "One token a step: the drafts saved nothing here."
    return f"{tokens / steps:.1f}× fewer passes through the model than one token at a time."


def speed_sentence(speed: Mapping[str, float | str] | None) -> str:
    """Put the comparison with plain decoding into words, with where its estimate comes from."""
    if speed is None:
        return ""
    ratio = float(speed["ratio"])
    verdict = f"{ratio:.1f}× as fast" if ratio >= 1.05 else "no faster" if ratio > 0.95 else f"{ratio:.2f}× as fast"
    return (
        f"In time, after the first token: {float(speed['seconds']):.2f} s, where plain decoding would have taken about "
        f"{float(speed['plain_seconds']):.2f} s ({speed['basis']}). That is {verdict}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def step_shares(trace: Json) -> list[float]:
    """Return for each output token the part of a step that it took."""
    shares = [0.0] * len(trace["tokens"])
    for step in trace["steps"]:
        start = step["position"] - len(trace["prompt"])
        kept = range(start, min(start + len(step["tokens"]), len(shares)))
        for token in kept:
            shares[token] = 1 / len(kept)
    return shares


def compare_with_plain(trace: Json) -> dict[str, float | str] | None:
    """Estimate what the tokens after the first step would have taken without drafts; None where nothing tells.

    A plain pass takes what the router predicted for one, or what this text's own passes without a draft took.
    """
    steps = trace["steps"][1:]
    if any(step.get("batch", 1) > 1 for step in trace["steps"]) or not any(s["tree"]["tokens"] for s in steps):
        return None
    predicted = [f["seconds"]["plain"] for s in steps if (f := s.get("forecast")) and f["seconds"]["plain"] > 0]
    measured = [_total(s) for s in steps if not s["tree"]["tokens"] and s["num_pending"] == 1]
    for times, basis in ((predicted, "the router's prediction of a pass without a draft"), (measured, "")):
        if len(times) >= 3:
            plain = median(times)
            tokens, seconds = sum(len(step["tokens"]) for step in steps), sum(map(_total, steps))
            basis = basis or f"the median of its {len(times)} steps without a draft"
            return {
                "seconds": seconds,
                "plain_seconds": plain * tokens,
                "ratio": plain * tokens / seconds if seconds else 1.0,
                "basis": f"{basis}, {plain * 1e3:.1f} ms",
            }
    return None


def owners(trace: Json) -> list[dict[str, Any]]:
    """Return who drafted tokens, most first: drafters that agreed on a token own it together."""
    counts = Counter(tuple(names) for names in trace["sources"] if names)
    nodes = (names for step in trace["steps"] for names in step["tree"]["sources"])
    counts.update(dict.fromkeys((tuple(names) for names in nodes), 0))
    return [{"names": list(names), "tokens": count} for names, count in counts.most_common()]


def by_depth(steps: Sequence[Json]) -> list[dict[str, int]]:
    """Return for each depth of the trees: nodes verified, nodes whose parent was accepted, nodes accepted."""
    rows: list[dict[str, int]] = []
    for step in steps:
        accepted = {-1, *step["path"]}
        depths: list[int] = []
        for node, parent in enumerate(step["tree"]["parents"]):
            depth = depths[parent] + 1 if parent >= 0 else 0
            depths.append(depth)
            while len(rows) <= depth:
                rows.append({"verified": 0, "reached": 0, "accepted": 0})
            rows[depth]["verified"] += 1
            rows[depth]["reached"] += parent in accepted
            rows[depth]["accepted"] += node in accepted
    return rows


def by_drafter(steps: Sequence[Json]) -> list[dict[str, Any]]:
    """Return for each drafter its nodes that were verified and accepted, and the steps in which it had any."""
    rows: dict[str, dict[str, Any]] = {}
    for step in steps:
        accepted = set(step["path"])
        for name in {name for names in step["tree"]["sources"] for name in names}:
            rows.setdefault(name, {"name": name, "verified": 0, "accepted": 0, "steps": 0})["steps"] += 1
        for node, names in enumerate(step["tree"]["sources"]):
            for name in names:
                rows[name]["verified"] += 1
                rows[name]["accepted"] += node in accepted
    return sorted(rows.values(), key=lambda row: (-row["accepted"], row["name"]))


def guessers(steps: Sequence[Json]) -> list[dict[str, str]]:
    """Return who guessed, what that is, and whether it knows how sure it may be.

    A guess comes to the test where all before it were right.
    """
    tested: dict[str, list[tuple[float, bool]]] = {}
    for step in steps:
        tree, accepted = step["tree"], {-1, *step["path"]}
        rows = zip(tree["parents"], tree["sources"], tree["confidence"], strict=True)
        for node, (parent, names, confidence) in enumerate(rows):
            for name in names:
                guesses = tested.setdefault(name, [])
                if parent in accepted:
                    guesses.append((confidence, node in accepted))
    return [{"name": name, "about": _ABOUT.get(name, ""), "sure": _sure(tested[name])} for name in sorted(tested)]


def _sure(guesses: Sequence[tuple[float, bool]]) -> str:
    """Put a drafter's mean confidence beside what became of its guesses."""
    if len(guesses) < _MIN_GUESSES:
        return ""
    sure = sum(confidence for confidence, _ in guesses) / len(guesses)
    right = sum(is_right for _, is_right in guesses) / len(guesses)
    tested = f"{len(guesses)} of its guesses came to the test."
    return f"{tested} It was {sure:.0%} sure of them on average; {right:.0%} were right."


def example(steps: Sequence[Json]) -> int | None:
    """Return the step that explains the most with the fewest nodes: some guesses right, then one wrong."""
    best: tuple[int, int] | None = None
    for place, step in enumerate(steps):
        tree, path = step["tree"], step["path"]
        last = path[-1] if path else -1
        missed = last in tree["parents"]  # the target's own token was not among the guesses
        if 2 <= len(path) <= 6 and missed and len(step["tokens"]) == len(path) + 1:
            cost = abs(len(path) - 3) + abs(len(tree["tokens"]) - 5)
            if best is None or cost < best[0]:
                best = (cost, place)
    return None if best is None else best[1]


def _total(step: Json) -> float:
    return float(sum(step["seconds"][phase] for phase in PHASES))
