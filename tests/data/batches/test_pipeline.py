from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sere_jax.data.batches import workers
from sere_jax.data.batches.maker import BatchMaker, UnreadableData
from sere_jax.data.batches.order import Stream, example_index, position_rng
from sere_jax.data.batches.pipeline import ViewsRow, train_batches
from sere_jax.data.crops.masks import MaskRecipe
from sere_jax.data.crops.views import ViewRecipe, make_views
from sere_jax.data.images.decode import decode
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.mixture import Mixture
from sere_jax.data.sources.open import open_source
from sere_jax.types import Views
from tests.data.images.images import MemorySource

RECIPE = ViewRecipe(global_size=12, local_count=3, local_size=8)


def batches(source, **options):
    defaults = {"recipe": RECIPE, "seed": 7, "batch_size": 8, "total_steps": 6}
    return list(train_batches(source, **(defaults | options)))


def same(first, second):
    """Equality of bytes, types and shapes of two lists of batches."""
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert isinstance(a, Views) and isinstance(b, Views)
        for field, x, y in zip(Views._fields, a, b, strict=True):
            assert (x is None) == (y is None), field
            if x is not None:
                assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes(), field


@pytest.fixture(scope="module")
def source():
    return MemorySource(21, bad=[4, 11])


@pytest.fixture(scope="module")
def run(source):
    return batches(source)


def test_a_batch_is_what_its_definition_says(run):
    clean = MemorySource(21)
    for step, views in enumerate(batches(clean)):
        for row in range(8):
            position = step * 8 + row
            index = example_index(7, position, 21, 8)
            image = decode(clean[index].data)
            expected = make_views(image, RECIPE, position_rng(7, position, Stream.VIEWS))
            assert views.index[row] == index and not views.replaced[row]
            for array, single in zip(views[:4], expected, strict=True):
                np.testing.assert_array_equal(array[row], single)
    assert run[0].global_views.shape == (8, 2, 12, 12, 3) and run[0].local_views.shape == (8, 3, 8, 8, 3)
    assert run[0].masks is None and run[0].index.dtype == np.int32


def test_the_numbers_that_old_runs_depend_on():
    """Changing them breaks the resume of every run that exists: legitimate only together with a note for users."""
    views = batches(MemorySource(21), total_steps=1)[0]
    assert views.index.tolist() == [3, 0, 14, 1, 16, 12, 13, 7]
    assert views.boxes[0].tolist() == [[0, 0, 24, 27], [2, 11, 18, 16], [5, 17, 7, 6], [10, 13, 12, 10], [11, 12, 7, 7]]
    assert views.flips[0].tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("start", [1, 2, 5, 6, 9])
def test_a_run_can_start_anywhere(source, run, start):
    same(batches(source, start_step=start), run[start:])


@pytest.mark.parametrize("prefetch", [0, 3])
def test_prefetch_changes_no_byte(source, run, prefetch):
    same(batches(source, prefetch=prefetch), run)


def together(source, count, **options):
    """The global batches that `count` processes make of their rows."""
    shares = [batches(source, process_index=i, process_count=count, **options) for i in range(count)]
    return [
        Views(*(None if parts[0] is None else np.concatenate(parts) for parts in zip(*row, strict=True)))
        for row in zip(*shares, strict=True)
    ]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_together_make_the_same_global_batches(source, run, count):
    same(together(source, count), run)


def test_a_mixture_with_bad_images_is_the_same_however_it_is_spread_and_wherever_it_starts():
    mixture = Mixture("mix", [MemorySource(9, bad=[2, 5]), MemorySource(14, bad=[1], missing=[7, 8])], [2.0, 1.0])
    options = {"masking": MaskRecipe(grid=3)}
    run = batches(mixture, **options)
    assert sum(views.replaced.sum() for views in run) > 3
    part = np.concatenate([views.index for views in run]).reshape(-1, 16) < 9  # epochs of 2 steps
    assert (part.sum(1) == 11).all()  # two thirds of 16, replaced ones among them
    for count in (1, 2, 4):
        same(together(mixture, count, **options), run)
    for start in range(6):
        same(batches(mixture, start_step=start, **options), run[start:])
    for start in (1, 4):
        same(together(mixture, 4, start_step=start, **options), run[start:])


@pytest.mark.slow
def test_any_number_of_workers_makes_the_same_bytes(tmp_path):
    """0, 1, 2 and 4 workers, one process of two, resumed in the middle of an epoch, a mixture with bad files."""
    for part, count in (("one", 9), ("two", 14)):
        (tmp_path / part).mkdir()
        for number, example in enumerate(MemorySource(count, bad=[2, 5])):
            (tmp_path / part / f"{number:02}.png").write_bytes(example.data)
    mixture = open_source(f"mix:2*folder:{tmp_path}/one|1*folder:{tmp_path}/two")
    options = {"masking": MaskRecipe(grid=3), "process_index": 1, "process_count": 2, "total_steps": 9}
    whole = batches(mixture, workers=0, **options)
    assert sum(views.replaced.sum() for views in whole) > 1
    for count in (1, 2, 4):
        same(batches(mixture, workers=count, **options), whole)
        same(batches(mixture, workers=count, start_step=3, **options), whole[3:])


def test_workers_change_no_byte_and_end_when_closed(caplog):
    """The one test of the fast suite that starts worker processes; a source that they can open by name."""
    photographs = open_source("bundled")
    masking = MaskRecipe(grid=3)
    expected = batches(photographs, masking=masking, total_steps=5)
    before = set(multiprocessing.active_children())
    made = train_batches(photographs, recipe=RECIPE, seed=7, batch_size=8, total_steps=50, workers=2, masking=masking)
    same([next(made) for _ in range(5)], expected)
    assert set(multiprocessing.active_children()) - before
    made.close()
    assert not set(multiprocessing.active_children()) - before


def test_every_epoch_shows_every_image_at_most_once(source):
    clean = MemorySource(21)
    run = batches(clean, total_steps=6)
    for epoch in range(3):  # floor(21 / 8) = 2 steps
        index = np.concatenate([views.index for views in run[2 * epoch : 2 * epoch + 2]])
        assert len(set(index.tolist())) == 16


def test_crops_of_an_image_differ_between_positions():
    one = MemorySource(1)
    run = batches(one, batch_size=1, total_steps=20)
    assert len({views.boxes.tobytes() for views in run}) == 20
    assert batches(one, batch_size=1, total_steps=1, seed=8)[0].boxes.tobytes() != run[0].boxes.tobytes()


@pytest.mark.parametrize("kind", ["bad", "missing"])
def test_a_bad_image_is_replaced_and_its_geometry_follows(kind, caplog):
    bad = {2, 5, 13}
    damaged = MemorySource(21, **{kind: bad})
    run = batches(damaged, total_steps=8)
    for views, clean in zip(run, batches(MemorySource(21), total_steps=8), strict=True):
        np.testing.assert_array_equal(views.replaced, np.isin(clean.index, list(bad)))
        kept = ~views.replaced
        np.testing.assert_array_equal(views.index[kept], clean.index[kept])
        np.testing.assert_array_equal(views.global_views[kept], clean.global_views[kept])
        assert not np.isin(views.index, list(bad)).any()
        for row in range(8):
            image = decode(damaged[int(views.index[row])].data)
            left, top, width, height = views.boxes[row].T
            assert (left + width <= image.shape[1]).all() and (top + height <= image.shape[0]).all()
            assert (views.global_views[row, ..., 2] == views.index[row]).all()  # blue is the number of the image
    assert sum(views.replaced.sum() for views in run) > 3
    names = [record.getMessage() for record in caplog.records]
    assert len(names) == len(set(names)) == 3 and all("is replaced" in name for name in names)  # once an image


def test_a_source_of_nothing_but_bad_images_ends_with_a_clear_error():
    with pytest.raises(UnreadableData, match="memory: 21 images in a row could not be read; the last error: a PNG that is cut short"):
        batches(MemorySource(10, bad=range(10)))


def test_the_pixel_cap_reaches_the_decoder():
    with pytest.raises(UnreadableData, match="max_pixels"):
        batches(MemorySource(10), reading=ImageReading(max_pixels=100))


def test_masks_are_a_stream_of_their_own(run, source):
    masked = batches(source, masking=MaskRecipe(grid=3, prob=1.0))
    same([views._replace(masks=None, mask_indices=None) for views in masked], run)
    assert masked[0].masks.shape == (8, 2, 3, 3) and masked[0].mask_indices.shape == (8, 2, 4)
    assert np.mean([views.masks.mean() for views in masked]) > 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [({"process_count": 3}, "multiple of the 3 processes"), ({"batch_size": 30}, "batch_size is 30 but the source has 21")],
)
def test_settings_that_cannot_be(source, options, message):
    with pytest.raises(ValueError, match=message):
        batches(source, **options)


def test_small_shared_memory_sends_batches_through_pipes(source, monkeypatch, caplog):
    maker = BatchMaker(source, ViewsRow(RECIPE), seed=0, batch_size=8, first_row=0, rows=8)
    assert workers._shared_memory_threshold(maker, batches=1) == workers._SHARED_FROM
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert workers._shared_memory_threshold(maker, batches=1) == sys.maxsize
    assert "/dev/shm" in caplog.text


TRAINER = """
import multiprocessing, os, sys
from sere_jax.data.batches.pipeline import train_batches
from sere_jax.data.sources.open import open_source
from sere_jax.data.crops.views import ViewRecipe
if __name__ == "__main__":
    made = train_batches(open_source("bundled"), recipe=ViewRecipe(12, local_size=8), seed=0, batch_size=8, total_steps=10**6, workers=2)
    next(made), next(made)  # both workers are up
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    for views in made:
        pass
"""


REFUSED = """
import multiprocessing, os, resource, signal
from sere_jax.data.batches.pipeline import train_batches
from sere_jax.data.batches.workers import WorkersFailed
from sere_jax.data.sources.open import open_source
from sere_jax.data.crops.views import ViewRecipe
def attempt(then):
    made = train_batches(open_source("bundled"), recipe=ViewRecipe(12, local_size=8), seed=0, batch_size=8, total_steps=10**6, workers=1)
    try:
        then()
        for views in made:
            [child.kill() for child in multiprocessing.active_children()]
    except WorkersFailed as error:
        print(error, flush=True)
if __name__ == "__main__":
    attempt(lambda: None)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    attempt(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard)))
    attempt(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard)))
"""


def test_what_the_system_refuses_to_workers_is_told_in_a_line(tmp_path):
    """A worker that is killed, as for want of memory; and shared memory that holds nothing more, as in a small container."""
    script = tmp_path / "trainer.py"
    script.write_text(REFUSED)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    output = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=300, check=True).stdout
    killed, full, short = output.splitlines()
    assert killed.startswith("no more batches: a data worker was ended from outside (exit code -9;")
    assert "the data workers need more shared memory" in full and full.endswith("(File too large); data.workers=0 needs no worker")
    assert "the data workers need more shared memory" in short  # a write that is cut short has no error of its own


HELD = """
import threading
from sere_jax.data.batches.pipeline import train_batches
from sere_jax.data.sources.open import open_source
from sere_jax.data.crops.views import ViewRecipe
if __name__ == "__main__":
    recipe = ViewRecipe(224, local_size=8)
    held = list(train_batches(open_source("bundled"), recipe=recipe, seed=0, batch_size=4, total_steps=2, workers=1))
    later = threading.Timer(0.5, held.clear)
    later.daemon = True
    later.start()
"""


def test_a_program_waits_at_its_end_for_batches_that_a_thread_is_about_to_drop(tmp_path):
    """As XLA's threads do: else Python warns of shared memory that was not freed."""
    script = tmp_path / "trainer.py"
    script.write_text(HELD)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=300, check=True)
    assert "leaked" not in done.stderr, done.stderr


@pytest.mark.slow
def test_workers_survive_sigterm_for_a_while_but_not_their_trainer(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    trainer = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    pids = [int(word) for word in trainer.stdout.readline().split()]
    assert len(pids) == 2
    for worker in pids:  # as a scheduler signals every process of a job
        os.kill(worker, signal.SIGTERM)
    time.sleep(2)
    assert trainer.poll() is None and all(alive(worker) for worker in pids)
    trainer.kill()
    trainer.wait()
    deadline = time.monotonic() + 10
    while any(alive(worker) for worker in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(worker) for worker in pids)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
