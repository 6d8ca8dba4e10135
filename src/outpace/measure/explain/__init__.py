"""Turn a trace into one web page that works offline and explains how the text came about.

`read.py` says what a trace must be, `passages.py` where drafts did well, `overview.py` the numbers and the words;
`page.py` puts them with `assets/` into one file. Python computes, the page's script only draws.
"""

from outpace.measure.explain.page import explain
from outpace.measure.explain.read import read_trace

__all__ = ["explain", "read_trace"]
