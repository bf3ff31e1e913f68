"""Trained segmentation heads: windows against a loop, rates by hand, and whole trainings on images of coloured rectangles."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

from configs.eval import imagenet_s, segmentation_linear, upernet
from sere_jax import sharding
from sere_jax.commands import evaluate
from sere_jax.data.annotations.maps import decode_label_map
from sere_jax.evals import protocols
from sere_jax.evals.network import EvalError, Network
from sere_jax.evals.segmentation.labelling import Labelling, labelling, open_masked
from sere_jax.evals.segmentation.windows import slide
from sere_jax.evals.trained import layers, run, segmentation, segmentation_test
from sere_jax.evals.trained.segmentation_settings import Settings
from sere_jax.evals.trained.segmentation_test import Tester
from sere_jax.evals.trained.segmenter import Batch, Model
from sere_jax.models.norm import join_statistics
from sere_jax.models.resnet import ResNet
from sere_jax.train.checkpoint import read_state
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.state import State
from sere_jax.train.update import make_update
from tests import micro
from tests.evals.segmentation import micro_masks
from tests.evals.trained import micro_training
from tests.oracles import torch_upernet, torch_vit
from tests.parity import weights

SMALL = {
    "size": 16,
    "limits": (48, 24),
    "stride": 10,
    "batch_size": 8,
    "warmup_steps": 2,
    "log_every_steps": 5,
    "channels": 8,
    "random_init": False,
    "distortion": False,
    "panels": 2,
}


def linear(train: str, test: str, **changes) -> ConfigDict:
    config = segmentation_linear.get_config()
    config.update({"train": train, "test": test, "blocks": (1,), "steps": 30, "eval_every_steps": 15, "learning_rate": 0.05, **SMALL})
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> tuple[str, str]:
    directory = tmp_path_factory.mktemp("masked")
    return micro_masks.masked(directory / "train", 8), micro_masks.masked(directory / "test", 3, seed=1)


@pytest.mark.parametrize(("height", "width"), [(9, 14), (6, 6), (4, 11), (3, 2)])
def test_sliding_windows_are_the_mean_of_a_loop(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    window, stride = 6, 4

    def of_windows(images: np.ndarray) -> np.ndarray:
        own_mean = images.astype(np.float32).mean(axis=(1, 2, 3), keepdims=True)  # so that every window answers differently
        return np.concatenate([images[..., :1] + own_mean, images[..., 1:2] - own_mean], axis=-1).astype(np.float32)

    padded = np.full((max(height, window), max(width, window), 3), 7, np.uint8)
    padded[:height, :width] = image
    total, count = np.zeros((*padded.shape[:2], 2)), np.zeros((*padded.shape[:2], 1))
    for row in range(-(-max(height - window, 0) // stride) + 1):
        for column in range(-(-max(width - window, 0) // stride) + 1):
            top, left = min(row * stride, padded.shape[0] - window), min(column * stride, padded.shape[1] - window)
            total[top : top + window, left : left + window] += of_windows(padded[None, top : top + window, left : left + window])[0]
            count[top : top + window, left : left + window] += 1
    found = slide(image, of_windows, window=window, stride=stride, fill=(7, 7, 7), batch=4)
    np.testing.assert_allclose(found, (total / count)[:height, :width], rtol=1e-5)
    with pytest.raises(EvalError, match="stride: found 7, expected at most the window's 6"):
        slide(image, of_windows, window=6, stride=7, fill=(0, 0, 0))


def test_the_rate_is_mmsegmentations(sources):
    settings = evaluate.settings(linear(*sources, steps=100, warmup_steps=10, learning_rate=1.0), [])
    rate = segmentation.learning_rate(settings)
    for step in (0, 3, 10, 50, 99):
        poly = 1 - step / 100
        expected = poly * (1 - (1 - step / 10) * (1 - 1e-6)) if step < 10 else poly
        assert float(rate(jnp.int32(step))) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def _changed(spec: str, number: str = "00") -> None:
    """One more pixel in an image of a source and in its label map."""
    _, masks, _, images = spec.split(":")
    for directory in (masks, images):
        path = Path(directory, f"{number}.png")
        with Image.open(path) as image:
            larger = image.resize((image.width + 1, image.height), Image.Resampling.NEAREST)
        larger.save(path)


def test_the_images_that_any_process_cannot_read_are_left_out_of_the_count(tmp_path, monkeypatch):
    test = micro_masks.masked(tmp_path / "test", 4)
    source, network, settings = open_masked("test", test), micro_training.network(), evaluate.settings(linear(train=test, test=test), [])
    tester = Tester(Model(network, settings, 3), network, source, labelling(source), settings)
    tester._left_out.add(source, 0, "a.png", "damaged")
    monkeypatch.setattr(segmentation_test, "gather_texts", lambda text: [text, '["b.png"]'])  # two processes, half of the images each
    assert tester.images() == (test, 2, ["a.png", "b.png"])


def _tester(tmp_path: Path, logits, **changes) -> Tester:
    """A tester whose network is a function: uint8 images -> logits of their pixels."""
    test = micro_masks.masked(tmp_path / "test", 1)
    network, settings = micro_training.network(), evaluate.settings(linear(train=test, test=test, **changes), [])
    tester = Tester(Model(network, settings, 3), network, open_masked("test", test), labelling(open_masked("test", test)), settings)
    tester._run = lambda images: logits(np.asarray(images))
    return tester


@pytest.mark.parametrize("stride", [0, 10])
def test_scales_and_the_mirror_image_give_the_mean_of_their_logits(stride, tmp_path):
    """Of a sum of the levels of red and twice the column, against torch's interpolation."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)

    def red(images: np.ndarray) -> np.ndarray:
        return np.concatenate([images[..., :1], 255.0 - images[..., :1]], axis=-1).astype(np.float32)

    tester = _tester(tmp_path, red, stride=stride, limits=(48, 24), test_scales=(1.0, 2.0), test_flip=True)
    large = segmentation_test.resized(pixels, 48, 64)
    shrunk = torch.nn.functional.interpolate(torch.tensor(red(large[None])).permute(0, 3, 1, 2), (24, 32), mode="bilinear")
    expected = (red(pixels) + shrunk[0].permute(1, 2, 0).numpy()) / 2  # the mirror image says the same of every pixel
    np.testing.assert_allclose(tester._logits(pixels, ()), expected, atol=1e-3)
    assert "mean over these limits times 1, 2" in segmentation._how(tester._settings)


@pytest.mark.parametrize(("shape", "least", "sides"), [((3, 1000), 1, (4, 1000)), ((1, 1), 2, (8, 8)), ((9, 14), 1, (8, 12))])
def test_a_whole_image_has_whole_patches_however_thin_it_is(shape, least, sides):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = segmentation_test.whole_patches(image, 4, least)
    assert found.shape == (*sides, 3)
    rows, columns = (np.minimum(np.arange(new), old - 1) for new, old in zip(sides, shape, strict=True))
    assert (found == image[rows][:, columns]).all()


def test_crops_do_not_count_the_numbers_that_the_loss_ignores(sources):
    """0 of ADE20K among them."""
    settings = evaluate.settings(linear(*sources), [])
    made = segmentation.crops(Labelling(("wall", "sky"), zero_ignored=True), micro_training.network(), settings)
    assert (made.ignored, made.others_ignored) == (255, (0,))
    made = segmentation.crops(Labelling(("wall", "sky"), ignored=(7, 9)), micro_training.network(), settings)
    assert (made.ignored, made.others_ignored) == (7, (9,))


def test_a_test_set_of_other_classes_is_refused_before_training(sources, tmp_path):
    other = micro_masks.masked(tmp_path / "other", 1)
    Path(other.split(":")[1], "classes.txt").write_text("red\nground\ngreen\n")
    with pytest.raises(EvalError, match="test: .* names other classes of its label maps than"):
        evaluate.run(linear(sources[0], other), [micro_training.network()], tmp_path)
    assert not (tmp_path / "eval").exists()


def test_networks_whose_names_make_one_file_name_keep_their_own_files(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(
        segmentation.run, "train", lambda training, directory: run.Trained(directory, *2 * [run.Weights(*training.init(), 1)])
    )
    networks = [micro_training.network()._replace(name=name) for name in ("A b", "a-b")]
    evaluate.run(linear(*sources, save_predictions=True), networks, tmp_path)
    names = ("segmentation_linear-a-b", "segmentation_linear-a-b-2")
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == list(names)
    assert all(len(list((tmp_path / "eval" / f"{name}-predictions").iterdir())) == 3 for name in names)
    assert all((tmp_path / "eval" / f"{name}-classes.csv").is_file() for name in names)


@pytest.mark.parametrize("part", ["train", "test"])
def test_another_training_or_test_set_is_another_training(part, tmp_path):
    specs = {"train": micro_masks.masked(tmp_path / "train", 8), "test": micro_masks.masked(tmp_path / "test", 2, seed=1)}
    network, settings = micro_training.network(), evaluate.settings(linear(**specs), [])

    def training(settings: Settings = settings) -> run.Training:
        train, test = open_masked("train", settings.train), open_masked("test", settings.test)
        model, classes = Model(network, settings, 3), labelling(train)
        return segmentation._training(network, settings, model, Tester(model, network, test, classes, settings), classes, train, test)

    before = training()
    shutil.copytree(tmp_path / part, tmp_path / "moved" / part)
    moved = specs[part].replace(str(tmp_path), f"{tmp_path}/moved")
    assert training(settings._replace(panels=0, stride=0)).description == before.description
    assert training(settings._replace(**{part: moved})).description == before.description
    with Checkpoints(tmp_path / "run" / "checkpoints", every_steps=1) as checkpoints:
        checkpoints.save(1, {"weight": jnp.zeros(2)}, before.description, force=True)
    _changed(specs[part])
    after = training()
    assert run.place(tmp_path, "p", "n", after.description) != run.place(tmp_path, "p", "n", before.description)
    with pytest.raises(EvalError, match=f"^images.{part}: found '.*', expected '.*', with which the checkpoints in .*run were made$"):
        run.train(after, tmp_path / "run")


@pytest.mark.slow
def test_a_linear_head_learns_is_resumed_and_read_again(sources, tmp_path):
    network = micro_training.network()
    evaluate.run(linear(*sources), [network], tmp_path)
    report = json.loads((tmp_path / "eval" / "segmentation_linear.json").read_text())
    (row,) = report["results"]
    assert row["scores"]["miou"] > 0.35  # always the most frequent class: about 0.17
    lines = [json.loads(line) for line in Path(row["training"], "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "test/miou" in line] == [15, 30]
    assert lines[-1]["test/miou"] == pytest.approx(row["scores"]["miou"], abs=1e-6)
    evaluate.run(linear(*sources, save_predictions=True), [network], tmp_path)  # finished: only read
    again = json.loads((tmp_path / "eval" / "segmentation_linear.json").read_text())["results"][0]
    assert again["scores"] == row["scores"] and again["training"] == row["training"]
    assert len(list((tmp_path / "eval" / "segmentation_linear-micro-predictions").glob("*.png"))) == 3
    whole = linear(*sources, stride=0, test_flip=True)
    evaluate.run(whole, [network], tmp_path)  # another test of the same training
    assert json.loads((tmp_path / "eval" / "segmentation_linear.json").read_text())["results"][0]["training"] == row["training"]


def _batch(rng: np.random.Generator, count: int) -> Batch:
    images = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return Batch(images, rng.integers(-1, 3, (count, 16, 16)).astype(np.int32), np.zeros(count, bool))


def _upernet(sources: tuple[str, str], **changes) -> tuple[Model, Settings]:
    config = upernet.get_config()
    config.update({"train": sources[0], "test": sources[1], "blocks": (0, 0, 1, 1), "steps": 20, **SMALL, **changes})
    settings = evaluate.settings(config, [])
    return Model(micro_training.network(), settings, 3), settings


@pytest.mark.slow
def test_three_steps_of_upernet_are_torchs(sources):
    plain = {"dropout": 0.0, "drop_path": 0.0, "learning_rate": 0.01, "warmup_steps": 4}
    model, settings = _upernet(sources, **plain)
    params, running = model.init()
    heads = {name: micro.random_like(params[name], number, 0.1) for number, name in enumerate(("necks", "head", "auxiliary"))}
    params = jax.tree.map(jnp.asarray, params) | heads
    optimizer = segmentation.optimizer(settings, model)
    update = micro.jit(make_update(loss=model.loss, optimizer=optimizer))
    state = State(jnp.int32(0), params, running, optimizer.init(params), jnp.int32(0), {})
    oracle = torch_upernet.Segmenter(torch_vit.ViT(48, 2, 3, 4, 16), 48, (0, 0, 1, 1), 8, 3).double()
    weights.load(oracle, params, running)
    trainer = torch_upernet.Trainer(oracle, depth=2, decay=0.9, weight_decay=0.05, peak=0.01, warmup=4, total=20)
    rng, network = np.random.default_rng(0), micro_training.network()
    for _ in range(3):
        one = _batch(rng, 4)
        normal = (one.images / 255 - np.array(network.mean)) / np.array(network.std)
        expected = trainer.step(torch.tensor(normal.transpose(0, 3, 1, 2)), torch.tensor(one.targets.astype(np.int64)))
        state, metrics = update(state, one)
        assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)
    found = weights.tensors(state.params, state.batch_stats)
    for name, value in weights.arrays({**dict(oracle.named_parameters()), **dict(oracle.named_buffers())}).items():
        if name.endswith("attn.qkv.bias"):  # keys' biases have no gradient but rounding, which Adam makes as large as any
            found[name], value = (np.delete(x, slice(48, 96)) for x in (found[name], value))
        # Adam divides gradients by their own size: those near rounding move by the rate whatever their sign. One in a thousand of a tensor.
        if not name.endswith("num_batches_tracked"):
            assert weights.relative(found[name], value) < 2e-3, name


@pytest.mark.slow
def test_upernet_trains_alike_on_one_and_eight_devices(sources):
    model, settings = _upernet(sources, dropout=0.1, drop_path=0.1)
    params, running = model.init()
    assert set(params) == {"backbone", "necks", "head", "auxiliary"}
    optimizer = segmentation.optimizer(settings, model)
    update = micro.jit(make_update(loss=model.loss, optimizer=optimizer))
    state = State(jnp.int32(0), params, running, optimizer.init(params), jnp.int32(0), {})
    one, mesh = _batch(np.random.default_rng(0), 8), sharding.make_mesh()
    after, metrics = update(state, one)
    shared, beside = update(jax.device_put(state, sharding.replicated(mesh)), sharding.to_global(one, mesh))
    assert float(beside["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)  # float32, summed in another order
    assert float(metrics["loss"]) == pytest.approx(float(metrics["pixels"] + 0.4 * metrics["auxiliary"]), rel=1e-6)
    ours, theirs = jax.tree.leaves(after.batch_stats), jax.tree.leaves(shared.batch_stats)
    assert all(np.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
def test_upernet_learns_coloured_rectangles(sources, tmp_path):
    config = upernet.get_config()
    config.update({"train": sources[0], "test": sources[1], "blocks": (0, 0, 1, 1), "steps": 60, "eval_every_steps": 30, **SMALL})
    config.update({"learning_rate": 0.003, "layer_decay": 1.0, "drop_path": 0.0})
    evaluate.run(config, [micro_training.network()], tmp_path)
    (row,) = json.loads((tmp_path / "eval" / "upernet.json").read_text())["results"]
    assert row["scores"]["miou"] > 0.6


@pytest.mark.slow
def test_imagenet_s_trains_and_writes_the_archive_of_its_server(sources, tmp_path):
    config = imagenet_s.get_config("50")
    assert (config.steps, config.warmup_steps, config.batch_size) == (200, 10, 256)
    config.update(
        {"train": sources[0], "test": sources[1], "steps": 12, "warmup_steps": 2, "batch_size": 8, "size": 16, "target_stride": 4}
    )
    config.update({"limits": (1000, 20), "ignore": (255,), "eval_every_steps": 6, "learning_rate": 0.02, "random_init": True})
    config.submission = sources[1].split(":", 2)[2]
    evaluate.run(config, [micro_training.network()], tmp_path)
    report = json.loads((tmp_path / "eval" / "imagenet_s.json").read_text())
    assert [row["name"] for row in report["results"]] == ["random init", "micro"] and report["settings"]["absent"] == "zero"
    with zipfile.ZipFile(tmp_path / "eval" / "imagenet_s-micro-submission.zip") as archive:
        assert archive.namelist() == ["00.png", "01.png", "02.png"]
        predicted = decode_label_map(archive.read("00.png"), coding="red_green")
    assert predicted.shape == (40, 60) and predicted.max() < 3


def test_what_does_not_fit_a_network_is_told_before_training(sources):
    def model_of(network=None, **changes):
        return Model(network or micro_training.network(), evaluate.settings(linear(*sources, **changes), []), 3)

    with pytest.raises(EvalError, match="blocks: found 11, expected at most 1: micro has 2"):
        model_of(blocks=(11,))
    with pytest.raises(EvalError, match="size of micro: found 18, expected a multiple"):
        model_of(size=18)
    with pytest.raises(EvalError, match="size of micro: found 4, expected at least 8: UperNet"):
        model_of(head="upernet", size=4)
    with pytest.raises(EvalError, match="dilated_stages: found 1, and micro is a ViT without stages; expected 0"):
        model_of(dilated_stages=1)
    resnet = micro_training.network()._replace(module=ResNet(stages=(1, 1), stem=4), depth=0, whole_patches=False)
    with pytest.raises(EvalError, match="head: found upernet, and micro has 2 stages; expected 4, or linear"):
        model_of(resnet, head="upernet", blocks=(0, 0, 1, 1))
    with pytest.raises(EvalError, match="dilated_stages: found 2, expected at most 1: micro has 2 stages"):
        model_of(resnet, dilated_stages=2)
    assert model_of(resnet).training.taps == ()
    lines = protocols.mistakes(linear(*sources, head="upernet", stride=20, warmup_steps=100))
    assert [line.partition(":")[0] for line in lines] == ["warmup_steps", "blocks", "stride"]


def _resnet() -> Network:
    module = ResNet(stages=(1, 1, 1, 1), stem=4, image_size=32)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = join_statistics(variables["params"], variables["batch_stats"])
    return micro_training.network()._replace(module=module, params=params, init=None, depth=0, whole_patches=False, patch=32, size=32)


def test_a_resnet_has_a_layer_for_each_bottleneck_block():
    """ResNet-50: 17 layers below the head (SPEC 3.1), the last of them block 2 of stage 4."""
    config = imagenet_s.get_config("300,resnet50,batch_size=64")
    assert (config.layer_decay, config.weight_decay, config.steps, config.batch_size) == (0.4, 5e-4, 1200, 64)
    factor = layers.layer_decay(config.layer_decay, stages=(3, 4, 6, 3))
    paths = ("conv1/kernel", "bn1/scale", "layer1_0/conv2/kernel", "layer2_0/conv1/kernel", "layer4_2/bn3/bias")
    assert [factor(f"backbone/{path}") for path in paths] == pytest.approx([0.4**17, 0.4**17, 0.4**16, 0.4**13, 0.4**1])
    assert factor("head/classifier/kernel") == 1


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [upernet, imagenet_s], ids=["upernet", "imagenet_s"])
def test_a_resnet_is_trained_and_tested(protocol, sources, tmp_path):
    config = protocol.get_config()
    config.update({"train": sources[0], "test": sources[1], "ignore": (255,), "dilated_stages": 1, "steps": 2, "eval_every_steps": 2})
    config.update({"warmup_steps": 1, "batch_size": 8, "size": 32, "limits": (48, 32), "channels": 8, "panels": 0})
    config.stride = min(config.stride, 20)
    network = _resnet()
    evaluate.run(config, [network], tmp_path)
    (row,) = json.loads((tmp_path / "eval" / f"{config.protocol}.json").read_text())["results"]
    assert 0 < row["scores"]["pixel_accuracy"] < 1
    state, _ = read_state(row["training"])
    before, after = network.params["conv1"]["kernel"], state["params"]["backbone"]["conv1"]["kernel"]
    assert not np.array_equal(before, after)  # the stem is trained too, slowly
    assert not np.allclose(state["batch_stats"]["backbone"]["bn1"]["mean"], 0)
