"""Contact sheets as one HTML file that needs nothing else: pictures and sound are inside, every text is escaped."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from bmlpipe.pipeline.demo.specimens import Specimen
from bmlpipe.pipeline.inspection.contact_sheet import details_of, name_of, printable, sound_png
from bmlpipe.pipeline.inspection.drawing import Tile, rows_of
from bmlpipe.pipeline.store.reasons import FLAGS
from bmlpipe.shards.kinds import WAVEFORM_MEMBER

_MOST = 60  # instants of each kind

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8886; --flag: #b3261e; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1500px; padding: 1rem; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; }
h3 { font-size: .85rem; font-weight: 600; margin: .8rem 0 .2rem; }
article { border-top: 1px solid var(--line); padding: 1rem 0; }
.about { margin: .2rem 0; opacity: .75; overflow-wrap: anywhere; }
.flags { list-style: none; margin: .4rem 0; padding: 0; }
.flags li { border-left: 4px solid var(--flag); margin: .2rem 0; padding-left: .6rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.4rem, 1fr)); gap: .3rem; align-items: start; }
.tiles figure { margin: 0; text-align: center; }
.tiles img { width: 100%; box-sizing: border-box; display: block; border: 1px solid var(--line); background: #fff; }
figcaption { font-size: .75rem; }
.sound { display: block; max-width: 100%; height: auto; background: #fff; }
audio { display: block; margin: .5rem 0; max-width: 100%; }
details { margin-top: .5rem; }
pre { overflow-x: auto; font-size: .8rem; }
nav ol { columns: 18rem; font-size: .9rem; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<nav aria-label="samples"><ol>
{% for s in samples %}<li><a href="#s{{ loop.index }}">{{ s.name }}</a>{% if s.flags %} ⚑{% endif %}</li>
{% endfor %}</ol></nav>
<main>
{% for s in samples %}
<article id="s{{ loop.index }}">
<h2>{{ s.name }}</h2>
<p class="about">{{ s.details }}</p>
{% if s.flags %}<ul class="flags" aria-label="flags">
{% for flag, says in s.flags %}<li><code>{{ flag }}</code> {{ says }}</li>
{% endfor %}</ul>{% endif %}
{% for row in s.rows %}<h3>{{ row.title }}</h3>
<div class="tiles">
{% for source, caption in row.tiles %}<figure><img src="{{ source }}" alt="{{ row.title }}, {{ caption }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}</div>
{% endfor %}
{% if s.sound %}<h3>sound</h3>
<img class="sound" src="{{ s.sound }}" alt="spectrogram over time and frequency">{% endif %}
{% if s.audio %}<audio controls preload="none" src="{{ s.audio }}"></audio>{% endif %}
<details><summary>everything that is stored beside the features</summary><pre>{{ s.json }}</pre></details>
</article>
{% endfor %}
</main>
</body>
</html>
"""


def write_page(specimens: Iterable[Specimen], out: Path, title: str) -> int:
    """Write samples one below the other.

    Frames are the stored JPEGs themselves; a stored waveform can be listened to.

    Args:
        specimens: Samples.
        out: HTML file, replaced if it is there.
        title: Of the page.

    Returns:
        How many there were; none: nothing is written.
    """
    samples = [_sample(specimen) for specimen in specimens]
    if samples:
        page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
        out.write_text(page.render(title=printable(title), samples=samples), encoding="utf-8")
    return len(samples)


def _sample(specimen: Specimen) -> Mapping[str, Any]:
    meta, sound = specimen.meta, sound_png(specimen)
    audio = specimen.members.get(WAVEFORM_MEMBER)
    return {
        "name": name_of(meta),
        "details": details_of(specimen),
        "flags": [(flag, FLAGS[flag].says if flag in FLAGS else "") for flag in meta.get("flags", ())],
        "rows": [
            {"title": row.title, "tiles": [(_source(tile), tile.caption) for tile in row.tiles]}
            for row in rows_of(specimen, _MOST)
        ],
        "sound": sound and _data("image/png", sound),
        "audio": audio and _data("audio/flac", bytes(audio)),
        "json": printable(json.dumps(meta, indent=1, ensure_ascii=False)),
    }


def _source(tile: Tile) -> str:
    if tile.jpeg is not None:
        return _data("image/jpeg", tile.jpeg)
    file = io.BytesIO()
    Image.fromarray(tile.pixels).save(file, "PNG")
    return _data("image/png", file.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
