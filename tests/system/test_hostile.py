"""Malicious and special files: extraction opens nothing but the file itself, and never hangs.

A named pipe and an HTTP server serve as canaries: both record whether something opens them.
"""

import os
import socket
import struct
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bmlpipe.manifests.common.locks import exclusive_folder
from bmlpipe.manifests.schema import Clip, Manifest
from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.plan import make_plan
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.run import run_extraction
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
from bmlpipe.pipeline.media.source_file import SourceFile
from bmlpipe.pipeline.store.ledger import read_ledger

DECODERS = [pytest.param(None, id="pyav"), pytest.param(FFmpeg(), id="ffmpeg")]
FRAMES = FrameOptions(short_side=64)
pytestmark = pytest.mark.timeout(60)  # a hang is a failure


class Pipe:
    """A named pipe that records whether it was opened for reading."""

    def __init__(self, path: Path) -> None:
        self.path, self.opened = path, False
        os.mkfifo(path)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY)  # returns when there is a reader
        self.opened = not self._done.is_set()
        os.close(descriptor)

    def close(self) -> bool:
        """Close the pipe; return whether it was opened before."""
        self._done.set()
        os.close(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK))
        self._thread.join()
        return self.opened


@pytest.fixture
def pipe(tmp_path):
    return Pipe(tmp_path / "canary.ts")


@pytest.fixture
def server():
    calls = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            calls.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        http.calls = calls
        http.address = f"http://127.0.0.1:{http.server_port}"
        yield http
        http.shutdown()
        thread.join()


def refused(path, decoder, reasons=("not_media",), **front_ends):
    request = ExtractionRequest(tuple(front_ends.values()) or (FRAMES,), 2, decoder)
    with pytest.raises(ClipError) as caught:
        extract_clip(path, request)
    assert caught.value.reason in reasons
    return caught.value


def run_ffmpeg_on(path, **options):
    """Run the ffmpeg decoder's command on a file that PyAV would already have refused."""
    line = FFmpeg().command(path, 0, {"c:v": "rawvideo"}, exit_on_error=False)
    for option, value in options.items():
        if option in ("protocol_whitelist", "format_whitelist"):
            at = line.index(f"-{option}")
            line[at : at + 2] = [] if value is None else [f"-{option}", value]
        else:
            line[1:1] = [f"-{option}", value]
    return subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{0}\n#EXT-X-ENDLIST\n",
    "list.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{0}\n#EXT-X-ENDLIST\n",
    "list.ts": '#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXT-X-KEY:METHOD=AES-128,URI="{0}"\n#EXTINF:3,\n{0}\n',
    "concat.mp4": "ffconcat version 1.0\nfile '{0}'\n",
    "concat.txt": "ffconcat version 1.0\nfile '{0}'\nduration 3\n",
    "show.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles="urn:mpeg:dash:'
    'profile:isoff-on-demand:2011"><Period><AdaptationSet><Representation id="1" bandwidth="1"><BaseURL>{0}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=x:{0}\n",
    "radio.asx": '<asx version="3.0"><entry><ref href="{0}"/></entry></asx>',
    "reference.mov": "RTSPtext\n{0}\n",
    "cue.cue": 'FILE "{0}" WAVE\n  TRACK 01 AUDIO\n    INDEX 01 00:00:00\n',
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_are_refused_without_opening_their_targets(tmp_path, pipe, server, name, decoder):
    for target in (str(pipe.path), f"file:{pipe.path}", pipe.path.name, f"{server.address}/x.ts"):
        path = tmp_path / name
        path.write_text(PLAYLISTS[name].format(target))
        refused(path, decoder, ("not_media", "damaged_container"))
        if decoder:
            assert run_ffmpeg_on(path).returncode
    assert not pipe.close()
    assert not server.calls


def test_the_canaries_detect_an_unrestricted_ffmpeg(tmp_path, pipe, server):
    """Without the lists of allowed protocols and formats, ffmpeg opens both from a playlist."""
    path = tmp_path / "list.m3u8"
    path.write_text(PLAYLISTS["list.m3u8"].format(f"{server.address}/x.ts"))
    free = {"protocol_whitelist": "file,http,tcp", "format_whitelist": None}
    run_ffmpeg_on(path, **free)
    assert server.calls
    path.write_text(PLAYLISTS["list.m3u8"].format(pipe.path))
    run_ffmpeg_on(path, **free)
    assert pipe.close()


def external_reference(clip, target, out):
    """Write a MOV file that refers to another file for its samples (Inside QuickTime, data references of type alis)."""
    data = clip.read_bytes()
    name = str(target).encode()
    record = struct.pack(">H", 2) + struct.pack(">H", len(name)) + name + bytes(len(name) % 2) + b"\xff\xff\0\0"
    body = (
        bytes(10)
        + b"\x04disk"
        + bytes(23)
        + bytes(12)
        + bytes([len(target.name)])
        + target.name.encode().ljust(63, b"\0")
    )
    alias = body + bytes(16) + struct.pack(">hh", 1, 1) + bytes(16) + record
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    at = data.index(b"dref") - 4
    old = int.from_bytes(data[at : at + 4], "big")
    dref = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    grown = len(dref) - old
    data = bytearray(data[:at] + dref + data[at + old :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = data.index(box) - 4
        data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + grown).to_bytes(4, "big")
    out.write_bytes(bytes(data))
    return out


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_movie_that_refers_to_another_file_does_not_open_it(make_clip, tmp_path, pipe, decoder):
    clip = make_clip(tmp_path / "clip.mov", seconds=2, audio_codec=None)
    path = external_reference(clip, pipe.path, tmp_path / "external.mov")
    refused(path, decoder, ("no_frames", "decoder_error"))
    if decoder:
        run_ffmpeg_on(path)
    assert not pipe.close()


def test_ffmpeg_follows_the_reference_if_it_is_allowed_to(make_clip, tmp_path, pipe):
    clip = make_clip(tmp_path / "clip.mov", seconds=2, audio_codec=None)
    path = external_reference(clip, pipe.path, tmp_path / "external.mov")
    run_ffmpeg_on(path, enable_drefs="1", use_absolute_path="1")
    assert pipe.close()


@pytest.mark.parametrize("decoder", DECODERS)
def test_special_files_are_refused_without_hanging(tmp_path, decoder):
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket.mp4"))
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    (tmp_path / "to_pipe.mp4").symlink_to("pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("other.mp4")
    (tmp_path / "other.mp4").symlink_to("loop.mp4")
    (tmp_path / "dangling.mp4").symlink_to("nowhere.mp4")
    for path in sorted(tmp_path.iterdir()):
        refused(path, decoder, ("unreadable_file",))
        refused(path, decoder, ("unreadable_file",), spectrogram=SpectrogramOptions())
        with pytest.raises(OSError, match=path.name):
            SourceFile.of(path)


NAMES = (
    "-i.mp4",
    "--.mp4",
    " a b .mp4",
    "a.b..c.mp4",
    "quo\"te's`$(touch x)`;&|.mp4",
    "new\nline\ttab.mp4",
    "ünïcödé 音 🎵.mp4",
    "http:colon.mp4",
    "concat:a|b.mp4",
    "%03d*?[0].mp4",
    "\\back\\slash.mp4",
    "pipe:0.mp4",
    "subfile,,start,0,end,9,,:x.mp4",
    "x" * 251 + ".mp4",
)


@pytest.mark.parametrize("decoder", DECODERS)
def test_unusual_file_names_have_no_special_meaning(make_clip, tmp_path, monkeypatch, decoder):
    plain = make_clip(tmp_path / "plain.mp4", seconds=1)
    content, expected = plain.read_bytes(), extract_clip(plain, ExtractionRequest((FRAMES,), 1))
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    for name in NAMES:
        Path(name).write_bytes(content)
        for path in (Path(name), tmp_path / "in" / name):
            assert extract_clip(path, ExtractionRequest((FRAMES,), 1, ffmpeg=decoder)) == expected
    assert sorted(path.name for path in Path().iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_folder_of_valid_and_hostile_files_is_extracted_with_a_full_ledger(make_clip, tmp_path, pipe, decoder):
    """Every clip has a row in the ledger, and every video is extracted."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    good = make_clip(tmp_path / "good.mp4", seconds=1).read_bytes()
    for name in NAMES[:8]:
        (videos / name).write_bytes(good)
    (videos / "zero.mp4").write_bytes(b"")
    (videos / "text.mp4").write_text("not a video\n" * 50)
    (videos / "list.mp4").write_text(PLAYLISTS["list.mp4"].format(pipe.path))
    (videos / "loop.mp4").symlink_to("loop.mp4")
    (videos / "fifo.mp4").symlink_to(pipe.path)
    (videos / "link.mp4").symlink_to(tmp_path / "good.mp4")
    (videos / "inside").symlink_to(videos)
    names = sorted(path.name for path in videos.iterdir())
    clips = tuple(Clip(id=name, path=name, label="a", split="train") for name in names if name != "inside")
    manifest = Manifest("folder", ("a",), clips)
    with exclusive_folder(out, "extraction"):
        plan = make_plan(manifest, videos, out, ExtractionRequest((FRAMES,), 1, ffmpeg=decoder))
        counts = run_extraction(plan, workers=0)
    rows = {row.id: row for row in read_ledger(out)}
    assert len(rows) == len(clips) == sum(counts.values())
    assert {name: rows[name].status for name in (*NAMES[:8], "link.mp4")} == dict.fromkeys(
        (*NAMES[:8], "link.mp4"), "ok"
    )
    assert (rows["zero.mp4"].reason, rows["text.mp4"].reason) == ("empty_file", "not_media")
    assert rows["list.mp4"].reason == "not_media"
    assert (rows["loop.mp4"].status, rows["fifo.mp4"].status) == ("absent", "absent")
    assert not pipe.close()
