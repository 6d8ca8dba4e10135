"""The command line: one module per command group.

Importing it must be quick, since Ctrl-C is only handled from `main` on: the commands are imported there.
"""

from outpace.cli.entry import main

__all__ = ["main"]
