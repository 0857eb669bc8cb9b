"""Versions of the packages that features depend on, recorded in each feature file as provenance."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("bmlpipe", "av", "numpy", "scipy", "opencv-contrib-python-headless", "simplejpeg", "soundfile", "librosa")


@cache
def installed_versions() -> dict[str, str]:
    """Return package name → version, with that of FFmpeg's libraries as `ffmpeg`."""
    import av

    found = {"ffmpeg": ".".join(map(str, av.library_versions["libavcodec"])) + " (libavcodec)"}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found
