"""No file breaks the pipeline: every case of the corpus ends as docs/data.md says, from bytes and from a directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from sere_jax.data.batches.pipeline import train_batches
from sere_jax.data.crops.views import ViewRecipe
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.open import SourceError, open_source
from tests.data.images import corpus

ROOT = Path(__file__).resolve().parents[3]
CASES = {case.name: case for case in corpus.cases()}
BACKENDS = ["fast", "pil"]


def test_the_corpus_is_as_large_as_it_claims_and_told_to_users():
    assert len(CASES) == len(corpus.cases()) >= 100
    assert corpus.table() in (ROOT / "docs" / "data.md").read_text(), "docs/data.md: paste what `python -m tests.data.images.corpus` prints"


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF and large pictures
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_every_file_ends_as_documented(name, backend):
    case = CASES[name]
    if case.expected is None:
        with pytest.raises(BadImage):
            decode(case.data, ImageReading(backend=backend))
        return
    pixels = decode(case.data, ImageReading(backend=backend))
    assert pixels.dtype == np.uint8 and pixels.shape == case.expected.shape
    assert np.abs(pixels.astype(int) - case.expected.astype(int)).max() <= case.tolerance <= 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_channel_is_the_luma_of_every_file(backend):
    """(19595 R + 38470 G + 7471 B + 32768) >> 16 of what three channels give; what is bad stays bad, but for the array of 2 x 2."""
    for case in CASES.values():
        if case.expected is None:
            with pytest.raises(BadImage) if case.name != "a NumPy array" else contextlib.nullcontext():
                decode(case.data, ImageReading(backend=backend, channels=1))
            continue
        red, green, blue = np.moveaxis(decode(case.data, ImageReading(backend=backend)).astype(np.int64), -1, 0)
        luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
        np.testing.assert_array_equal(decode(case.data, ImageReading(backend=backend, channels=1))[..., 0], luma, err_msg=case.name)


WEIGH = """
import pathlib, resource, sys, time
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import ImageReading
directory = pathlib.Path(sys.argv[1])
decode((directory / "warm.tif").read_bytes())  # loads all of Pillow
files = [path.read_bytes() for path in sorted(directory.glob("*.bomb"))]
before, longest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
def seconds(data, backend):
    began = time.process_time()
    try:
        decode(data, ImageReading(backend=backend))
        print("decoded")
    except BadImage:
        return time.process_time() - began

for data in files:
    for backend in ("fast", "pil"):
        longest = max(longest, min(seconds(data, backend) for _ in range(3)))  # the best of three: other programs slow a core
print(len(files), longest * 1000, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_bombs_cost_neither_time_nor_memory(tmp_path):
    bombs = corpus.bombs()
    for number, case in enumerate(bombs):
        (tmp_path / f"{number}.bomb").write_bytes(case.data)
    (tmp_path / "warm.tif").write_bytes(CASES["TIFF"].data)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WEIGH, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    count, milliseconds, megabytes = map(float, done.stdout.split())
    assert count == len(bombs) and milliseconds < 50 and megabytes < 64


@pytest.mark.filterwarnings("ignore")
def test_the_whole_corpus_as_a_folder_feeds_a_run(tmp_path):
    """Good files keep their place, bad ones are replaced by good ones, the same way twice."""
    for number, case in enumerate(CASES.values()):
        (tmp_path / f"{number:03}.jpg").write_bytes(case.data)
    bad = [number for number, case in enumerate(CASES.values()) if case.expected is None]
    count = len(CASES)
    options = {"recipe": ViewRecipe(16, local_count=2, local_size=8), "seed": 3, "batch_size": count, "total_steps": 1}
    source = open_source(f"folder:{tmp_path}")
    (views,), (again,) = (list(train_batches(source, **options, workers=0)) for _ in range(2))
    assert views.replaced.sum() == len(bad) and not np.isin(views.index, bad).any()
    for field, one, other in zip(views._fields, views, again, strict=True):
        assert one is other is None or one.tobytes() == other.tobytes(), field


@contextlib.contextmanager
def unprivileged():
    """As another user where this one may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def place(directory: Path) -> Path:
    """A folder with every entry of corpus.FILES that a listing may meet, and one plain picture."""
    picture = CASES["JPEG"].data
    (directory / "plain.jpg").write_bytes(picture)
    (directory / "really a jpeg.png").write_bytes(picture)
    (directory / ("n" * 251 + ".jpg")).write_bytes(picture)
    with open(os.fsencode(directory) + b"/caf\xe9 \xff.jpg", "wb") as file:
        file.write(picture)
    (directory / "two\nlines.jpg").write_bytes(picture)
    (directory / "unreadable.jpg").write_bytes(picture)
    (directory / "unreadable.jpg").chmod(0)
    (directory / "vanished.jpg").write_bytes(picture)
    (directory / "broken link.jpg").symlink_to("nowhere.jpg")
    (directory / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(directory / "pipe.jpg")
    (directory / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket.jpg"))
    with (directory / "huge.jpg").open("wb") as file:
        file.truncate(1 << 40)
    return directory


@pytest.fixture
def odd_folder():
    """Not below pytest's own directory, which other users may not enter."""
    directory = Path(tempfile.mkdtemp(prefix="odd"))
    directory.chmod(0o755)
    yield place(directory)
    shutil.rmtree(directory)


@pytest.mark.skipif(sys.platform != "linux", reason="pipes, sockets and devices as Linux has them")
def test_odd_entries_of_a_directory(odd_folder):
    source = open_source(f"folder:{odd_folder}")
    assert len(source) == 13
    (odd_folder / "vanished.jpg").unlink()
    outcomes = {}
    began = time.perf_counter()
    with unprivileged():
        for index in range(len(source)):
            name = source._paths[index]
            try:
                outcomes[name] = decode(source[index].data).shape
            except OSError as error:
                outcomes[name] = type(error)
    assert time.perf_counter() - began < 5
    readable = {name for name, outcome in outcomes.items() if isinstance(outcome, tuple)}
    assert readable == {"plain.jpg", "really a jpeg.png", "n" * 251 + ".jpg", "caf\udce9 \udcff.jpg", "two\nlines.jpg"}


@pytest.mark.skipif(sys.platform != "linux", reason="named pipes")
def test_a_run_on_odd_entries_replaces_and_names_each_once(odd_folder, caplog):
    (odd_folder / "unreadable.jpg").unlink()  # who runs the tests may be allowed to read it
    recipe = ViewRecipe(16, local_count=0)
    run = list(train_batches(open_source(f"folder:{odd_folder}"), recipe=recipe, seed=0, batch_size=12, total_steps=4))
    assert [int(views.replaced.sum()) for views in run] == [6, 6, 6, 6]
    assert len(caplog.records) == 6 and all("is replaced" in record.getMessage() for record in caplog.records)


def test_directories_named_like_images_links_upwards_and_links_to_each_other(tmp_path):
    for name in ("one.jpg", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(CASES["JPEG"].data)
        (tmp_path / name / "up").symlink_to("..")
    (tmp_path / "one.jpg" / "other").symlink_to("../two")
    (tmp_path / "two" / "other").symlink_to("../one.jpg")
    source = open_source(f"folder:{tmp_path}")
    names = [source[index].name for index in range(len(source))]
    assert source.classes == ("one.jpg", "two")
    assert names == ["one.jpg/a.jpg", "two/a.jpg"]  # a directory that several paths reach is listed once


def test_what_cannot_be_listed_is_refused_at_the_start(odd_folder):
    secret = odd_folder / "secret"
    secret.mkdir()
    secret.chmod(0)
    with unprivileged(), pytest.raises(SourceError, match="secret. cannot be listed: Permission denied"):
        open_source(f"folder:{odd_folder}")
    secret.rmdir()
    deep = odd_folder
    before = os.getcwd()
    try:
        for _ in range(20):
            os.chdir(deep)
            os.mkdir("d" * 250)
            deep = "d" * 250
        os.chdir(before)
        with pytest.raises(SourceError, match="cannot be listed: File name too long"):
            open_source(f"folder:{odd_folder}")
    finally:
        os.chdir(before)


@pytest.mark.parametrize("quality", [50, 95])
def test_most_damage_in_a_jpeg_is_noticed(quality):
    """There is no checksum: 512 random bytes over 60 places, and libjpeg's own complaints find nearly all (99 % on photographs)."""
    rng = np.random.default_rng(0)
    data = corpus.save(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8), "JPEG", quality=quality)
    start, noticed = data.rindex(b"\xff\xda") + 14, 0
    for place in rng.integers(start, len(data) - 520, 60):
        try:
            decode(data[:place] + rng.bytes(512) + data[place + 512 :])
        except BadImage:
            noticed += 1
    assert noticed >= 54
