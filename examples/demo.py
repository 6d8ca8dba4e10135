"""What `make demo` shows: a summary is streamed with drafts, then written again without, and the two are compared."""

from __future__ import annotations

import outpace

TEXT = """
The lighthouse at Skerry Point was built in 1871 after the steamer Aurora was lost on the reef with all hands. For a
hundred and nine years its lamp was tended by keepers who lived on the rock with their families. The keepers kept a
log of every passing ship, every storm and every repair. In 1980 the lamp was made automatic and the last keeper, Ruth
Calder, rowed ashore with the log under her coat. Today the log is read by people who study the weather, because no
other record of the storms on that coast goes back so far without a gap.
"""

PROMPT = [{"role": "user", "content": f"Summarise this text, quoting its own words where you can:\n\n{TEXT}"}]


def main() -> None:
    """Stream, compare, and say in one line what it took."""
    lm = outpace.load("smollm2-135m")
    with lm.stream(PROMPT, max_new_tokens=160) as stream:
        for chunk in stream:
            print(chunk.text, end="", flush=True)
    drafted = stream.result
    plain = lm.generate(PROMPT, strategy="none", max_new_tokens=160)
    same = "equal to" if drafted.tokens == plain.tokens else "DIFFERENT FROM"
    stats = drafted.stats
    print(
        f"\n\n{stats.tokens} tokens in {stats.steps} steps: {stats.tokens_per_step:.2f} tokens per step, "
        f"{stats.decode_tokens_per_second:.1f} tokens/s (plain: {plain.stats.decode_tokens_per_second:.1f}); "
        f"the text is {same} plain decoding's"
    )
    if drafted.tokens != plain.tokens:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
