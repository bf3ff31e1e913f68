"""The report in headless Chromium, without a network: nothing is cut off on a desktop, on a phone and on paper."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from sere_jax.commands import report
from tests.reporting import made_runs

pytestmark = pytest.mark.slow

_A4 = 717  # pixels of CSS between Chromium's margins of 0.4 inches
# The right edge of everything that is not inside a region that scrolls, and the height of the highest picture.
_PROBE = """<script>
const inside = (node) => node.parentElement.closest('.wide') && getComputedStyle(node.parentElement.closest('.wide')).overflowX == 'auto'
const boxes = [...document.querySelectorAll('main *, header *')].filter(node => !inside(node)).map(node => node.getBoundingClientRect())
const narrow = [...document.querySelectorAll('tbody th, tbody td')].map(node => node.getBoundingClientRect().width)
const heights = [...document.querySelectorAll('img')].map(node => node.getBoundingClientRect().height)
const found = [document.documentElement.scrollWidth, Math.max(...boxes.map(box => box.right)), Math.min(...narrow), Math.max(...heights)]
parent.postMessage(found.map(Math.ceil).join(' '), '*')
</script></body>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return found or pytest.skip("chromium is not installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Nine runs, some with long names, evaluations of 36 columns, a protocol that is one long line, and a figure higher than paper."""
    root = tmp_path_factory.mktemp("runs")
    names = ["dino_vits16_coco_100", "dino_sere_vits16_coco_100", *(f"run_{number}" for number in range(7))]
    made = [made_runs.workdir(root / name, figures=int(name == names[1])) for name in names]
    for workdir in made:
        rows = [{"name": f"network_{number}", "scores": {"miou": 0.25, "mean_of_both_iou": 0.5}} for number in range(4)]
        notes = [f"protocol upernet: train=masks:/mnt/disks/{'photographs/' * 12}, test=tfds:VOC:validation", "21 classes"]
        (workdir / "eval" / "upernet.json").write_text(json.dumps({"results": rows, "notes": notes}))
    Image.effect_noise((1400, 4000), 60).convert("RGB").save(made[0] / "figures" / "attention.png")
    assert report.main([f"--workdir={','.join(map(str, made))}"]) == 0
    return (made[0] / "report.html").read_text()


def _run(browser: str, directory: Path, *options: str) -> str:
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars"]
    command += [f"--user-data-dir={directory / 'profile'}", "--virtual-time-budget=5000", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def _measured(browser: str, directory: Path, page: str, width: int) -> tuple[int, ...]:
    """What `_PROBE` finds. A window of headless Chromium is at least 500 pixels wide, so a frame of the wanted width is the screen."""
    (directory / "page.html").write_text(page.replace("</body>", _PROBE))
    frame = f'<iframe src="page.html" style="width:{width}px;height:3000px;border:0"></iframe>'
    listen = "<script>addEventListener('message', message => document.title = 'found ' + message.data)</script>"
    (directory / "frame.html").write_text(f"<title>waiting</title><body style='margin:0'>{listen}{frame}</body>")
    where, size = f"file://{directory / 'frame.html'}", f"--window-size={max(width, 500)},3000"
    _run(browser, directory, size, f"--screenshot={directory / 'shot.png'}", where)
    found = re.search(r"<title>found ([\d ]+)</title>", _run(browser, directory, size, "--dump-dom", where))
    assert found is not None
    return tuple(map(int, found[1].split()))


@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_fits_a_desktop_and_a_phone(browser: str, page: str, tmp_path: Path, width: int):
    scroll, right, narrowest, _ = _measured(browser, tmp_path, page, width)
    assert scroll <= width and right <= width
    assert narrowest >= 50  # no column is squeezed to letters
    with Image.open(tmp_path / "shot.png") as picture:
        assert len(picture.convert("L").crop((0, 0, width, 3000)).getcolors(256) or []) > 20  # levels of grey: text and curves


def test_nothing_is_cut_off_on_paper(browser: str, page: str, tmp_path: Path):
    """The rules for paper, applied on a screen of its width, and the same page without them, which does not fit."""
    paper = page.replace("@media screen and", "@media not all and").replace("@media print", "@media all")
    assert paper.count("@media all") == 1
    _, right, narrowest, height = _measured(browser, tmp_path, paper, _A4)
    assert right <= _A4 and narrowest >= 30
    assert height <= 840  # of 1,046 pixels between the margins: room for a heading and the caption
    assert _measured(browser, tmp_path, page.replace(".wide { overflow-x: auto;", ".wide {"), _A4)[1] > _A4


def test_the_page_prints(browser: str, page: str, tmp_path: Path):
    (tmp_path / "page.html").write_text(page)
    pdf = tmp_path / "page.pdf"
    _run(browser, tmp_path, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", f"file://{tmp_path / 'page.html'}")
    pages = len(re.findall(rb"/Type /Page\b", pdf.read_bytes()))
    assert 5 <= pages <= 20, pages
    if not (reader := shutil.which("pdftotext")):
        pytest.skip("pdftotext (poppler-utils) is not installed: the text was not compared")
    printed = subprocess.run([reader, "-raw", str(pdf), "-"], check=True, capture_output=True, text=True).stdout
    sheets = printed.split("\f")
    assert len(sheets) == pages + 1 and all(sheet.strip() for sheet in sheets[1:4])
    words = re.sub(r"\s", "", printed)  # long words may be broken
    headings = re.findall(r"<h[12][^>]*>([^<]+)</h[12]>", page)
    assert len(headings) > 5
    for text in (*headings, "schedule.epochs", "dino_sere_vits16_coco_100:network_3", "photographs/" * 12, "whennothingislearned"):
        assert re.sub(r"\s", "", text) in words, text
    assert "To the content" not in printed
    for sheet in sheets:  # a heading stays with what it is above
        last = sheet.strip().rpartition("\n")[2].strip()
        assert last not in headings, last
