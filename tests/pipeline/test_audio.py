"""Decoding of audio: channel mixing, sample rates, and the time of audio after gaps, broken packets and changes."""

from fractions import Fraction

import av
import numpy as np
import pytest

from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.media.audio import AudioDecoder
from bmlpipe.pipeline.media.container import Demuxer, open_media, start_time
from bmlpipe.pipeline.media.ffmpeg_decoder import read_audio_with_ffmpeg
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg

RATE = 16000
DECODERS = [pytest.param(None, id="pyav"), pytest.param(FFmpeg(), id="ffmpeg")]


def samples(path, decoder=None, length=10):
    with open_media(path) as container:
        stream = container.streams.best("audio")
        sound = AudioDecoder(stream, Demuxer(container, [stream]), start_time(stream), Fraction(length))
        found = sound.read([RATE]) if decoder is None else read_audio_with_ffmpeg(decoder, path, sound, [RATE])
        return found[RATE], sound


def write(path, codec, layout, blocks, rate=48000):
    """Write an audio file of blocks; a block is its start in seconds and its samples, shape (channels, n)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        for start, block in blocks:
            for at in range(0, block.shape[1], 1024):
                piece = np.ascontiguousarray(block[:, at : at + 1024].astype(np.float32))
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = round(start * rate) + at
                for resampled in av.AudioResampler(stream.format, layout, rate).resample(frame):
                    resampled.pts = frame.pts
                    container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))
    return path


def tone(frequency, seconds, rate=48000, start=0.0):
    return 0.5 * np.sin(2 * np.pi * frequency * (start + np.arange(round(seconds * rate)) / rate))


def strength(sound, frequency):
    """Return the amplitude of a tone, without the ends of the sound."""
    middle = sound[1000:-1000] * np.hanning(sound.size - 2000)
    spectrum = np.abs(np.fft.rfft(middle, RATE * 4)) * 4 / middle.size
    return spectrum[round(frequency * 4)]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("layout", ["mono", "stereo", "2.1", "quad", "5.1", "5.1(side)", "6.1"])
def test_channels_are_mixed_as_ffmpeg_mixes_them(tmp_path, layout, decoder):
    """Each channel has its own tone. The weights are those of ffmpeg's `-ac 1`, scaled to keep full scale."""
    import ffmpeg
    import imageio_ffmpeg

    count = av.AudioLayout(layout).nb_channels
    tones = [500 + 300 * number for number in range(count)]
    path = write(tmp_path / "clip.wav", "pcm_f32le", layout, [(0, np.stack([tone(each, 2) for each in tones]))])
    command = ffmpeg.input(str(path)).output("pipe:", format="f32le", ac=1, ar=RATE)
    out, _ = command.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), capture_stdout=True, capture_stderr=True)
    reference = np.frombuffer(out, np.float32)
    ours, _ = samples(path, decoder)
    weights = np.array([strength(ours, each) for each in tones])
    theirs = np.array([strength(reference, each) for each in tones])
    assert np.allclose(weights / weights.max(), theirs / theirs.max(), atol=0.01)
    assert abs(weights.sum() - 0.5) < 0.02  # channels of amplitude 0.5 each mix to 0.5


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "pcm_s16le"), ("mp4", "aac"), ("ts", "mp2")])
def test_a_gap_becomes_silence_and_audio_after_it_keeps_its_time(tmp_path, suffix, codec, decoder):
    blocks = [(0, tone(1000, 1)[None]), (1.5, tone(2000, 1)[None])]
    path = write(tmp_path / f"clip.{suffix}", codec, "mono", blocks)
    sound, state = samples(path, decoder, 3)
    assert state.has_gaps
    assert abs(sound.size - 2.5 * RATE) < 0.05 * RATE
    assert strength(sound[: RATE - 400], 1000) > 0.4
    assert np.abs(sound[RATE + 800 : RATE + 7200]).max() < 0.02
    assert strength(sound[int(1.55 * RATE) : int(2.45 * RATE)], 2000) > 0.4
    features = extract_clip(path, ExtractionRequest((SpectrogramOptions(),), 2, ffmpeg=decoder))
    assert features.flags == ("audio_gap",)


def test_a_timestamp_that_jumps_back_overwrites_no_samples(tmp_path):
    path = write(tmp_path / "clip.wav", "pcm_s16le", "mono", [(0, tone(1000, 1.5)[None])])

    def frames():
        for start, frequency in ((0, 1000), (1.0, 2000)):
            frame = av.AudioFrame.from_ndarray(
                tone(frequency, 1.5)[None].astype(np.float32), format="flt", layout="mono"
            )
            frame.sample_rate, frame.time_base, frame.pts = 48000, Fraction(1, 48000), round(start * 48000)
            yield frame

    with open_media(path) as container:
        stream = container.streams.best("audio")
        sound = AudioDecoder(stream, Demuxer(container, [stream]), Fraction(0), Fraction(3)).read([RATE], frames())[
            RATE
        ]
    assert strength(sound[: int(1.45 * RATE)], 1000) > 0.4
    assert strength(sound[: int(1.45 * RATE)], 2000) < 0.02
    assert strength(sound[int(1.55 * RATE) : int(2.4 * RATE)], 2000) > 0.4


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("suffix", "codec", "broken"),
    [("mp4", "aac", 1), ("mp4", "aac", 2), ("mkv", "aac", 5), ("mp4", "ac3", 1), ("mkv", "flac", 4), ("mkv", "mp2", 3)],
)
def test_audio_after_broken_packets_keeps_its_time(make_clip, tmp_path, suffix, codec, broken, decoder):
    """A single broken packet is shorter than what counts as a gap."""
    clip = make_clip(tmp_path / f"clip.{suffix}", codec=None, audio_codec=codec, audio_rate=48000, seconds=3, tone=97)
    whole, _ = samples(clip, decoder, 3)
    with open_media(clip) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
    data = bytearray(clip.read_bytes())
    number = len(packets) // 2
    first, last = packets[number], packets[number + broken]
    at = data.index(bytes(first))  # Matroska strips headers, which the packet's position includes
    for packet in packets[number : number + broken]:
        at = data.index(bytes(packet), at)
        data[at : at + packet.size] = b"\xff" * packet.size
    clip.write_bytes(bytes(data))
    begin, end = (round(float(packet.pts * packet.time_base) * RATE) for packet in (first, last))
    sound, state = samples(clip, decoder, 3)
    assert state.lost_packets >= 1
    assert abs(sound.size - whole.size) < 100
    size = min(sound.size, whole.size)
    error = np.abs(sound[:size] - whole[:size])
    assert error[: begin - 2500].max() < 0.01
    assert error[end + 2500 : -1500].max() < 0.16  # half a millisecond at 97 Hz
    assert error.max() > 0.2
    features = extract_clip(clip, ExtractionRequest((SpectrogramOptions(),), 3, ffmpeg=decoder))
    assert "damaged_audio" in features.flags


def test_audio_that_changes_its_format_is_resampled_throughout(make_clip, tmp_path):
    parts = [
        make_clip(tmp_path / f"{rate}.ts", codec=None, audio_codec="mp2", audio_rate=rate, channels=channels, seconds=1)
        for rate, channels in ((48000, 2), (32000, 1))
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    sound, _ = samples(joined, length=3)
    assert strength(sound[: int(0.95 * RATE)], 1000) > 0.4
    assert sound.size > 0.95 * RATE


@pytest.mark.parametrize("rate", [7350, 11025, 12000, 24000, 32000, 64000, 88200, 96000, 192000])
def test_unusual_sample_rates(tmp_path, rate):
    path = write(tmp_path / "clip.wav", "pcm_s16le", "mono", [(0, tone(1000, 2, rate)[None])], rate)
    sound, _ = samples(path)
    assert abs(sound.size - 2 * RATE) <= 2
    assert 0.47 < strength(sound, 1000) < 0.53
