"""The command line: one module per command."""

from bmlpipe.pipeline.cli.commands import main

__all__ = ["main"]
