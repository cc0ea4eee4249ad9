"""Our pages in a real headless browser: what they show, that they fit, and that they ask the network for nothing."""

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.config.file import override
from diffcli.config.settings import EvalConfig, ModelConfig, RunConfig
from diffcli.core.metrics import ConfusionMatrix
from diffcli.drawing.pictures import class_palette
from diffcli.evaluation.comparison import build_comparison, write_comparison
from diffcli.evaluation.evaluator import DomainScores, Shown
from diffcli.evaluation.html import html_report
from diffcli.evaluation.report import build_report
from diffcli.prediction.index import write_index
from diffcli.prediction.manifest import Manifest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NAME = "<script>document.title='run'</script>&co"


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip(f"no browser on PATH ({', '.join(BROWSERS)})")
    return found


def scores(name: str, seed: int) -> DomainScores:
    matrix, random = ConfusionMatrix(19), np.random.default_rng(seed)
    matrix.counts[:12, :12] = torch.from_numpy(random.integers(0, 90, (12, 12)))
    image = random.integers(0, 255, (60, 120, 3), dtype=np.uint8)
    mask = (image[..., 0] % 12).astype(np.uint8)
    return DomainScores(
        name=name,
        samples=3,
        skipped=0,
        problems=(),
        counts=matrix.counts,
        scores=matrix.scores(),
        image_iou=np.array([0.1, 0.5, 0.3], np.float32),
        shown=Shown(f"{name}/picture", image, mask[::-1].copy(), mask, 0.5),
        seconds_per_image=0.5,
        evaluations_per_image=34.0,
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains, one of them named like a script."""
    own = [scores(name, seed) for seed, name in enumerate(("acdc/fog", "acdc/night", NAME))]
    report = build_report(own, model=ModelConfig(), settings=EvalConfig(), run=NAME, iteration=7)
    path = tmp_path_factory.mktemp("page") / "report.html"
    examples = [[("worst", one.shown), ("median", one.shown)] for one in own]
    path.write_text(html_report(report, own, model=ModelConfig(), examples=examples), encoding="utf-8")
    return path


def browse(browser: str, page: Path, *options: str) -> str:
    """What the browser prints. Its own profile; no host name resolves."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    result = subprocess.run(
        [*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return result.stdout


class Shape(HTMLParser):
    """Counts tags and keeps the text of headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] in (["h1"], ["h2"]):
            self.headings.append(data)


def test_everything_is_there_and_no_name_is_run(browser: str, page: Path) -> None:
    shape = Shape(browse(browser, page, "--dump-dom"))
    assert "script" not in shape.tags
    headings = ["Domains", "IoU of every class", "Cost", "acdc/fog", "acdc/night", NAME, "Settings"]
    assert [text for text in shape.headings if text in headings] == [NAME, *headings]
    assert shape.tags.count("table") == 3 + 3 + 1  # domains, classes, cost, a confusion matrix each, settings
    assert shape.tags.count("img") == 3 * 2 * 4
    assert shape.tags.count("tfoot") >= 1


def requests(browser: str, page: Path) -> list[str]:
    """What the page asks the network for, by the browser's own log; the browser's own requests have no initiator."""
    log = page.parent / "net.json"
    browse(browser, page, "--dump-dom", f"--log-net-log={log}", "--disable-background-networking")
    told = json.loads(log.read_text(encoding="utf-8"))
    started = told["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    found = (event["params"] for event in told["events"] if event["type"] == started and "params" in event)
    return [one["url"] for one in found if one.get("initiator", "not an origin") != "not an origin"]


def test_it_asks_for_nothing_outside_itself(browser: str, page: Path, tmp_path: Path) -> None:
    assert requests(browser, page) == []
    control = tmp_path / "control.html"
    control.write_text('<img src="http://example.invalid/a.png">', encoding="utf-8")
    assert requests(browser, control) == ["http://example.invalid/a.png"], "the log does not tell"


@pytest.mark.slow
def test_the_picture_of_it_is_filled(browser: str, page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    browse(browser, page, f"--screenshot={shot}", "--window-size=1200,1600")
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (1600, 1200, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    rows = (pixels != 255).any((1, 2))
    assert rows[:1500].mean() > 0.4  # lines of text, tables and pictures down to the end


MEASURE = """<script>
const wide = element => element.scrollWidth > element.clientWidth + 1 && element.clientWidth;
const under = bar => {
  const digits = document.createRange();
  digits.selectNode(bar.parentElement.firstChild);
  return bar.getBoundingClientRect().top < digits.getBoundingClientRect().bottom - 2;
};
document.documentElement.dataset.page = wide(document.documentElement) ? "wide" : "fits";
document.documentElement.dataset.boxes = [...document.querySelectorAll(".scroll")].filter(wide).length;
document.documentElement.dataset.bars = [...document.querySelectorAll("td.share i")].filter(under).length;
</script>"""


def told(browser: str, page: Path, script: str, *options: str) -> str:
    """The page as the browser has it after a script that is added to it."""
    copy = page.with_name("told.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{script}</body>"), encoding="utf-8")
    return browse(browser, copy, "--dump-dom", *options)


@pytest.mark.slow
@pytest.mark.parametrize("width", [480, 800, 1900])
def test_it_fits_the_window_and_bars_are_below_digits(browser: str, page: Path, width: int) -> None:
    shown = told(browser, page, MEASURE, f"--window-size={width},900")
    assert 'data-page="fits"' in shown
    assert 'data-bars="0"' in shown
    if width >= 800:
        assert 'data-boxes="0"' in shown  # no table scrolls
    broken = told(browser, page, f"<style>td.share i {{ margin-top: -9px }}</style>{MEASURE}")
    assert 'data-bars="0"' not in broken, "the script does not tell"


@pytest.mark.slow
def test_the_comparison_of_runs_fits(browser: str, tmp_path: Path) -> None:
    own = [scores("acdc/fog", 1)]
    reports = {
        name: build_report(own, model=ModelConfig(), settings=EvalConfig(), run=f"runs/{name}")
        for name in ("first", NAME)
    }
    configs = {"first": RunConfig(), NAME: override(RunConfig(), ["train.iterations=7"])}
    found = build_comparison(reports, configs)
    write_comparison(tmp_path, found, reports, palette=class_palette(ModelConfig()))
    shown = told(browser, tmp_path / "comparison.html", MEASURE, "--window-size=480,900")
    assert 'data-page="fits"' in shown
    assert 'data-boxes="0"' in shown
    assert "<td>train.<wbr>iterations</td>" in shown
    assert "<script>document.title" not in shown


def test_the_index_has_a_legend_and_sorts_by_confidence(browser: str, tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    manifest.begin([])
    for name, confidence in {"b": 0.5, "a": 0.9, NAME.replace("/", ""): 0.25}.items():
        mask = tmp_path / f"{len(name)}.png"
        Image.new("P", (8, 4)).save(mask)
        Image.new("RGB", (16, 8)).save(tmp_path / f"{name}.jpg")
        manifest.add(
            tmp_path / f"{name}.jpg",
            status="done",
            outputs={"mask": mask},
            size=(4, 8),
            confidence=confidence,
        )
    manifest.add(tmp_path / "c.jpg", status="failed", error="cut short")
    page = write_index(manifest, title="runs/x", classes=["road"], palette=class_palette(ModelConfig()))
    names = {word: f"{word}.jpg" for word in ("a", "b", "c")} | {"script": f"{NAME.replace('/', '')}.jpg"}

    def order(words: str) -> list[str]:
        click = f"""<script>[...document.querySelectorAll("button")]
          .find(button => button.textContent === "{words}").click()</script>"""
        cards = Cards(told(browser, page, click, "--window-size=480,900")).names
        return [next(short for short, name in names.items() if name == one) for one in cards]

    assert order("most confident first") == ["a", "b", "script", "c"]
    assert order("least confident first") == ["script", "b", "a", "c"]
    assert order("by name") == ["script", "a", "b", "c"]
    shown = told(browser, page, MEASURE, "--window-size=480,900")
    assert 'data-page="fits"' in shown
    assert shown.count("<img") == 3
    assert '<i class="key" style="background:#804080"></i>road' in shown
    assert "failed: cut short" in shown


class Cards(HTMLParser):
    """Names of the cards of an index in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if "data-name" in found:
            self.names.append(str(found["data-name"]))
