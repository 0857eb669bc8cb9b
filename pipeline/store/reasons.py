"""The explanations of reason codes and flags.

The codes are assigned where the conditions occur (`ClipError`, `flags.add`). docs/reasons.md contains the same texts
word for word, as a test ensures, and states in addition what bmlpipe does and what the features contain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bmlpipe.manifests.common.errors import OptionError


class Reason(NamedTuple):
    """Explanation of a reason code, in Markdown.

    Attributes:
        status: Status of the clip, `failed` or `absent`; `failed, flag` if the same code is also a flag.
        cause: Cause.
        remedy: Remedy for the user.
    """

    status: str
    cause: str
    remedy: str


REASONS: Mapping[str, Reason] = {
    "not_found": Reason(
        "absent",
        "The folder of videos contains no file with the clip's name, in any accepted spelling and container.",
        "Compare the clip's id with the file names; `bmlpipe datasets` lists the accepted names. The next run "
        "finds files that have been added.",
    ),
    "unreadable_file": Reason(
        "failed",
        "The operating system cannot open or read the file (missing permission, a failing disk, a loop of links),"
        " it is a folder, named pipe, socket or device (these are never opened), or the separate audio file is "
        "missing.",
        "Correct the permission or replace the disk; then `--retry-failed=unreadable_file`.",
    ),
    "empty_file": Reason(
        "failed",
        "The file is empty.",
        "Copy or download it again; the next run takes it.",
    ),
    "not_media": Reason(
        "failed",
        "The file is in no accepted container format: it is a text file, a web page saved as a video, an image, a"
        " playlist or a script (`.m3u8`, concat, DASH).",
        "Download it again; the next run takes it.",
    ),
    "damaged_container": Reason(
        "failed, flag",
        "Failed: the container is known, but its header or index is missing or broken (for example an MP4 whose "
        "download stopped before the `moov` box). Flag: the demuxer met an error later in the file, or skipped a "
        "part that it could not read, so that packets may be missing. This is detected by the demuxer's own "
        "messages in Matroska, FLV, AVI, Ogg and ASF, by the packets' counters in MPEG-TS, and in AVI also by "
        "packets that do not lie where the index says.",
        "Copy or download it again; the next run takes it.",
    ),
    "missing_video": Reason(
        "failed",
        "Frames, flow or RGB differences are requested, but the file has no video stream (cover art does not count).",
        "Extract audio alone (`--kinds spectrogram`), or remove the clip from the annotation.",
    ),
    "missing_audio": Reason(
        "failed",
        "A spectrogram or waveform is requested, but the file has no audio stream, or no audio within the clip's span.",
        "Extract frames alone (`--kinds frames`), or remove the clip from the annotation.",
    ),
    "truncated": Reason(
        "failed",
        "Video or audio ends more than 0.5 s before the length in the file's header, and the missing part is "
        "needed. Detected in MP4, MOV, AVI, Matroska, WebM and FLV; other containers do not state a length.",
        "Copy or download it again; the next run takes it.",
    ),
    "start_past_end": Reason(
        "failed",
        "The clip begins after the end of the video.",
        "Compare the annotation's start with the length of the file: the file may already have been cut to the clip.",
    ),
    "no_frames": Reason(
        "failed",
        "No frame of the video stream can be decoded.",
        "Copy or download it again; check whether a player shows anything.",
    ),
    "damaged_video": Reason(
        "failed, flag",
        "Failed: the frame shown at an instant (or, for flow and RGB differences, one of the frames that follow "
        "it) cannot be decoded. Flag: the decoder met an error before the last frame needed; all frames were "
        "decoded, but some may contain concealed errors.",
        "Copy or download it again, and compare checksums with those of the source.",
    ),
    "late_video": Reason(
        "failed, flag",
        "The first decodable frame comes after the clip's start (the stream was cut within a group of pictures).",
        "Cut the clip again from its source, at a key frame or with re-encoding.",
    ),
    "too_few_frames": Reason(
        "failed",
        "The clip has fewer frames than one stack of flow fields or RGB differences needs (L + 1).",
        "Lower `--flow-stack` or `--rgb-diff-stack`, or remove the clip from the annotation.",
    ),
    "missing_flow_images": Reason(
        "failed",
        "`--flow-images` contains no folder for the clip, images are missing in that folder, or their number does"
        " not match the number of video frames.",
        "Compute the images of this clip (file names: pipeline/front_ends/flow_images.py); then "
        "`--retry-failed=missing_flow_images`.",
    ),
    "bad_flow_images": Reason(
        "failed",
        "A flow image is not a JPEG, is damaged, or differs in size from the clip's other flow images.",
        "Compute the images of this clip again; then `--retry-failed=bad_flow_images`.",
    ),
    "damaged_audio": Reason(
        "failed, flag",
        "Audio packets cannot be decoded.",
        "Copy or download it again; the next run takes it.",
    ),
    "decoder_error": Reason(
        "failed",
        "There is no decoder for the codec, the decoder rejects the stream as a whole, or the frames cannot be "
        "stored as JPEGs (pixel format, shape). With `--decoder ffmpeg` also: the program or its hardware cannot "
        "be used on the worker's machine, the program was killed, or neither PyAV nor ffmpeg decodes a single "
        "frame.",
        "`--decoder ffmpeg --retry-failed=decoder_error`, if necessary with an ffmpeg program of your own "
        "(`--ffmpeg`).",
    ),
    "worker_died": Reason(
        "failed",
        "The worker process died while it worked on the clip, and again when the clip was tried alone (a crash in"
        " a decoder, or killed for lack of memory).",
        "Give each worker more memory (fewer `--workers`); then `--retry-failed=worker_died`.",
    ),
    "timeout": Reason(
        "failed",
        "The clip took longer than `--clip-timeout`, and again when it was tried alone; the message states where "
        "in the code it was. Only with worker processes. An ffmpeg program ends itself after the same number of "
        "seconds of CPU time.",
        "Raise `--clip-timeout`; then `--retry-failed=timeout`.",
    ),
    "out_of_memory": Reason(
        "failed",
        "The clip needs more memory than a worker may use.",
        "Give each worker more memory (fewer `--workers`); then `--retry-failed=out_of_memory`.",
    ),
    "not_tried": Reason(
        "failed",
        "The run was stopped (interrupt, full disk, lost scheduler) before this clip was tried.",
        "Run the same command again.",
    ),
    "internal_error": Reason(
        "failed",
        "A bug in bmlpipe; the message contains the exception.",
        "Report it together with the file; then `--retry-failed=internal_error` with a later version.",
    ),
}
"""Reason code → its explanation."""

FLAGS: Mapping[str, str] = {
    "short_video": "The video ends before the last instant requested.",
    "late_video": "The first decodable frame comes after the clip's start, by at most 1 s.",
    "damaged_video": "The decoder met an error before the last frame needed.",
    "damaged_container": "The demuxer met an error, or skipped a part of the file that it could not read.",
    "mended_times": "Presentation times did not increase from frame to frame.",
    "flow_window_moved": "Fewer than L frames follow the frame of the last instant.",
    "rgb_diff_window_moved": "Fewer than L frames follow the frame of the last instant.",
    "still_video": "The frames of all instants (two or more) are practically equal: no block of pixels changes by more "
    "than 6 levels of 255.",
    "black_video": "At least half of the frames are black: no block of pixels is brighter than 10 % of the luma range.",
    "short_audio": "The audio is more than 0.05 s shorter than the length requested.",
    "silent_audio": "No sample reaches −60 dBFS (0.001 of full scale).",
    "clipped_audio": "At least 0.05 % of the samples are at full scale (0.99 and above).",
    "damaged_audio": "Some audio packets cannot be decoded.",
    "audio_gap": "The clock of the audio stream jumps by more than 0.05 s, or audio begins more than 0.1 s after the "
    "video.",
}
"""Flag → the condition that it reports, in Markdown."""


def named_flags(names: Iterable[str]) -> tuple[str, ...]:
    """Resolve names of flags, which may be abbreviated to whole words (`silent` for `silent_audio`).

    Returns:
        The flags in the order of `FLAGS`. An abbreviation stands for every flag that begins with it.

    Raises:
        OptionError: A name matches no flag.

    Examples:
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
