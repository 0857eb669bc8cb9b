"""The demo: synthetic clips, and the commands that take them to trained models."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.pipeline.demo.run import demo_commands, prepare_folder, run_command
    from bmlpipe.pipeline.demo.synthetic_clips import DemoError, write_clips

__all__ = ["DemoError", "demo_commands", "prepare_folder", "run_command", "write_clips"]

__getattr__ = lazy_exports(
    __name__,
    {
        "run": ["demo_commands", "prepare_folder", "run_command"],
        "synthetic_clips": ["DemoError", "write_clips"],
    },
)
