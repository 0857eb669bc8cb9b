"""The versions that a feature depends on, for its provenance."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("bmlpipe", "av", "numpy", "scipy", "opencv-contrib-python-headless", "simplejpeg", "soundfile")


@cache
def software() -> dict[str, str]:
    """Package name → version, FFmpeg's libraries included."""
    import av

    found = {"ffmpeg": ".".join(map(str, av.library_versions["libavcodec"])) + " (libavcodec)"}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found
