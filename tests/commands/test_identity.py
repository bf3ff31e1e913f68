"""A run goes on with its own config and images only, and its processes agree on both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from sere_jax.commands import identity
from sere_jax.config.check import ConfigError
from sere_jax.data.sources.open import open_source
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.versions import versions
from tests import micro
from tests.evals import micro_network
from tests.processes import outputs_of_two

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return Path(micro_network.photographs(tmp_path / "photos", count=24))


def _config(photos: Path, **changes: dict) -> ConfigDict:
    config = micro.config(changes, seed=3)
    config.data.source = f"folder:{photos}"
    config.schedule.update(epochs=4, total_steps=0)
    config.optimizer.warmup_epochs = 1
    return config


@pytest.fixture
def run(tmp_path: Path, photos: Path) -> Iterator[tuple[Path, Checkpoints]]:
    """A workdir with a checkpoint of step 6 of 12: 24 images, 3 steps an epoch."""
    workdir, config = tmp_path / "run", _config(photos)
    data = identity.read_data(open_source(config.data.source))
    identity.keep_entries(data, workdir)
    with Checkpoints(workdir / "checkpoints", every_steps=1) as checkpoints:
        checkpoints.save(6, {"a": jnp.ones(3)}, config.to_dict(), force=True, identity=data.saved())
        checkpoints.wait()
        yield workdir, checkpoints


def _compare(config: ConfigDict, run: tuple[Path, Checkpoints]) -> list[str]:
    workdir, checkpoints = run
    return identity.check_resumed(config, identity.read_data(open_source(config.data.source)), checkpoints, workdir)


def _more(photos: Path, count: int) -> None:
    for number, path in enumerate(sorted(photos.rglob("*.*"))[:count]):
        shutil.copy(path, path.with_name(f"new{number:02}{path.suffix}"))


def test_the_same_run_has_nothing_to_say(run, photos: Path):
    assert _compare(_config(photos), run) == []


def test_a_set_that_grew_is_refused_with_both_counts_and_names(run, photos: Path):
    _more(photos, 24)
    with pytest.raises(ConfigError, match=r"(?s)since step 6 .*found 48 images .* expected the 24 of step 6\n  24 new: \S*new00") as error:
        _compare(_config(photos), run)
    assert "accept_changed_data=True" in str(error.value) and " gone" not in str(error.value)


def test_a_set_that_shrank_or_changed_names_what_did(run, photos: Path):
    first, second = sorted(photos.rglob("*.*"))[:2]
    first.unlink()
    second.write_bytes(second.read_bytes() + b"x")
    with pytest.raises(ConfigError) as error:
        _compare(_config(photos), run)
    assert f"1 gone: {first.relative_to(photos)}" in str(error.value)
    assert f"1 of another size or class: {second.relative_to(photos)}" in str(error.value)


def test_changed_images_are_accepted_by_a_flag_that_says_what_moves(run, photos: Path):
    _more(photos, 24)
    changed, steps, rates = _compare(_config(photos, run={"accept_changed_data": True}), run)
    assert "from 24 to 48 images: 24 new: " in changed
    assert "steps an epoch 3 -> 6, in all 12 -> 24; step 6 is epoch 2.00 -> 1.00" in steps
    assert "learning rate at this step " in rates and "weight decay " in rates
    # The whole warm-up is 3 of 12 steps, then 6 of 24: the peak is at step 6 now, and was passed before.
    before, after = (float(text) for text in rates.split("this step ")[1].split(",")[0].split(" -> "))
    assert before < after


def test_the_same_files_at_another_path_are_the_same_run(run, photos: Path, tmp_path: Path):
    (tmp_path / "scratch").mkdir()
    shutil.move(photos, tmp_path / "scratch" / "p")
    [line] = _compare(_config(tmp_path / "scratch" / "p"), run)
    assert "moved from" in line and "the same 24 images" in line


def test_a_listing_that_is_gone_is_told(run, photos: Path):
    shutil.rmtree(run[0] / "listings")
    _more(photos, 1)
    with pytest.raises(ConfigError, match="found 25 images .*(?s:.)*which lists the earlier images, is missing"):
        _compare(_config(photos), run)


def test_machine_keys_may_change_and_learning_keys_may_not(run, photos: Path):
    changes = {"model": {"remat": "full", "scan_blocks": True}, "relation": {"sampling_impl": "separable"}, "data": {"max_pixels": 10**6}}
    assert _compare(_config(photos, **changes), run) == []
    with pytest.raises(ConfigError, match="relation.alpha: saved 1.0, now 0.5"):
        _compare(_config(photos, relation={"alpha": 0.5}), run)


def test_another_version_is_told(run, photos: Path, monkeypatch: pytest.MonkeyPatch):
    later = versions() | {"optax": "9.9"}
    monkeypatch.setattr(identity, "versions", lambda: later)
    [line] = _compare(_config(photos), run)
    assert "optax " in line and "-> 9.9" in line


def test_the_weights_of_a_mixture_belong_to_its_images(photos: Path):
    prints = {identity.read_data(open_source(f"mix:{weight}*folder:{photos}|1*bundled")).digest for weight in (1, 2)}
    assert len(prints) == 2


_TWO_PROCESSES = """
import sys
from pathlib import Path
from configs import quickstart
from sere_jax import distributed
from sere_jax.commands import in_loop, pretrain
port, rank, place = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
distributed.start_distributed(coordinator='127.0.0.1:' + port, num_processes=2, process_id=rank)

def refused(workdir, **changes):
    config = quickstart.get_config()
    config.update({'data': {'source': f'folder:{place / "photos"}', 'batch_size': 8}, 'schedule': {'epochs': 0, 'total_steps': 4}})
    config.update(changes)
    config.optimizer.update(warmup_epochs=0, freeze_last_layer_epochs=0)
    try:
        pretrain.train(config, workdir, in_loop.evaluations)
    except distributed.OtherProcessError as error:
        return str(error)

run = str(place / 'run')
text = refused(run, seed=rank, data={'workers': rank})
assert text == ('the processes of this run disagree, nothing was started:\\n  process 1: seed: found 1, process 0 has 0'), text
text = refused(run, run={'eval_every_steps': 100 * (1 + rank)})
assert text.endswith('process 1: run.eval_every_steps: found 200, process 0 has 100'), text
text = refused(run + str(rank))
assert f"process 1: --workdir: found '{run}1', process 0 has '{run}0'" in text, text
text = refused(run, data={'source': f'folder:{place / ("photos" if rank else "fewer")}'})
assert 'process 1: data.source: found 24 images' in text and 'compared with process 0: 1 new: ' in text, text
text = refused(run, eval={'gallery': f'folder:{place / ("photos" if rank else "fewer")}', 'query': f'folder:{place / "photos"}'})
assert 'the processes of this run see different images' in text and 'process 1: eval.gallery' in text and 'eval.query' not in text, text
assert not Path(run).exists()
print('agreed')
"""


def test_processes_that_disagree_end_at_once_and_name_which(tmp_path: Path, photos: Path):
    """Two real processes: another seed, another workdir, a folder that lacks an image. Nothing is compiled."""
    fewer = shutil.copytree(photos, tmp_path / "fewer")
    sorted(fewer.rglob("*.*"))[0].unlink()
    outputs = outputs_of_two(_TWO_PROCESSES, tmp_path)
    assert all("agreed" in output for output in outputs), "\n".join(outputs)
