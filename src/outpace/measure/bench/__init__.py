"""The bench: what decoding takes on this machine, beside plain decoding in the same process, tokens checked first.

`alternate.py` lets strategies take turns on the same prompts and yields one `Sample` per call; `rows.py` turns samples
into medians, pairs and intervals (`medians.py`), `router_comparison.py` into what `auto` gained; `tables.py` and
`plots.py` show them; `files.py` keeps everything, samples included. `growth.py` measures what a token costs as the
sequence grows, with the cache and without it. `traffic.py` knows the bytes that decoding reads, `adversarial.py`
prompts that nobody can draft for.

How a number comes about, and what a report must state: benchmarks/README.md.
"""
