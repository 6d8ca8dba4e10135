"""Train drafters for a model: text that the target wrote itself, networks in PyTorch, and files that `load` takes.

A client of the API: nothing below knows of it. PyTorch comes with the extra `outpace[train]`; modules that need it
import it at their top, so callers ask `extra.require` first and import them afterwards.
"""
