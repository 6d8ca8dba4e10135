"""Other engines on the same prompts, in turn with ours: `python -m benchmarks.peers --help`.

`engines.py` starts each engine in a process of its own (`worker.py`, run by that engine's Python) and alternates them
with Outpace; `tables.py` turns what they took into rows and a report.
"""
