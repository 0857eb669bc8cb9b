"""Write contact sheets as one self-contained HTML file: images and audio are embedded, all text is escaped."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from bmlpipe.pipeline.inspection.captions import printable, sample_title, source_line
from bmlpipe.pipeline.inspection.contact_sheet import sound_png
from bmlpipe.pipeline.inspection.samples import InspectedSample
from bmlpipe.pipeline.inspection.tiles import Tile, tile_rows
from bmlpipe.pipeline.store.reasons import FLAGS
from bmlpipe.shards.kinds import KINDS

_MAX_INSTANTS = 60  # per row

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
<details><summary>metadata stored with the features</summary><pre>{{ s.json }}</pre></details>
</article>
{% endfor %}
</main>
</body>
</html>
"""


def write_html_page(samples: Iterable[InspectedSample], out: Path, title: str) -> int:
    """Write samples one below the other.

    Frames are embedded as the stored JPEGs; a stored waveform can be played.

    Args:
        samples: The samples.
        out: HTML file to write; an existing one is replaced.
        title: Title of the page.

    Returns:
        Number of samples. If it is 0, no file is written.
    """
    articles = [_template_values(sample) for sample in samples]
    if articles:
        page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
        out.write_text(page.render(title=printable(title), samples=articles), encoding="utf-8")
    return len(articles)


def _template_values(sample: InspectedSample) -> Mapping[str, Any]:
    meta, sound = sample.meta, sound_png(sample)
    audio = sample.members.get(KINDS["waveform"].member)
    return {
        "name": sample_title(meta),
        "details": source_line(sample),
        "flags": [(flag, FLAGS.get(flag, "")) for flag in meta.get("flags", ())],
        "rows": [
            {"title": row.title, "tiles": [(_image_source(tile), tile.caption) for tile in row.tiles]}
            for row in tile_rows(sample, _MAX_INSTANTS)
        ],
        "sound": sound and _data_url("image/png", sound),
        "audio": audio and _data_url("audio/flac", bytes(audio)),
        "json": printable(json.dumps(meta, indent=1, ensure_ascii=False)),
    }


def _image_source(tile: Tile) -> str:
    if tile.jpeg is not None:
        return _data_url("image/jpeg", tile.jpeg)
    file = io.BytesIO()
    Image.fromarray(tile.pixels).save(file, "PNG")
    return _data_url("image/png", file.getvalue())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
