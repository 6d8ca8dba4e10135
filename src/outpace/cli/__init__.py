"""The command line: one module per command group."""

from outpace.cli.app import main

__all__ = ["main"]
