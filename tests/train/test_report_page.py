"""The page: every section is filled from the files of the runs, all text is escaped, Chromium shows it."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from bmlpipe.pipeline.cli.report import report
from bmlpipe.train.config.parsing import parse
from bmlpipe.train.report.page import write_page
from bmlpipe.train.runs.run_reader import read_run

pytestmark = pytest.mark.slow

EVIL = [
    "<script>alert(1)</script>",
    '"quoted" & <b>bold</b>',
    "$x^2$ 日本",
    "</svg><img src=x onerror=alert(2)>",
    "plain",
]
SECTIONS = [
    "options",
    "results",
    "balance",
    "losses",
    "gradients",
    "speed",
    "accuracies",
    "probes",
    "classes",
    "missing",
]
SECTIONS.append("confusion")


def counts(classes: int, seed: int, skill: float) -> np.ndarray[Any, Any]:
    """A confusion matrix of twenty samples per class."""
    random = np.random.default_rng(seed)
    found = np.zeros((classes, classes), int)
    for true in range(classes):
        right = min(0.95, skill * random.uniform(0.4, 1.4))
        chances = np.full(classes, (1 - right) / (classes - 1))
        chances[true] = right
        found[true] = random.multinomial(20, chances)
    return found


def make_run(
    folder: Path,
    *,
    modulation: str = "none",
    seed: int = 0,
    steps: int = 300,
    names: list[str] | None = None,
    **more: Any,
) -> Path:
    """A run of three epochs; with names of classes, also everything that `bmlpipe evaluate` writes."""
    folder.mkdir(parents=True)
    config = parse({"dataset": "cremad", "shards": "s", "out": "o", "epochs": 3}, "test").resolved().as_dict()
    config |= {"seed": seed, "modulation": modulation, **more}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    random = np.random.default_rng(seed)
    rows = []
    for step in range(steps):
        row = {"step": step, "epoch": 3 * step // steps, "lr": 0.01, "samples": 32, "data_s": 0.01, "step_s": 0.1}
        row |= {"samples_per_s": 320.0, "loss": 2 / (1 + step) + 0.1 * random.random()}
        for kind in ("score", "rho", "q", "k", "dropped", "grad_norm"):
            row |= {f"{kind}/{m}": 0.2 + random.random() for m in ("audio", "visual")}
        rows.append(row)
    scores = {"accuracy": 0.5, "mAP": 0.6, "loss": 1.5, "accuracy/audio": 0.4, "accuracy/visual": 0.2}
    metrics = [{"epoch": e, "step": (e + 1) * steps // 3, "split": "val", **scores} for e in range(3)]
    metrics.append({**metrics[-1], "split": "test"})
    for name, content in (("steps.jsonl", rows), ("metrics.jsonl", metrics)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    if names:
        evaluate(folder, names, seed, 0.7 if modulation == "none" else 0.8)
    return folder


def evaluate(folder: Path, names: list[str], seed: int, skill: float) -> None:
    matrices = {
        branch: counts(len(names), seed + 10 * i, skill) for i, branch in enumerate(("joint", "audio", "visual"))
    }
    per_class = {
        branch: {
            "support": matrix.sum(axis=1).tolist(),
            "precision": [None] * len(names),
            "recall": (np.diag(matrix) / 20).tolist(),
        }
        for branch, matrix in matrices.items()
    }
    missing = [
        {
            "rates": {"audio": a, "visual": v},
            "seeds": [0, 1],
            "accuracy": [0.7 - 0.5 * a - v / 9, 0.6 - 0.5 * a - v / 9],
        }
        for a, v in ((0, 0), (0.2, 0), (0.5, 0), (0, 0.5), (0.5, 0.5), (0.2, 0.5))
    ]
    content = {"format": 1, "split": "test", "checkpoint": "best", "epoch": 2, "step": 9, "samples": 20 * len(names)}
    content |= {"classes": names, "metrics": {"accuracy": 0.5, "f1": None, "loss": 1.25, "mAP/audio": 0.25}}
    content |= {"per_class": per_class, "confusion": {b: m.tolist() for b, m in matrices.items()}, "missing": missing}
    probes = [
        {
            "modality": m,
            "checkpoint": f"epoch-00{e}",
            "epoch": e,
            "step": e,
            "C": 1.0,
            "train": 1.0,
            "val": 0.2 * e + 0.2,
            "test": None,
        }
        for m in ("audio", "visual")
        for e in (0, 1, 2)
    ]
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "test-best.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "evaluation" / "probes.json").write_text(json.dumps({"format": 1, "probes": probes}), encoding="utf-8")


class Seen(HTMLParser):
    """Elements, ids, links and text of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.words: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")
            if name == "aria-label":
                self.labels.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def written(runs: list[Path], page: Path) -> Seen:
    write_page([read_run(run) for run in runs], page)
    return Seen(page)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two experiments, one of them with two seeds, with hostile names."""
    folder = tmp_path_factory.mktemp("page")
    runs = [make_run(folder / f"none {seed}", seed=seed, names=EVIL) for seed in (0, 1)]
    runs.append(make_run(folder / 'a <b>"run"</b> & more', modulation="opm<i>&\"'", seed=0, names=EVIL, steps=200))
    done = CliRunner().invoke(
        report, [*map(str, runs), "--out", str(folder / "my report.html")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert "my report.html, with figures and tables in" in done.output
    return folder / "my report.html"


def test_every_section_has_content_and_every_link_a_target(page: Path) -> None:
    seen = Seen(page)
    assert [name for name in seen.ids if name in SECTIONS] == SECTIONS
    assert "not available" not in seen.text
    assert len(seen.ids) == len(set(seen.ids))
    files = set()
    for link in seen.links:
        if link.startswith("#"):
            assert link[1:] in seen.ids
        elif not link.startswith("data:"):
            assert (page.parent / unquote(link)).is_file(), link
            files.add(unquote(link).partition("/")[2])
    folder = page.with_name("my report_files")
    assert files == {path.name for path in folder.iterdir()} - {".written"}
    stems = {Path(name).stem for name in files if name.endswith("png")}
    assert {
        f"{kind}-{m}-steps" for kind in ("rho", "q", "k", "score", "grad-norm") for m in ("audio", "visual")
    } <= stems
    assert stems == {Path(name).stem for name in files if name.endswith("svg")}
    assert seen.tags["figure"] == len(stems)
    for path in folder.glob("*.png"):
        assert min(Image.open(path).size) > 150


def test_text_from_the_files_is_escaped(page: Path) -> None:
    seen = Seen(page)
    assert seen.tags["script"] == 1
    assert not {tag for tag in ("b", "i", "img") if seen.tags[tag]}
    for name in EVIL:
        assert name in seen.text
    assert 'a <b>"run"</b> & more' in seen.text
    text = page.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in text
    assert not re.findall(r"(?:src|href)=\"https?:|url\(http|@import", text)


def test_the_csv_files_hold_the_numbers_of_the_runs(page: Path) -> None:
    folder = page.with_name("my report_files")
    with (folder / "headline.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["seeds"], row["accuracy, %"]) for row in rows] == [
        ("none", "2", "50.0 ± 0.0"),
        ("opm<i>&\"'", "1", "50.0"),
    ]
    (gains,) = folder.glob("gain-*.csv")
    with gains.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    own = np.diag(counts(5, 0, 0.8)) / 20
    theirs = (np.diag(counts(5, 0, 0.7)) + np.diag(counts(5, 1, 0.7))) / 40
    order = np.argsort(-(own - theirs).round(9), kind="stable")
    assert [row["class"] for row in rows] == [EVIL[i] for i in order]
    assert [row["recall gain, points"] for row in rows] == [f"{100 * (own - theirs)[i]:+.1f}" for i in order]
    with (folder / "missing.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["run"] == "none" and row["audio missing, %"] == "50"]
    assert rows[0]["accuracy, %"] == f"40.0 ± {np.std([45, 35, 45, 35], ddof=1):.1f}"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures with empty files, which saves the time of drawing."""
    from bmlpipe.train.report import page as module

    def write_figure(figure: Any, folder: Path) -> str:
        for suffix in ("png", "svg"):
            (folder / f"{figure.name}.{suffix}").touch()
        return ""

    monkeypatch.setattr(module, "write_figure", write_figure)


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_evaluations_says_how_to_make_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "it's a run")
    seen = written([run], tmp_path / "report.html")
    quoted = "'" + str(run).replace("'", "'\"'\"'") + "'"
    assert f"bmlpipe evaluate {quoted}" in seen.text
    assert f"bmlpipe evaluate {quoted} --probe --checkpoint all" in seen.text
    assert f"bmlpipe evaluate {quoted} --missing audio=0:1:0.1 --missing visual=0:1:0.1" in seen.text
    assert [name for name in seen.ids if name in SECTIONS] == SECTIONS


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")

    return apply


def line(number: int, change: Callable[[str], str]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        lines = text.splitlines(keepends=True)
        lines[number - 1] = change(lines[number - 1])
        return "".join(lines)

    return apply


RESULT = "evaluation/test-best.json"
BROKEN: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "NaN": (
        edit("steps.jsonl", line(6, lambda row: re.sub(r'("loss": )[^,]*', r"\1null", row))),
        "steps.jsonl: loss: not a finite number (NaN and inf are null in the journal) in 1 of 30 rows, first at step 5",
        0,
    ),
    "inf": (
        edit("steps.jsonl", line(1, lambda row: row.replace("320.0", "Infinity"))),
        "samples_per_s: not a finite",
        0,
    ),
    "cut": (edit("steps.jsonl", lambda text: text[:-30]), "steps.jsonl: line 30, the last one, is incomplete", 0),
    "corrupt": (edit("steps.jsonl", line(7, lambda row: row[9:])), "steps.jsonl: line 7 is no JSON object", 0),
    "many corrupt": (
        edit("steps.jsonl", lambda text: text.replace("{", "(")),
        "lines 1, 2, 3, 4, 5, … are no JSON",
        13,
    ),
    "empty": (edit("steps.jsonl", lambda text: ""), "steps.jsonl: has no rows", 13),
    "no steps": (lambda folder: (folder / "steps.jsonl").unlink(), "steps.jsonl: is missing", 13),
    "no metrics": (lambda folder: (folder / "metrics.jsonl").unlink(), "not finished: 0 of 3 epochs evaluated, 30", 5),
    "in progress": (edit("metrics.jsonl", lambda text: text.splitlines()[0] + "\n"), "not finished: 1 of 3 epochs", 0),
    "null accuracy": (edit("metrics.jsonl", lambda text: text.replace("0.5", "null")), "", 1),
    "older": (
        edit("config.yaml", lambda text: re.sub(r"fusion: .*\n", "", text)),
        "",
        0,
    ),
    "newer": (edit("config.yaml", lambda text: text + "warp: [9, {a: b}]\n"), "", 0),
    "bare": (
        lambda folder: (folder / "config.yaml").write_text("{modalities: [audio, visual]}"),
        "",
        0,
    ),
    "no result": (edit(RESULT, lambda text: text[:100]), "test-best.json: the file cannot be read", 6),
    "another format": (
        edit(RESULT, lambda text: text.replace('"format": 1', '"format": 9')),
        "its format is 9",
        6,
    ),
    "a part": (
        edit(RESULT, lambda text: text.replace('"joint": [[', '"joint": [[[1], ')),
        "confusion cannot be read",
        3,
    ),
    "odd probes": (
        edit("evaluation/probes.json", lambda text: text.replace('"epoch"', '"e"')),
        "'epoch' is missing",
        2,
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of thirty steps with all evaluations: its page has 26 figures."""
    return make_run(tmp_path_factory.mktemp("whole") / "run", steps=30, names=list("abc"))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", BROKEN)
def test_damaged_files_are_named_and_nothing_else_is_lost(tmp_path: Path, name: str, whole: Path) -> None:
    spoil, note, lost = BROKEN[name]
    shutil.copytree(whole, tmp_path / "run")
    spoil(tmp_path / "run")
    seen = written([tmp_path / "run"], tmp_path / "report.html")
    assert note in seen.text
    assert 26 - seen.tags["figure"] == lost
    assert [name for name in seen.ids if name in SECTIONS] == SECTIONS


def test_undamaged_runs_have_no_notes(page: Path) -> None:
    assert "notes" not in Seen(page).ids


@pytest.mark.slow
def test_three_hundred_classes_stay_legible_and_the_page_small(tmp_path: Path) -> None:
    names = [f"class {n}" for n in range(309)]
    runs = [make_run(tmp_path / m, modulation=m, steps=10, names=names) for m in ("none", "opm")]
    seen = written(runs, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 4e6
    rows = (tmp_path / "report_files" / "gain-1-opm.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 310
    svg = (tmp_path / "report_files" / "gain-1-opm.svg").read_text(encoding="utf-8")
    shown = re.findall(r">(class \d+)<", svg)
    table = [row.partition(",")[0] for row in rows[1:]]
    assert shown == table[:20] + table[-20:]
    assert "269 classes not shown" in svg
    assert not re.search(
        r">class \d+<", (tmp_path / "report_files" / "confusion-1-opm-joint.svg").read_text(encoding="utf-8")
    )
    matrix = counts(309, 0, 0.8)
    np.fill_diagonal(matrix, 0)
    pairs = (tmp_path / "report_files" / "most-confused.csv").read_text(encoding="utf-8").splitlines()
    assert next(row for row in pairs if row.startswith("opm,")).split(",")[3] == str(matrix.max())
    assert "309 classes" in " ".join(seen.labels)


@pytest.mark.usefixtures("undrawn")
def test_the_reference_can_be_chosen_and_must_be_among_the_runs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / m, modulation=m, steps=9, names=list("ab")) for m in ("opm", "ogm")]
    out = str(tmp_path / "report.html")
    done = CliRunner().invoke(report, [*map(str, runs), "--out", out])
    assert "--reference RUN" in Seen(tmp_path / "report.html").text
    (tmp_path / "report_files" / "mine.png").write_bytes(b"")
    stale = tmp_path / "report_files" / "confusion-1-ogm-joint.png"
    assert stale.is_file()
    done = CliRunner().invoke(report, [*map(str, runs), "--out", out, "--reference", str(runs[0])])
    assert done.exit_code == 0
    assert "ogm against opm" in Seen(tmp_path / "report.html").text
    done = CliRunner().invoke(report, [str(runs[0]), "--out", out])
    assert (tmp_path / "report_files" / "mine.png").is_file()
    assert not stale.is_file()
    done = CliRunner().invoke(report, [str(runs[0]), "--out", out, "--reference", str(runs[1])])
    assert done.exit_code == 2
    assert "--reference" in done.output


# ----- in a browser -----


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, from Debian's packages chromium and chromium-driver."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver or not chromium:
        pytest.skip("no chromium and chromedriver on the PATH (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    started.set_page_load_timeout(60)
    yield started
    started.quit()


def opened(browser: Any, page: Path, *, width: int = 1280, dark: bool = False, script: bool = True) -> Any:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    browser.get(page.as_uri())
    return browser


def contrast(one: str, other: str) -> float:
    """Contrast of two CSS colours, rgb(…), by WCAG 2."""

    def luminance(colour: str) -> float:
        parts = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


COLOURS = """
const page = getComputedStyle(document.body).backgroundColor;
const colour = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
const lines = [...document.querySelectorAll(".swatch line")].map((line) => getComputedStyle(line).stroke);
return {page, lines, text: [colour("main p", "color"), colour("caption", "color"), colour("nav a", "color"),
        colour("figure svg text", "fill")]};
"""


@pytest.mark.slow
def test_chromium_shows_all_figures_without_errors(browser: Any, page: Path) -> None:
    opened(browser, page)
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('section > .figures figure svg')].map((svg) => {"
        "const box = svg.getBoundingClientRect(); const marks = svg.querySelectorAll('path, image').length;"
        "return [box.width, box.height, marks];})"
    )
    assert len(boxes) > 25
    assert min(box[0] for box in boxes) > 200
    assert min(box[1] for box in boxes) > 80
    assert min(box[2] for box in boxes) > 3
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.querySelector('main').querySelectorAll('script, img').length") == 0
    unlabelled = "return [...document.querySelectorAll('figure svg')].filter((svg) => !svg.ariaLabel).length"
    assert browser.execute_script(unlabelled) == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_scrolls_sideways(browser: Any, page: Path, width: int) -> None:
    opened(browser, page, width=width)
    browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    inner, scrolled = browser.execute_script(
        "window.scrollTo(500, 0); return [document.documentElement.scrollWidth, window.scrollX]"
    )
    assert inner <= width
    assert scrolled == 0


@pytest.mark.slow
def test_dark_and_light_modes_have_enough_contrast(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By

    shown = {}
    for dark in (False, True):
        opened(browser, page, dark=dark)
        shown[dark] = browser.execute_script(COLOURS)
        assert all(contrast(colour, shown[dark]["page"]) >= 4.5 for colour in shown[dark]["text"]), shown[dark]
        assert all(contrast(colour, shown[dark]["page"]) >= 3 for colour in shown[dark]["lines"]), shown[dark]
    assert contrast(shown[True]["page"], shown[False]["page"]) > 10
    button = browser.find_element(By.ID, "theme")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert browser.execute_script(COLOURS) == shown[False]
    assert button.get_attribute("aria-pressed") == "false"


@pytest.mark.slow
def test_the_keyboard_reaches_every_control(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    reached = []
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        active = browser.switch_to.active_element
        reached.append((active.tag_name, active.text, active.get_attribute("id")))
        outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
        if active.tag_name == "button" and active.text.startswith("none"):
            break
    assert reached[0][1] == "Skip to the content"
    assert reached[1][2] == "theme"
    visible = "return [...document.querySelectorAll('.series-0')].filter((one) => one.getClientRects().length).length"
    assert browser.execute_script(visible) > 20
    active.send_keys(Keys.SPACE)
    assert browser.execute_script(visible) == 0
    active.send_keys(Keys.ENTER)
    assert browser.execute_script(visible) > 20


@pytest.mark.slow
def test_tables_sort_numerically(browser: Any, page: Path) -> None:
    opened(browser, page)
    column = (
        "const table = document.querySelector('#confusion table'); table.tHead.rows[0].cells[3].firstChild.click();"
        "return [...table.tBodies[0].rows].map((row) => Number(row.cells[3].textContent))"
    )
    for sign in (1, -1):
        values = browser.execute_script(column)
        assert len(values) > 3
        assert values == sorted(values, key=lambda value: sign * value)


@pytest.mark.slow
def test_the_page_is_complete_without_javascript(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By

    opened(browser, page, width=360, dark=True, script=False)
    try:
        assert not browser.find_element(By.ID, "theme").is_displayed()
        assert len([one for one in browser.find_elements(By.CSS_SELECTOR, "figure svg") if one.is_displayed()]) > 25
        browser.find_element(By.CSS_SELECTOR, "summary").click()
        assert browser.find_element(By.CSS_SELECTOR, "details table").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
