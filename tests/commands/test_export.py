"""A training state to every format and back, bit for bit; PyTorch modules with the field's names load the files strictly."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax import load_backbone, sharding
from sere_jax.commands.export import export
from sere_jax.commands.export_command import main
from sere_jax.interop.files import read_tensors, write_tensors
from sere_jax.interop.tables import InteropError, flatten
from sere_jax.interop.timm import to_timm
from sere_jax.train.checkpoint import read_state
from sere_jax.weights.read import NETWORKS, networks_of, part, read_weights, resize_positions
from sere_jax.writing import WriteError
from tests import micro, saved_run
from tests.interop.test_timm import _equal
from tests.oracles.bicubic import interpolate

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, its state as NumPy trees) of a DINO + SERE run with local crops, masks and trained prototype lengths."""
    changes = {"masking": {"kind": "block"}, "head": {"norm_last_layer": False}}
    config = micro.config(changes, local_count=2)
    workdir = saved_run.checkpoint(tmp_path_factory.mktemp("run"), config, saved_run.state(config))
    return workdir, read_state(workdir)[0]


def _wanted(state, network: str, layout: str, with_heads: bool):
    """What a format has a place for."""
    params, batch_stats = (part(state, field) for field in NETWORKS[network])
    # iBOT's and SERE's teachers have no mask token.
    masked = layout == "npz" or (layout in ("ibot", "sere") and network == "student")
    backbone = {name: value for name, value in params["backbone"].items() if masked or name != "mask_token"}
    heads = {"npz": tuple(params), "sere": tuple(params), "dino": ("heads_dino",), "ibot": ("heads_dino",)}.get(layout, ())
    chosen = {name: params[name] for name in heads if name != "backbone" and with_heads}
    return {"backbone": backbone, **chosen}, batch_stats if with_heads and layout in ("npz", "sere") else {}


ALL = [
    ("timm", "x.safetensors", False),
    ("hf_vit", "x", False),
    ("npz", "x.npz", False),
    ("npz", "x.npz", True),
    *(
        (layout, f"x.{ending}", heads)
        for layout in ("dino", "ibot", "sere")
        for ending in ("safetensors", "pth")
        for heads in (False, True)
    ),
]


@pytest.mark.parametrize("network", ["teacher", "student"])
@pytest.mark.parametrize(("layout", "name", "with_heads"), ALL)
def test_round_trip_is_bit_exact(run, tmp_path, deviation, layout, name, with_heads, network):
    if name.endswith(".pth"):
        pytest.importorskip("torch")
    workdir, state = run
    export(workdir, tmp_path / name, layout=layout, network=network, with_heads=with_heads)
    found = read_weights(tmp_path / name)
    params, batch_stats = _wanted(state, network, layout, with_heads)
    assert _equal(found.params, params)
    assert _equal(found.batch_stats, batch_stats)
    assert (found.about["network"], found.about["step"], found.architecture.heads) == (network, 7, 3)
    pairs = ((flatten(found.params), flatten(params)), (flatten(found.batch_stats), flatten(batch_stats)))
    largest = max(float(np.abs(one[key] - other[key]).max()) for one, other in pairs for key in other)
    deviation("round trips", f"{layout} as {name}, {network}", largest, 0.0)


@pytest.mark.parametrize(
    ("layout", "ending"), [("npz", "npz"), *((layout, ending) for layout in ("dino", "ibot", "sere") for ending in ("safetensors", "pth"))]
)
def test_both_networks_in_one_file(run, tmp_path, layout, ending):
    if ending == "pth":
        pytest.importorskip("torch")
    workdir, state = run
    path = tmp_path / f"x.{ending}"
    export(workdir, path, layout=layout, network="both", with_heads=True)
    assert set(networks_of(path)) == set(NETWORKS)
    for network in NETWORKS:
        found = read_weights(path, network=network)
        params, batch_stats = _wanted(state, network, layout, True)
        assert _equal(found.params, params)
        assert _equal(found.batch_stats, batch_stats)
        alone = read_weights(path, network=network, with_heads=False)
        assert _equal(alone.params, {"backbone": params["backbone"]})
    assert read_weights(path).about["network"] == "teacher"


def test_a_disk_that_has_space_for_the_tensors_alone_gets_no_file(run, tmp_path, monkeypatch):
    """Else new tensors would stand beside the description of an older export."""

    def refused(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refused)
    with pytest.raises(WriteError, match="No space left"):
        export(run[0], tmp_path / "x.safetensors", layout="timm", network="teacher")
    assert os.listdir(tmp_path) == []


def test_what_a_layout_has_no_place_for_is_told(run, tmp_path):
    workdir, _ = run
    told = export(workdir, tmp_path / "x.safetensors", layout="dino", with_heads=True).report
    heads = "heads_channel, heads_channel_local, heads_spatial, heads_spatial_local"
    assert told == (f"left         mask_token, {heads}: the dino layout has no place for it",)
    token = "left         mask_token of the teacher: in iBOT's and SERE's files only the student has one"
    assert export(workdir, tmp_path / "y.safetensors", layout="sere", with_heads=True).report == (token,)
    assert export(workdir, tmp_path / "y.safetensors", layout="sere", with_heads=True, network="student").report == ()
    assert export(workdir, tmp_path / "z.npz", layout="npz", with_heads=True).report == ()


@pytest.mark.slow
def test_alone_on_one_device_without_torch(tmp_path):
    """A state that eight devices hold in parts (as the suite has), exported by a process that has one and no torch."""
    config = micro.config()
    state = saved_run.state(config)
    # The large tensors of one network alone: eight fake devices on a core take long over many collectives.
    shardings = sharding.state_shardings(state.method.teacher, sharding.make_mesh(8), min_size=2000)
    split = [leaf for leaf in jax.tree.leaves(shardings) if not leaf.is_fully_replicated]
    assert len(split) > 5 and all(len(leaf.device_set) == 8 for leaf in split)
    saved_run.checkpoint(
        tmp_path / "run", config, micro.with_method(state, teacher=jax.tree.map(jax.device_put, state.method.teacher, shardings))
    )
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from sere_jax.commands.export_command import main\n"
        "code = main(sys.argv[1:])\n"
        "import jax; print(code, jax.device_count())"
    )
    arguments = [f"--checkpoint={tmp_path}/run", f"--output={tmp_path}/x.safetensors", "--format=sere", "--with_heads"]
    environ = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 1"
    assert _equal(read_weights(tmp_path / "x.safetensors").params, micro.copies(state.method.teacher))


def test_the_pth_is_nested_and_named_as_dino_loads_it(run, tmp_path):
    torch = pytest.importorskip("torch")
    workdir, state = run
    export(workdir, tmp_path / "x.pth", layout="dino", network="both", with_heads=True)
    saved = torch.load(tmp_path / "x.pth", weights_only=True)
    assert saved.keys() == {"student", "teacher", "sere_jax"}
    assert all(name.startswith(("module.backbone.", "module.head.")) for name in saved["student"])
    assert all(name.startswith(("backbone.", "head.")) for name in saved["teacher"])
    expected = to_timm(state["method"]["teacher"]["backbone"])["norm.weight"]
    np.testing.assert_array_equal(saved["teacher"]["backbone.norm.weight"].numpy(), expected)


def test_plain_dino_names_load_strictly_into_the_oracles_vit(run, tmp_path, deviation):
    torch = pytest.importorskip("torch")
    from tests.oracles.torch_vit import ViT

    workdir, _ = run
    export(workdir, tmp_path / "x.safetensors", layout="dino", network="teacher")
    tensors = {name.removeprefix("backbone."): torch.from_numpy(t) for name, t in read_tensors(tmp_path / "x.safetensors")[0].items()}
    oracle = ViT(width=48, depth=2, heads=3, patch_size=4, image_size=16)
    oracle.load_state_dict(tensors, strict=True)
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        stages = oracle(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    features = load_backbone(tmp_path / "x.safetensors")(jnp.asarray(images))
    # float32 on both sides
    deviation("tokens of exports", "dino, cls", np.abs(features.cls - stages.cls.numpy()).max(), 1e-4)
    deviation("tokens of exports", "dino, patches", np.abs(features.patches.reshape(2, 16, 48) - stages.patches.numpy()).max(), 1e-4)


def test_timm_loads_the_export_strictly_and_gives_the_same_tokens(run, tmp_path, deviation):
    torch = pytest.importorskip("torch")
    # timm is no requirement: where it is there, and its torchvision fits this torch, it has the last word.
    timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))
    workdir, _ = run
    export(workdir, tmp_path / "x.safetensors", layout="timm")
    tensors = {name: torch.from_numpy(tensor) for name, tensor in read_tensors(tmp_path / "x.safetensors")[0].items()}
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, in_chans=3, embed_dim=48, depth=2, num_heads=3, num_classes=0
    ).eval()
    model.load_state_dict(tensors, strict=True)
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    features = load_backbone(tmp_path / "x.safetensors")(jnp.asarray(images))
    deviation("tokens of exports", "timm, cls", np.abs(features.cls - theirs[:, 0]).max(), 1e-4)
    deviation("tokens of exports", "timm, patches", np.abs(features.patches.reshape(2, 16, 48) - theirs[:, 1:]).max(), 1e-4)


def test_one_format_becomes_another_by_way_of_files(run, tmp_path):
    workdir, state = run
    export(workdir, tmp_path / "a.safetensors", layout="dino", network="both")
    written = export(tmp_path / "a.safetensors", tmp_path / "b", layout="hf_vit", network="student")
    assert "recognised   a DINO checkpoint; network student" in written.report
    backbone = {name: value for name, value in state["params"]["backbone"].items() if name != "mask_token"}
    jax.tree.map(np.testing.assert_array_equal, load_backbone(tmp_path / "b").params, backbone)


def test_whose_weights_they_are_is_passed_on(run, tmp_path):
    workdir, state = run
    write_tensors(tmp_path / "theirs.safetensors", to_timm(state["method"]["teacher"]["backbone"]), {})
    export(tmp_path / "theirs.safetensors", tmp_path / "b.safetensors", layout="dino", heads=3)
    _, metadata = read_tensors(tmp_path / "b.safetensors")
    assert "Weights of others, read from theirs.safetensors" in metadata["licence"]
    assert metadata["imported_from"] == "timm"
    export(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert read_tensors(tmp_path / "c.safetensors")[1]["licence"] == metadata["licence"]
    export(workdir, tmp_path / "d.safetensors")
    export(tmp_path / "d.safetensors", tmp_path / "e.safetensors")
    assert "Apache-2.0" in read_tensors(tmp_path / "e.safetensors")[1]["licence"]


def test_positions_are_resized_where_asked_and_it_is_told(run, tmp_path):
    workdir, state = run
    written = export(workdir, tmp_path / "x.safetensors", image_size=24)
    assert written.report[0] == "resized      position embedding from 4 x 4 to 6 x 6 patches"
    tensors, metadata = read_tensors(tmp_path / "x.safetensors")
    assert (metadata["architecture"]["image_size"], metadata["position_embedding_resized_from"]) == (24, 16)
    assert metadata["preprocess"]["size"] == 24
    stored = state["method"]["teacher"]["backbone"]["pos_embed"]
    expected = interpolate(stored[0, 1:].reshape(4, 4, 48), (6, 6), (1.5, 1.5)).reshape(36, 48)
    np.testing.assert_allclose(tensors["pos_embed"][0, 1:], expected, atol=1e-6)  # float64 against float32's rounding
    np.testing.assert_array_equal(tensors["pos_embed"][:, :1], stored[:, :1])
    assert load_backbone(tmp_path / "x.safetensors").module.image_size == 24
    with pytest.raises(InteropError, match="image_size: found 18, expected a multiple of the patch size 4"):
        load_backbone(workdir, image_size=18)


def test_resizing_is_pytorchs_bicubic_interpolation():
    torch = pytest.importorskip("torch")
    stored = np.random.default_rng(0).normal(size=(1, 17, 8)).astype(np.float32)
    square = torch.from_numpy(stored[0, 1:].reshape(1, 4, 4, 8).transpose(0, 3, 1, 2).copy())
    for side in (3, 7):
        theirs = torch.nn.functional.interpolate(square, size=(side, side), mode="bicubic")[0].numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(resize_positions(stored, side)[0, 1:], theirs.reshape(-1, 8), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=hf_vit", "--output=x.safetensors"], "expected a directory for the format hf_vit"),
        (["--format=timm", "--output=x.pth"], r"expected a name that ends in .safetensors for the format timm"),
        (["--format=ibot", "--output=x.npz"], r"expected a name that ends in .safetensors or .pth"),
        (["--format=timm", "--output=x.safetensors", "--network=both"], "the timm layout holds one network"),
        (["--format=dino", "--output=x.pth", "--with_heads", "--step=6"], "step 6"),
        (["--format=hf_vit", "--output=x", "--with_heads"], "the hf_vit layout has no heads"),
    ],
)
def test_what_does_not_go_together_is_told(run, capsys, arguments, message):
    assert main([f"--checkpoint={run[0]}", *arguments]) == 2
    assert message in capsys.readouterr().err
