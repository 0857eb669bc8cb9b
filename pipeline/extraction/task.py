"""One clip to be extracted: its row of the manifest, and the files it lies in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bmlpipe.manifests.locate import Source
from bmlpipe.manifests.schema import Clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.store.ledger import LedgerRow


@dataclass(frozen=True, slots=True)
class ClipTask:
    """One clip to be extracted.

    Attributes:
        clip: The clip's row of the manifest.
        source: The files that the clip lies in.
    """

    clip: Clip
    source: Source

    @property
    def files(self) -> tuple[Path, ...]:
        """The video file and, if there is one, the separate sound file."""
        return (self.source.video,) if self.source.audio is None else (self.source.video, self.source.audio)

    def ledger_row(self, request: ExtractionRequest, videos: Path, **values: str) -> LedgerRow:
        """Make the clip's ledger row: `ok`, unless `values` say otherwise.

        Args:
            request: The request of the extraction.
            videos: Folder that the name of the source file is relative to.
            values: Column → value, of further columns.
        """
        name = os.path.relpath(self.source.video, videos)
        common = {"status": "ok", "source": name, "parameters": request.sha256}
        return LedgerRow(self.clip.id, self.clip.split, **{**common, **values})

    def stamp(self, request: ExtractionRequest) -> str:
        """Make the quick check for changes: an equal stamp means that nothing that the clip is made from has changed.

        The stamp holds size and modification time of each file, the start and duration of the clip if they are not
        those of the file, and the stamps of the front ends' companion files.

        Raises:
            OSError: A file is missing or cannot be examined.
        """
        parts = [f"{status.st_size}:{status.st_mtime_ns}" for status in map(os.stat, self.files)]
        start, duration = self.clip.start, self.clip.duration
        if start != 0 or duration is not None:
            parts.append(f"{start!r}+{duration!r}")
        parts += filter(None, (options.companion_stamp(self.source.video) for options in request.front_ends))
        return " ".join(parts)
