"""SentencePiece vocabularies with scores as byte-pair merges.

Every pair of pieces that makes a piece is a merge. Finding them takes time linear in the vocabulary's text, but for
sorting; together the merges may take MERGED times its length, several times what real vocabularies need (2 to 3), and
a vocabulary that needs more is refused.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence

from outpace.errors import TokenizerError

MERGED = 16  # characters of all merges, for each character of the vocabulary
FREE = 1 << 20  # and this many in any case


def merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that make a piece, the best score first, among equals as the pieces stand in `scores`.

    That is SentencePiece's own order, as BPE merges.
    """
    pieces = list(scores)
    heads, tails = prefix_links(pieces), prefix_links([piece[::-1] for piece in pieces])
    left = FREE + MERGED * sum(map(len, pieces))
    found: list[tuple[str, str]] = []
    for i in sorted(range(len(pieces)), key=lambda i: -scores[pieces[i]]):  # stable
        length = len(pieces[i])
        tail_of = {length - len(pieces[tail]): pieces[tail] for tail in _chain(tails, i)}
        pairs = [(head, tail_of[len(head)]) for k in _chain(heads, i) if len(head := pieces[k]) in tail_of]
        found += reversed(pairs)  # the shortest head first
        left -= length * len(pairs)
        if left < 0:
            raise TokenizerError(
                f"tokenizer.ggml.tokens makes {len(found)} merges and more, with over {MERGED} times the characters of "
                "all tokens: not a SentencePiece vocabulary"
            )
    return found


def prefix_links(texts: Sequence[str]) -> array[int]:
    """Return for each of the distinct texts the index of the longest other one that it begins with, or -1.

    In sorted order, what a text begins with stands before it, and nothing between them that does not begin with it
    too: a stack is all that must be kept.
    """
    links = array("i", [-1]) * len(texts)
    stack: list[int] = []
    for i in sorted(range(len(texts)), key=texts.__getitem__):
        while stack and not texts[i].startswith(texts[stack[-1]]):
            stack.pop()
        if stack:
            links[i] = stack[-1]
        stack.append(i)
    return links


def _chain(links: Sequence[int], i: int) -> Iterator[int]:
    """Yield the links of i, the links of those, and so on: the longest prefixes first."""
    while (i := links[i]) >= 0:
        yield i
