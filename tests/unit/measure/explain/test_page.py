from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from typing import Any

from outpace.measure.explain import explain
from tests.traces import Story, small_story

NASTY = [
    "</script>",
    "<script>alert(1)</script>",
    "<!--",
    "{{style}}",
    "&amp;",
    "\u2028",
    "\\u003c",
    "<b onclick=x>",
    "$&",
]


class Parts(HTMLParser):
    """The page as a browser cuts it: tags, and the text inside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._in: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.inside:
            self._in = tag
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = None

    def handle_data(self, data: str) -> None:
        if self._in:
            self.inside[self._in][-1] += data


def parts(page: str) -> Parts:
    found = Parts()
    found.feed(page)
    return found


def data(page: str) -> Any:
    return json.loads(parts(page).inside["script"][0])


def nasty() -> dict[str, Any]:
    story = Story(prompt=NASTY)
    for word in NASTY:
        story.step(word, [(f"{word}!", -1, "</script>", 0.5)])
    return story.as_dict(model="<img src=x onerror=alert(1)>")


def test_text_that_looks_like_html_stays_text() -> None:
    page = explain(nasty())
    found = parts(page)
    names = [tag for tag, _ in found.tags]
    assert names.count("script") == 2
    assert names.count("style") == 1
    assert not {"b", "img"} & set(names)
    assert data(page)["trace"]["pieces"] == NASTY
    assert data(page)["trace"]["model"] == "<img src=x onerror=alert(1)>"
    assert html.escape("".join(NASTY)) in page


def test_the_page_runs_its_own_script_and_style_and_nothing_else() -> None:
    page = explain(nasty())
    found = parts(page)
    (policy,) = [a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    for source in (found.inside["script"][1], found.inside["style"][0]):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_the_page_names_no_other_place() -> None:
    page = explain(small_story().as_dict())
    found = parts(page)
    assert not re.findall(r"url\(|@import|\bfetch\(|XMLHttpRequest|import\(", page)
    assert [a for _, a in found.tags if a.get("src") or a.get("href", "#")[:1] != "#"] == []  # type: ignore[index]
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_the_words_are_there_without_the_script() -> None:
    page = explain(small_story().as_dict())
    assert "This text took 3 steps for 5 tokens" in page
    assert "The cat sat mat." in page
    assert "lossless" in page


def test_typical_acceptance_is_called_lossy_unless_the_text_is_greedy() -> None:
    trace = small_story().as_dict(verification="typical", temperature=0.8)
    assert "typical acceptance" in explain(trace)
    assert "bit for bit" not in explain(trace)
    assert "bit for bit" in explain({**trace, "temperature": 0.0})


def test_rejection_sampling_is_not_promised_to_give_the_same_text() -> None:
    trace = small_story().as_dict(verification="rejection", temperature=0.8)
    assert "may differ from plain decoding" in explain(trace)
    assert "bit for bit" not in explain(trace)
    assert "bit for bit" in explain({**trace, "temperature": 0.0})  # without noise both write the same


def test_no_placeholder_is_left_and_nobody_is_none() -> None:
    page = explain(small_story().as_dict())
    assert "{{" not in page
    assert ">None<" not in page
