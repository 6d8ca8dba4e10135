from __future__ import annotations

import re
from itertools import pairwise

from outpace.measure.explain.passages import passages, sentence

TEXT = (
    "Some prose that nobody could have guessed, written word for word by the target.\n\n"
    "- flour is a thing that bread needs\n- water is a thing that bread needs\n\n"
    "- yeast is a thing that bread needs\n\n"
    "```python\ndef f(x):\n\n    return x\n```\n"
    "More prose at the end, again with not a single word that was seen before it.\n"
)


def pieces_of(text: str) -> list[str]:
    return re.findall(r" ?\w+|\s+|[^\w\s]", text)


def test_paragraphs_lists_and_code_are_found() -> None:
    pieces = pieces_of(TEXT)
    assert "".join(pieces) == TEXT
    found = passages(pieces, [1.0] * len(pieces))
    assert [p.kind for p in found] == ["prose", "list", "code", "prose"]
    assert [p.begins for p in found][1] == "flour is a thing that…"
    assert "".join(pieces[found[2].start : found[2].end]).strip().startswith("```python")


def test_passages_cover_the_text_without_gaps() -> None:
    pieces = pieces_of(TEXT)
    found = passages(pieces, [1.0] * len(pieces))
    assert found[0].start == 0
    assert found[-1].end == len(pieces)
    assert all(one.end == other.start for one, other in pairwise(found))


def test_the_sentence_names_the_kinds_that_drafted_well_and_badly() -> None:
    pieces = pieces_of(TEXT)
    kinds = passages(pieces, [1.0] * len(pieces))
    shares = [1.0] * len(pieces)
    shares[kinds[1].start : kinds[1].end] = [0.25] * kinds[1].tokens
    said = sentence(passages(pieces, shares))
    assert said == "The list drafted well (4.0 tokens per step), the code badly (1.0)."


def test_equal_passages_are_said_to_be_equal() -> None:
    pieces = pieces_of(TEXT)
    assert sentence(passages(pieces, [1.0] * len(pieces))).startswith("Every passage drafted about equally: badly")


def test_a_lonely_paragraph_is_cut_into_sentences() -> None:
    text = "The first sentence has quite a few words in it. Then (of course) another one comes, e.g. this. 日本 too?"
    pieces = pieces_of(text)
    shares = [0.2 if i < 10 else 1.0 for i in range(len(pieces))]
    found = passages(pieces, shares)
    assert [p.begins for p in found] == ["The first sentence has quite…", "Then (of course) another one…", "日本 too?"]
    assert "“The first sentence has quite…” drafted well" in sentence(found)


def test_a_lonely_list_is_cut_into_items() -> None:
    pieces = pieces_of(
        "1. Flour makes the bread, as everybody knows.\n  and so on\n\n2. Water does, too: as everybody knows.\n"
    )
    found = passages(pieces, [1.0] * len(pieces))
    assert [p.kind for p in found] == ["list", "list"]
    assert [p.begins for p in found] == ["1. Flour makes the bread…", "2. Water does, too: as…"]


def test_nothing_is_said_about_a_text_too_short_to_compare() -> None:
    assert sentence(passages(["Hi", "."], [1.0, 1.0])) == ""
    assert passages([], []) == []
    assert sentence([]) == ""


def test_tokens_without_text_belong_somewhere() -> None:
    found = passages(["", "", "é", " a", "\n", "\n", "", "b"], [1.0] * 8)
    assert [(p.start, p.end) for p in found] == [(0, 6), (6, 8)]
