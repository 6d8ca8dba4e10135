"""The explain page in a real browser: what it shows, and how hand, keyboard and screen reader get at it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace import cli
from outpace.measure.explain import explain
from tests.browser import Browser, find_or_install
from tests.folder import make_folder
from tests.traces import Story, small_story

SIZES = {"narrow": 390, "wide": 1280}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    try:
        program = find_or_install()
    except RuntimeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    chromium = Browser(program, tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A trace of a tiny model, with everything that a trace may hold, and its page."""
    folder = tmp_path_factory.mktemp("real")
    lm = outpace.load(make_folder(folder / "model"), ops="reference")
    lm.generate("the cat sat on the mat and the dog sat on the mat", max_new_tokens=4)  # leaves its blocks behind
    result = lm.generate(
        "the cat sat on the mat and the dog sat on the mat and 日本語 👩‍🚀",
        strategy="combined", max_new_tokens=90, ignore_eos=True, trace=True, logprobs=3,
    )  # fmt: skip
    assert result.trace is not None
    trace = json.loads(json.dumps(result.trace.as_dict()))
    (folder / "page.html").write_text(explain(trace), encoding="utf-8")
    return trace, folder / "page.html"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "small.html").write_text(explain(small_story().as_dict(logprobs=True)), encoding="utf-8")
    return tmp_path / "small.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_real_trace_fits_the_window_asks_for_nothing_and_logs_no_error(
    browser: Browser, real: tuple[dict[str, Any], Path], size: str, scheme: str
) -> None:
    trace, page = real
    browser.open(page, SIZES[size], scheme=scheme, touch=size == "narrow")
    assert browser.run("document.querySelector('#text').textContent") == "".join(trace["pieces"])
    assert browser.run("document.querySelectorAll('#text .t').length") == len(trace["tokens"])
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.complaints() == []


def test_light_and_dark_follow_the_system_until_the_button_says_otherwise(browser: Browser, small: Path) -> None:
    def brightness() -> int:
        colour = browser.run("getComputedStyle(document.body).backgroundColor")
        return int(colour.removeprefix("rgb(").split(",")[0])

    for scheme, is_dark in (("light", False), ("dark", True)):
        browser.open(small, scheme=scheme)
        assert (brightness() < 128) is is_dark
    browser.click("#theme")
    assert browser.run("document.querySelector('#theme').textContent") == "Theme: light"
    assert brightness() > 128
    browser.click("#theme")
    assert brightness() < 128
    browser.click("#theme")
    assert browser.run("document.querySelector('#theme').textContent") == "Theme: system"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser: Browser, small: Path, scheme: str) -> None:
    browser.open(small, scheme=scheme)
    contrast = """(() => {
      const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
      const mix = (colours) => {
        canvas.fillStyle = "white"; canvas.fillRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      };
      const weak = [];
      for (const element of document.querySelectorAll("main *, header *")) {
        const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !element.checkVisibility() || element.matches(".unseen, :disabled")) continue;
        const behind = [];
        for (let e = element; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
        const back = mix(behind), front = mix([...behind, getComputedStyle(element).color]);
        const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
        if (ratio < 4.5) weak.push([element.outerHTML.slice(0, 90), ratio]);
      }
      return weak;
    })()"""
    assert browser.run(contrast) == []


def test_pointing_at_a_token_shows_its_step_and_a_click_holds_it(browser: Browser, small: Path) -> None:
    browser.open(small)
    browser.point("#text .t:nth-of-type(1)")
    assert browser.run("document.querySelector('#step h3').textContent") == "Step 1 of 3"
    assert "Nobody guessed" in browser.run("document.querySelector('#step .sentence').textContent")
    browser.point("#text .t:nth-of-type(3)")
    assert browser.run("document.querySelector('#step h3').textContent") == "Step 2 of 3"
    browser.click("#text .t:nth-of-type(3)")
    browser.point("#text .t:nth-of-type(1)")
    assert browser.run("document.querySelector('#step h3').textContent") == "Step 2 of 3"
    browser.click("#step .pin")
    browser.point("#text .t:nth-of-type(5)")
    assert browser.run("document.querySelector('#step h3').textContent") == "Step 3 of 3"


def test_a_click_holds_another_token_too(browser: Browser, small: Path) -> None:
    browser.open(small)
    browser.click("#text .t:nth-of-type(3)")
    browser.click("#text .t:nth-of-type(5)")
    browser.point("#text .t:nth-of-type(1)")
    assert browser.run("document.querySelector('#step h3').textContent") == "Step 3 of 3"


def test_a_tap_shows_the_step_in_sight(browser: Browser, small: Path) -> None:
    browser.open(small, 390, touch=True)
    browser.tap("#text .t:nth-of-type(3)")
    browser.wait(lambda: browser.run("document.querySelector('#step h3').textContent") == "Step 2 of 3")
    top, bottom = browser.run("(r => [r.top, r.bottom])(document.querySelector('#step h3').getBoundingClientRect())")
    assert 0 <= top < bottom <= 900


def test_the_tree_tells_what_became_of_every_guess(browser: Browser, small: Path) -> None:
    browser.open(small)
    browser.click("#text .t:nth-of-type(3)")
    chips = browser.run(
        "[...document.querySelectorAll('#step .tree .chip')].map(c => [c.querySelector('.token').textContent.trim(),"
        "c.classList[1], c.querySelector('.unseen').textContent])"
    )
    fates = {word: fate for word, fate, _ in chips}
    assert fates == {
        "cat": "accepted",
        "sat": "accepted",
        "mat": "target",
        "on": "rejected",
        "it": "behind",
        "dog": "rejected",
    }
    assert all(spoken.strip(" ()") for *_, spoken in chips)
    step = browser.run("document.querySelector('#step').textContent")
    assert "drafting pays" in step
    assert "2.5" in step  # tokens that the router expected
    assert "14.0 ms" in step  # the forward pass
    assert "Guessed by ngram (80 % sure), and right." in step


def test_the_whole_page_can_be_used_from_the_keyboard(browser: Browser, small: Path) -> None:
    browser.open(small)

    def focus() -> str:
        return str(browser.run("document.activeElement.className + '#' + document.activeElement.id"))

    visited = []
    for _ in range(12):
        browser.press("Tab")
        visited.append(focus())
    assert visited[0].startswith("skip")
    assert sum("current" in place for place in visited) == 1  # one stop in the text, however long it is
    assert browser.run("[...document.querySelectorAll('button, input, summary, a')].every(e => e.tabIndex === 0)")

    browser.run("document.querySelector('.t.current').focus()")
    browser.press("Home")
    for key, token, step in (
        ("ArrowRight", 1, 2), ("ArrowRight", 2, 2), ("ArrowDown", 4, 3), ("ArrowUp", 1, 2), ("ArrowLeft", 0, 1),
        ("End", 4, 3), ("ArrowRight", 4, 3), ("Home", 0, 1),
    ):  # fmt: skip
        browser.press(key)
        assert browser.run("[...document.querySelectorAll('#text .t')].indexOf(document.activeElement)") == token
        assert browser.run("document.querySelector('#step h3').textContent") == f"Step {step} of 3"
    assert browser.run("document.querySelector('#announce').textContent").startswith("Step 1. ")
    browser.press("Enter")
    assert browser.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    browser.press("Escape")
    assert browser.run("document.activeElement.getAttribute('aria-pressed')") == "false"
    browser.run("document.querySelector('#blocks input').focus()")
    browser.press("End")
    assert browser.run("document.querySelector('#step h3').textContent") == "Step 3 of 3"


def test_a_screen_reader_finds_names_roles_and_one_outline(browser: Browser, real: tuple[dict[str, Any], Path]) -> None:
    browser.open(real[1])
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    seen = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")]
    for role in ("button", "slider", "complementary", "table", "image", "link"):
        assert any(found == role for found, _ in seen), role
    assert [
        pair
        for pair in seen
        if pair[0] in ("button", "slider", "link", "table", "image", "complementary") and not pair[1]
    ] == []
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => +h.tagName[1])")
    assert levels.count(1) == 1
    assert all(deeper - above <= 1 for above, deeper in pairwise(levels))
    assert sum(role == "button" and "by " in name and "step" in name for role, name in seen) == 1  # not one a token


def test_the_kv_blocks_fill_are_shared_and_given_back(browser: Browser, tmp_path: Path) -> None:
    story = Story([f" p{i}" for i in range(9)], cached=8)
    story.step("a").step("d", [("b", -1, "ngram", 0.9), ("c", 0, "ngram", 0.9), ("x", 1, "ngram", 0.9)], path=(0, 1))
    story.step("e").step("f")
    story.steps[-1].blocks = story.steps[-1].ref_counts = ()  # as when a text ends
    (tmp_path / "blocks.html").write_text(explain(story.as_dict()), encoding="utf-8")
    browser.open(tmp_path / "blocks.html")

    def state(step: int) -> list[str]:
        browser.run(
            f"(() => {{ const r = document.querySelector('#blocks input'); r.value = {step};"
            "r.scrollIntoView({behavior: 'instant'}); r.dispatchEvent(new Event('input')); })()"
        )
        browser.wait(lambda: f"Step {step} " in browser.run("document.querySelector('.blocks-reading').textContent"))
        blocks: list[str] = browser.run("[...document.querySelectorAll('.block small')].map(b => b.textContent)")
        return blocks

    assert state(1) == ["in 2 texts", "full", "1/4"]
    assert state(2) == ["in 2 texts", "full", "full", "given back"]
    assert browser.run("document.querySelectorAll('.blocks [data-slot=cached]').length") == 2
    assert "1 forgotten" in browser.run("document.querySelector('.blocks-reading').textContent")
    assert state(4)[:3] == ["findable"] * 3


def test_text_that_looks_like_html_stays_text(browser: Browser, tmp_path: Path) -> None:
    nasty = ["</script><script>window.hacked = 1</script>", "<img src=x onerror='window.hacked = 1'>", "<!--"]
    story = Story(nasty)
    for word in nasty:
        story.step(word, [(f"{word} ", -1, word, 0.5)])
    (tmp_path / "nasty.html").write_text(explain(story.as_dict(logprobs=True, model=nasty[1])), encoding="utf-8")
    browser.open(tmp_path / "nasty.html")
    assert browser.run("document.querySelector('#text').textContent") == "".join(nasty)
    assert browser.run("typeof window.hacked") == "undefined"
    assert browser.run("document.images.length") == 0
    assert browser.complaints() == []


def test_a_text_of_two_thousand_tokens_is_drawn_and_walked_through(browser: Browser, tmp_path: Path) -> None:
    story = Story(block_size=16).step("Go")
    for i in range(500):
        nodes = [(f" {w}{i % 50}", n - 1, "ngram" if i % 3 else "suffix+ngram", 0.9) for n, w in enumerate("abcdefgh")]
        story.step(f" z{i % 7}", nodes, path=(0, 1, 2))
    (tmp_path / "long.html").write_text(explain(story.as_dict()), encoding="utf-8")
    browser.open(tmp_path / "long.html")
    assert browser.run("document.querySelectorAll('#text .t').length") == 2001
    assert browser.run("document.querySelectorAll('.chip').length") < 50  # trees are drawn when they are looked at
    assert browser.run("document.querySelectorAll('#all-steps tr').length") == 0
    browser.run("document.querySelector('.t.current').focus()")
    browser.press("End")
    assert browser.run("document.querySelector('#step h3').textContent") == "Step 501 of 501"
    browser.run("document.querySelector('#all-steps').open = true")
    browser.wait(lambda: browser.run("document.querySelectorAll('#all-steps tbody tr').length") == 501)


def test_a_text_without_a_token_and_a_plain_one_have_pages(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "empty.html").write_text(explain(Story().as_dict(finish_reason="cancelled")), encoding="utf-8")
    browser.open(tmp_path / "empty.html")
    assert "No token was written." in browser.run("document.body.innerText")
    assert browser.complaints() == []
    (tmp_path / "plain.html").write_text(explain(Story().step("a").step("b").as_dict()), encoding="utf-8")
    browser.open(tmp_path / "plain.html")
    assert "this is plain decoding" in browser.run("document.body.innerText")
    assert "Nobody guessed in this text." in browser.run("document.body.innerText")
    assert browser.complaints() == []


def test_generate_and_explain_write_the_page(
    browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(make_folder(tmp_path / "model"))
    prompt = "the cat sat on the cat sat on"
    trace, direct = tmp_path / "t.json", tmp_path / "direct.html"
    arguments = ["generate", prompt, "-m", folder, "--ops", "reference", "-n", "30", "-s", "ngram", "--raw"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*arguments, "--trace", str(trace), "--explain", str(direct)])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        cli.main(["explain", str(trace)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "t.html")
    assert (tmp_path / "t.html").read_text() == direct.read_text()
    browser.open(direct)
    written = "".join(json.loads(trace.read_text())["pieces"])
    assert browser.run("document.querySelector('#text').textContent") == written
    assert browser.run("document.querySelectorAll('.odds li').length") >= 3
