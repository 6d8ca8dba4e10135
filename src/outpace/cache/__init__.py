"""The paged KV cache: keys and values of past tokens, in blocks that sequences share.

A forward pass writes the keys and values of every token it is given, guesses too. So a sequence's slots have three
parts (half-open intervals; a slot holds one token's keys and values; block_size is 4 in this picture):

    slot      0           4           8           12    14    16          20
              | shared prefix         | own             | pending, draft  |
              | committed: slot s has position s        | provisional     |
              0                                         length            length + n
    block     [     7     |     2     |     9     |     5     |     3     ]
    table     blocks = [7, 2, 9, 5, 3]: slot s lives in block blocks[s // 4], at offset s % 4

One step of one sequence:

    table = cache.open(tokens)          # the past that other sequences left behind: whole blocks, never the last token
    table.reserve(n)                    # slots [length, length + n) may be written
    ...                                 # a forward pass writes them: pending tokens, then the draft's nodes
    table.commit(path, tokens)          # slots length + path[i] become positions length + i; the others are forgotten
    table.close()

**Written is not yet remembered.** Nothing is shared, found by others or freed by a sliding window before it is
committed. So a rejected draft leaves no trace, and every option of the cache works with drafts. When a commit fills a
block, three things happen: its digest (a SHA-256 chain over all tokens up to its end, the model, the KV format and an
optional salt) enters the prefix index; or, if the index has a duplicate already, the table uses that one and gives its
own back (the first wins: equal tokens have equal bits, by design); and blocks below the smallest position that any
layer still needs are given back.

Blocks have reference counts: a table that forks, or opens on a known beginning, adds a reference. Whoever writes into
a block that others hold or find copies its used part first. A block that no table holds but the index finds is *idle*:
it counts as available, and the one idle for the longest is overwritten when nothing else is left.

**Groups of layers.** The slots above are numbers. What lies in them belongs to groups: "target", the model's own
layers, and one group for each drafter network (`Cache.add_group`), each with its own ops, geometry and storage. All
groups share blocks, tables, reference counts and the prefix index, so forks, shared prefixes, truncation, eviction and
preemption cover a drafter's keys and values too. Only the target decides what is committed. A further group follows:

    slot      0           4           8           12    14    16
    target    | committed                               | provisional     |
    drafter   | computed              |                 | ahead           |

`table.computed(group)` says how many leading positions hold the group's keys and values. A drafter computes from there
on, in position order, over the committed tokens and on into the reserved slots with its guesses, and says so
(`table.advance`, which `Runner.forward` calls). The next commit compares: guesses that were committed at their position
are computed, the others never were. Which blocks a group has computed is written in the prefix index, block by block.

Why that is safe when blocks are shared: a group's keys and values at a position are a function of the tokens up to
there (a drafter network may read the target's hidden states, but these are a function of the tokens as well), with
the same bits whoever computes them. So a table that lags behind may write into a full block which others hold or find:
it writes what is there already, or what nobody has claimed yet.

`group.py` is one group's storage, `prefix.py` says what a block holds, `pool.py` who holds it, `progress.py` how far a
further group has come, `table.py` where one sequence's slots are, `cache.py` is the whole. Ops own the storage: the
cache only asks them to allocate, grow and move slots. Calls are not thread-safe, but for `Cache.add_group`.
"""

from outpace.cache.cache import Cache
from outpace.cache.group import TARGET
from outpace.cache.table import BlockTable

__all__ = ["TARGET", "BlockTable", "Cache"]
