"""The bench: what decoding takes on this machine, beside plain decoding in the same process, text checked first.

`run.py` alternates strategies on the same prompts and yields one `Sample` per call; `summary.py` turns samples into
medians, pairs and intervals; `tables.py` and `plots.py` show them; `files.py` keeps everything, raw samples included.
`growth.py` measures what a token costs as the text grows, with the cache and without it; `peers.py` runs the same
prompts through other engines, each in a process of its own.

How a number comes about, and what a report must state: benchmarks/README.md.
"""
