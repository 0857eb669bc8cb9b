"""`python -m bmlpipe.pipeline.cli`."""

from bmlpipe.pipeline.cli import main

main()
