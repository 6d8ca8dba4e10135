"""The implementations of the ops protocol that this machine can run: name -> maker, given a number of threads."""

from __future__ import annotations

from collections.abc import Callable

from outpace.ops.protocol import Ops
from outpace.ops.reference import ReferenceOps

try:
    from outpace.ops.native import NativeOps
except ImportError:  # a checkout without the compiled module still tests the reference
    NativeOps = None

MAKERS: dict[str, Callable[[int], Ops]] = {"reference": lambda threads: ReferenceOps(threads=threads)}
if NativeOps is not None:
    MAKERS["native"] = lambda threads: NativeOps(threads=threads)
