"""Other engines on the same prompts, in turn with ours: `python -m benchmarks.peers --help`.

`engines.py` knows which there are, `process.py` runs each in a process of its own (`worker.py`, by that engine's
Python), `turns.py` alternates them with Outpace, `neighbours.py` checks that those who wait disturb nobody, `tables.py`
turns what was found into rows and a report.
"""
