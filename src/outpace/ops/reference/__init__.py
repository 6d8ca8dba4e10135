"""The reference ops: NumPy, written to be read; the specification that the other implementations must meet."""

from outpace.ops.reference.network import ReferenceOps

__all__ = ["ReferenceOps"]
