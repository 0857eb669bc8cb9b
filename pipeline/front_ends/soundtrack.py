"""One pass over the sound of a clip, in which all front ends that read sound make their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from bmlpipe.pipeline.front_ends.features import ClipFeatures
from bmlpipe.pipeline.front_ends.front_end import SoundOptions
from bmlpipe.pipeline.front_ends.quality import measure_sound
from bmlpipe.pipeline.front_ends.spectrogram import fit
from bmlpipe.pipeline.media.audio import AudioDecoder
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.video import ClipSpan

#: Sound that is shorter than requested by at most this much, in seconds, gets no flag.
TOLERANCE = Fraction(1, 20)

#: Decodes sound at each of these sampling rates, in Hz.
DecodeSound = Callable[[AudioDecoder, Sequence[int]], dict[int, npt.NDArray[np.float32]]]


def make_sound_features(
    decoder: AudioDecoder, span: ClipSpan, options: Sequence[SoundOptions], decode: DecodeSound = AudioDecoder.read
) -> ClipFeatures:
    """Decode a clip's sound once and make all features of sound.

    Args:
        decoder: The clip's sound, of which nothing has been read yet.
        span: The clip's span, with the length that shorter sound is tiled to.
        options: The front ends, in the order of the table of kinds.
        decode: Decodes the sound.

    Returns:
        The features, their flags, and `sound` (measured quality) in `media`.

    Raises:
        ClipError: The sound cannot be used.
        DamageError: After a seek, the sound begins after the clip's start.
    """
    if span.seconds is None:
        raise ValueError("sound needs a fixed length")
    rates = [option.rate for option in options]
    decoded = decode(decoder, rates)
    samples, rate = decoded[rates[0]], rates[0]
    lost, count = decoder.lost_packets, decoder.decoded_count
    if lost > count:
        raise ClipError("damaged_audio", f"{lost} of {lost + count} packets of sound cannot be decoded")
    if not samples.size:
        raise ClipError(
            "missing_audio", f"the audio stream holds no sound at {float(span.start):g} s, where the clip begins"
        )
    decoder.check_complete(Fraction(samples.size, rate))
    flags = set()
    if lost:
        flags.add("damaged_audio")
    if decoder.has_gaps:
        flags.add("audio_gap")
    if samples.size < rate * (span.seconds - TOLERANCE):
        flags.add("short_audio")
    fitted = {rate: fit(samples, span.seconds * rate) for rate, samples in decoded.items()}
    features = {option.kind: option.make(fitted[option.rate]) for option in options}
    return ClipFeatures(features, tuple(flags), {"sound": measure_sound(samples)})
