"""The sound of a clip → its spectrogram and its waveform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.front_ends.features import Spectrogram, Waveform
from bmlpipe.pipeline.front_ends.quality import measure_sound
from bmlpipe.pipeline.front_ends.spectrogram import RATE, Floats, SpectrogramOptions, fit, log_spectrogram
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions, encode_waveform
from bmlpipe.pipeline.media.audio import AudioDecoder
from bmlpipe.pipeline.media.container import Demuxer
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.video import Window

#: Sound that is missing at the end up to this many seconds is not worth a flag.
TOLERANCE = Fraction(1, 20)


def auditory_features(
    stream: Any,
    demuxer: Demuxer,
    begin: Fraction,
    window: Window,
    spectrogram: SpectrogramOptions | None,
    waveform: WaveformOptions | None,
    flags: set[str],
    media: dict[str, Any],
    read: Callable[[AudioDecoder, Sequence[int]], dict[int, Floats]] = AudioDecoder.read,
) -> tuple[Spectrogram | None, Waveform | None]:
    """Decode a clip's sound once and make the features asked for.

    Args:
        stream: The audio stream.
        demuxer: Where its packets come from.
        begin: What the clip's start counts from, in seconds of the stream's clock.
        window: The clip; its length is given.
        spectrogram: Which spectrogram; None: not wanted.
        waveform: How to store the waveform; None: not wanted.
        flags: Flags (docs/reasons.md) are added here.
        media: What is measured of the sound (`quality`) is added here.
        read: Decodes the sound at some rates.

    Raises:
        ClipError: The sound cannot be used.
        DamageError: The sound was sought for and begins after the clip's start.
    """
    if window.seconds is None:
        raise OptionError("sound needs a fixed length: give --seconds, for example 10")
    length = window.seconds if window.length is None else min(Fraction(window.seconds), window.length)
    rates = ([spectrogram.rate] if spectrogram else []) + ([RATE] if waveform else [])
    sound = AudioDecoder(stream, demuxer, begin + window.start, Fraction(length))
    found = read(sound, rates)
    samples, rate = found[rates[0]], rates[0]
    if sound.lost_packets > sound.decoded_count:
        raise ClipError(
            "damaged_audio",
            f"{sound.lost_packets} of {sound.lost_packets + sound.decoded_count} packets of sound cannot be decoded",
        )
    if not samples.size:
        raise ClipError(
            "missing_audio", f"the audio stream holds no sound at {float(window.start):g} s, where the clip begins"
        )
    sound.check_complete(Fraction(samples.size, rate))
    if sound.lost_packets:
        flags.add("damaged_audio")
    if sound.has_gaps:
        flags.add("audio_gap")
    if samples.size < rate * (window.seconds - TOLERANCE):
        flags.add("short_audio")
    media["sound"] = measure_sound(samples)
    fitted = {rate: fit(samples, window.seconds * rate) for rate, samples in found.items()}
    return (
        Spectrogram(log_spectrogram(fitted[spectrogram.rate], spectrogram.preset).astype("float16"))
        if spectrogram
        else None,
        Waveform(encode_waveform(fitted[RATE])) if waveform else None,
    )
