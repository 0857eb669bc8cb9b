"""Why a clip fails and what flags mean: the texts behind docs/reasons.md, for people who look into a feature folder.

Codes are given where things happen (`ClipError`, `flags.add`); here each has its explanation. The tables of
docs/reasons.md hold the same texts, word for word; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from bmlpipe.manifests.common.errors import OptionError


class Reason(NamedTuple):
    """Why a clip is not usable, in Markdown."""

    status: str
    happened: str
    done: str
    remedy: str


class Flag(NamedTuple):
    """What a flag says and what the features hold, in Markdown."""

    says: str
    holds: str


REASONS = {
    "not_found": Reason(
        "absent",
        "No file of the clip's name, in any accepted spelling and container, is in the videos' folder.",
        "Nothing.",
        "Compare the clip's id with the names of the files; `bmlpipe datasets` says which names are "
        "accepted. The next run finds what has come.",
    ),
    "unreadable_file": Reason(
        "failed",
        "The operating system refuses to open or read the file (permission, a failing disk, a loop of "
        "links), it is no file but a folder, a named pipe, a socket or a device (these are never opened), "
        "or the separate sound file is not there.",
        "The clip fails.",
        "Mend the permission or the disk; then `--retry-failed=unreadable_file`.",
    ),
    "empty_file": Reason(
        "failed",
        "The file holds no bytes.",
        "The clip fails.",
        "Copy or download it again; the next run takes it.",
    ),
    "not_media": Reason(
        "failed",
        "No accepted container format is recognised: a text file, a web page saved as video, a picture, a "
        "playlist or a script (`.m3u8`, concat, DASH).",
        "The clip fails. Nothing that the file refers to is ever opened.",
        "Download it again; the next run takes it.",
    ),
    "damaged_container": Reason(
        "failed, flag",
        "The container is known but its header or index is missing or broken (an MP4 whose download "
        "stopped before the `moov` box). As a flag: reading met an error later on, or went on behind a "
        "part that it could not read, so that packets may be missing: in Matroska, FLV, AVI, Ogg and ASF "
        "by the demuxer's own words, in MPEG-TS by the packets' counters, in AVI also where a packet does "
        "not lie where the index has it.",
        "Fails if it cannot be opened. Where packets may be missing before what is needed, the clip is "
        "decoded as if damaged (`damaged_video`), and an instant that falls into a pause longer than 1.5 "
        "pictures fails.",
        "Copy or download it again; the next run takes it.",
    ),
    "missing_video": Reason(
        "failed",
        "Frames, flow or RGB differences are wanted, and the file has no video stream (cover art does not count).",
        "The clip fails, also its sound.",
        "Extract sound alone (`--modalities spectrogram`), or take the clip out of the annotation.",
    ),
    "missing_audio": Reason(
        "failed",
        "A spectrogram or waveform is wanted, and the file has no audio stream, or no sound within the clip's stretch.",
        "The clip fails, also its frames: pairs are what is trained on.",
        "Extract pictures alone (`--modalities frames`), or take the clip out of the annotation.",
    ),
    "truncated": Reason(
        "failed",
        "Picture or sound ends more than 0.5 s before the length in the file's header, and what is "
        "missing was needed. Seen in MP4, MOV, AVI, Matroska, WebM and FLV; other containers state no "
        "length.",
        "The clip fails; nothing is tiled or repeated to hide it.",
        "Copy or download it again; the next run takes it.",
    ),
    "start_past_end": Reason(
        "failed",
        "The clip begins after the end of the video.",
        "The clip fails: the annotation and the file do not belong together.",
        "Compare the annotation's start with the file's length: the file may have been cut to the clip already.",
    ),
    "no_frames": Reason(
        "failed",
        "The video stream holds no picture that can be decoded.",
        "The clip fails.",
        "Copy or download it again; see whether a player shows anything.",
    ),
    "damaged_video": Reason(
        "failed, flag",
        "Failed: the picture shown at a wanted instant (for flow and RGB differences, or one of those "
        "that follow it) cannot be decoded. Flag: the decoder met an error somewhere before the last "
        "picture needed; the pictures came out, but errors may have been concealed in some.",
        "See left. With `--decoder ffmpeg` any error up to the last picture needed fails the clip, with "
        "ffmpeg's own words: a program does not tell which pictures it has concealed errors in.",
        "Copy or download it again, and compare checksums with the source's.",
    ),
    "late_video": Reason(
        "failed, flag",
        "The first decodable picture comes after the clip's start (a stream cut within a group of pictures).",
        "Up to 1 s: instant 0 takes that first picture, flag. More: the clip fails, since several "
        "instants would show it.",
        "Cut the clip again from its source, at a key frame or with encoding.",
    ),
    "too_few_frames": Reason(
        "failed",
        "Fewer pictures than one stack of flow fields or RGB differences needs (L + 1).",
        "The clip fails.",
        "Lower `--flow-stack` or `--rgb-diff-stack`, or take the clip out of the annotation.",
    ),
    "missing_flow_images": Reason(
        "failed",
        "`--flow-images` holds no folder for the clip, images are missing in it, or their number does not "
        "fit the video's pictures.",
        "The clip fails.",
        "Make the images of this clip (names: pipeline/front_ends/flow_images.py); then "
        "`--retry-failed=missing_flow_images`.",
    ),
    "bad_flow_images": Reason(
        "failed",
        "A flow image is no JPEG, is damaged, or is of another size than the clip's others.",
        "The clip fails.",
        "Make the images of this clip again; then `--retry-failed=bad_flow_images`.",
    ),
    "damaged_audio": Reason(
        "failed, flag",
        "Packets of sound cannot be decoded.",
        "Silence in their place and a flag; fails if they are more than what could be decoded.",
        "Copy or download it again; the next run takes it.",
    ),
    "decoder_error": Reason(
        "failed",
        "There is no decoder for the codec, it refuses the stream as such, or its pictures cannot become "
        "JPEGs (pixel format, shape). With `--decoder ffmpeg` also: the program or its hardware cannot be "
        "used on the worker's machine, it was killed, or PyAV and it decode nothing.",
        "The clip fails.",
        "`--decoder ffmpeg --retry-failed=decoder_error`, if need be with an ffmpeg of your own (`--ffmpeg`).",
    ),
    "worker_died": Reason(
        "failed",
        "The process working on the clip died, and again when the clip was tried alone (a crash in a "
        "decoder, or killed for its memory).",
        "The worker is replaced, the clip fails.",
        "Give each worker more memory (fewer `--workers`); then `--retry-failed=worker_died`.",
    ),
    "timeout": Reason(
        "failed",
        "The clip took longer than `--clip-timeout`, and again when it was tried alone; the message says "
        "where in the code it was. Only with worker processes. An ffmpeg program ends itself after as "
        "many seconds of CPU time.",
        "The worker's process is ended and replaced, the clip fails.",
        "Raise `--clip-timeout`; then `--retry-failed=timeout`.",
    ),
    "out_of_memory": Reason(
        "failed",
        "The clip needs more memory than a worker may use.",
        "The clip fails.",
        "Give each worker more memory (fewer `--workers`); then `--retry-failed=out_of_memory`.",
    ),
    "not_tried": Reason(
        "failed",
        "The run was stopped (interrupt, full disk, lost scheduler) before this clip was tried.",
        "Nothing yet.",
        "Run the same command again.",
    ),
    "internal_error": Reason(
        "failed",
        "A fault of bmlpipe; the message holds the exception.",
        "The clip fails.",
        "Report it with the file; `--retry-failed=internal_error` with a later version.",
    ),
}

FLAGS = {
    "short_video": Flag(
        "The video ends before all instants asked for.",
        "Fewer frames; nothing is repeated.",
    ),
    "late_video": Flag(
        "See reasons.",
        "The first frame is the first decodable picture, at most 1 s late.",
    ),
    "damaged_video": Flag(
        "See reasons.",
        "Pictures that came out of the decoder; errors may have been concealed in some.",
    ),
    "damaged_container": Flag(
        "See reasons.",
        "What could be read; packets may be missing.",
    ),
    "mended_times": Flag(
        "Presentation times did not increase from picture to picture.",
        "Such pictures follow each other at the nominal frame rate.",
    ),
    "flow_window_moved": Flag(
        "Fewer than L pictures follow the last instant's picture.",
        "The window is moved back so that it ends at the last picture; `times` says where it begins.",
    ),
    "rgb_diff_window_moved": Flag(
        "Fewer than L pictures follow the last instant's picture.",
        "The window is moved back so that it ends at the last picture; `times` says where it begins.",
    ),
    "still_video": Flag(
        "The pictures of all instants, two or more, are practically equal: no block of pixels changes by "
        "more than 6 levels of 255.",
        "The same frame again and again; flow and RGB differences of next to nothing.",
    ),
    "black_video": Flag(
        "At least half of the pictures are black: no block of pixels is brighter than 10 % of the luma range.",
        "Black frames.",
    ),
    "short_audio": Flag(
        "The sound is more than 0.05 s shorter than the front end's length.",
        "The sound is tiled: it starts again from its beginning.",
    ),
    "silent_audio": Flag(
        "No sample reaches −60 dBFS (0.001 of full scale).",
        "A spectrogram of constant value (zeros, under `vggsound`) where every sample is zero, else of "
        "faint noise, which `vggsound` enlarges.",
    ),
    "clipped_audio": Flag(
        "At least 0.05 % of the samples lie at full scale (0.99 and above).",
        "Sound cut to ±1, with the overtones of flat tops.",
    ),
    "damaged_audio": Flag(
        "See reasons.",
        "Silence in the lost packets' place.",
    ),
    "audio_gap": Flag(
        "The sound's clock jumps by more than 0.05 s, or sound begins more than 0.1 s after the picture.",
        "Silence in the gap, so that sound and picture stay together.",
    ),
}


def named_flags(names: Iterable[str]) -> tuple[str, ...]:
    """Flags by their names, or by what these begin with.

    Raises:
        OptionError: There is no such flag.

    >>> named_flags(["silent", "short", "mended_times"])
    ('short_video', 'mended_times', 'short_audio', 'silent_audio')
    """
    found = set()
    for name in names:
        meant = {flag for flag in FLAGS if flag == name or flag.startswith(f"{name}_")}
        if not meant:
            raise OptionError(f"there is no flag {name!r}: choose among {', '.join(FLAGS)}")
        found |= meant
    return tuple(flag for flag in FLAGS if flag in found)
