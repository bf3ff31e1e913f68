"""Every mistake of a config becomes one line that names the key, what was found, what was expected and the nearest choice."""

from __future__ import annotations

import importlib
import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import common
from sere_jax.config import check as rules
from sere_jax.config import lengths
from sere_jax.config.names import divisors, flatten

EXPERIMENTS = ("quickstart", "dino_vits16", "dino_sere_vits16")


def _config(**changes: object) -> ConfigDict:
    """The defaults with the bundled photographs; `a__b=value` changes `a.b`, and adds it where it is not there."""
    config = common.pretrain()
    config.data.source = "bundled"
    for key, value in changes.items():
        group, _, name = key.rpartition("__")
        with config.unlocked(), config.ignore_type():
            (config[group] if group else config)[name] = value
    return config


def _mistakes(devices: int = 1, processes: int = 1, **changes: object) -> list[str]:
    return rules.mistakes(_config(**changes), devices=devices, processes=processes)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_valid_once_they_have_a_source(name):
    config = importlib.import_module(f"configs.{name}").get_config("source=bundled")
    rules.validate(config, devices=8, processes=2)


def test_defaults_lack_only_the_source():
    assert [line.partition(":")[0] for line in rules.mistakes(common.pretrain(), devices=1, processes=1)] == ["data.source"]


_RESNET = {"model__name": "resnet", "model__variant": "resnet50", "model__drop_path": 0.0, "relation__heads": 8}
_MAE = {"recipe": "mae", "views__local_count": 0, "views__global_count": 1}
_MAE |= {"masking__kind": "random", "masking__ratio": (0.75, 0.75), "masking__ratio_var": (0.0, 0.0)}

_FIVE = {"model__in_channels": 5, "photometry__mean": (0.5,) * 5, "photometry__std": (0.2,) * 5}
_FIVE |= {"photometry__saturation": 0.0, "photometry__hue": 0.0, "photometry__gray_prob": 0.0}

_IBOT = {"recipe": "ibot", "masking__kind": "block"}
_EVALUATED = {"run__eval_every_steps": 5, "eval__gallery": "bundled:gallery", "eval__query": "bundled:query"}

# (changes, devices, processes, the line)
MISTAKES = [
    ({"data__sourc": "x"}, 1, 1, "data.sourc: unknown key; nearest: data.source"),
    (
        {"model__variant": "vit_s"},
        1,
        1,
        "model.variant: found 'vit_s', expected one of vitti, vits, vitb, vitl, resnet50, custom; nearest: vits",
    ),
    ({"model__depth": 2.5}, 1, 1, "model.depth: found 2.5, expected a whole number of at least 0"),
    ({"optimizer__accumulate_steps": True}, 1, 1, "optimizer.accumulate_steps: found True, expected a whole number of at least 1"),
    ({"optimizer__decay_bias": 1}, 1, 1, "optimizer.decay_bias: found 1, expected true or false"),
    ({"optimizer__base_lr": math.nan}, 1, 1, "optimizer.base_lr: found nan, expected a number above 0 and at most 100"),
    ({"optimizer__clip_grad": math.inf}, 1, 1, "optimizer.clip_grad: found inf, expected a number of at least 0"),
    ({"optimizer__weight_decay": -0.1}, 1, 1, "optimizer.weight_decay: found -0.1, expected a number of at least 0"),
    ({"views__flip_prob": 1.5}, 1, 1, "views.flip_prob: found 1.5, expected a number of at least 0 and at most 1"),
    (
        {"views__global_scale": (0.5, 0.1)},
        1,
        1,
        "views.global_scale: found (0.5, 0.1), expected 2 values in rising order, each a number above 0 and at most 1",
    ),
    (
        {"photometry__blur_prob": (1.0, 0.1)},
        1,
        1,
        "photometry.blur_prob: found (1.0, 0.1), expected 3 values, each a number of at least 0 and at most 1",
    ),
    ({"data__batch_size": 511}, 1, 1, None),
    ({"data__batch_size": 511}, 8, 2, "data.batch_size: found 511, expected a multiple of 8 (8 devices, 2 processes); nearest: 512"),
    (
        {"data__batch_size": 520, "optimizer__accumulate_steps": 4},
        8,
        1,
        "data.batch_size: found 520, expected a multiple of 32 (8 devices, 4 accumulate_steps); nearest: 512",
    ),
    ({"views__global_size": 225}, 1, 1, "views.global_size: found 225, expected a multiple of model.patch_size = 16; nearest: 224"),
    ({"views__local_size": 97}, 1, 1, "views.local_size: found 97, expected a multiple of model.patch_size = 16; nearest: 96"),
    ({"views__local_size": 97, "views__local_count": 0}, 1, 1, "views.local_size: found 97, which is never read: views.local_count is 0"),
    (
        {"model__variant": "custom", "model__width": 100, "model__depth": 2, "model__heads": 3},
        1,
        1,
        "model.width: found 100, expected a multiple of model.heads = 3",
    ),
    ({"model__variant": "custom", "model__width": 96, "model__heads": 3}, 1, 1, "model.depth: found 0, expected a number of at least 1"),
    ({"model__heads": 12}, 1, 1, None),
    (
        {"model__variant": "resnet50"},
        1,
        1,
        "model.variant: found 'resnet50', expected one of vitti, vits, vitb, vitl, custom with model.name = vit",
    ),
    ({"model__positions": "sincos_rows"}, 1, 1, None),
    ({"model__zero_init_residual": True}, 1, 1, "model.zero_init_residual: found True, which is never read: model.name = vit"),
    ({"recipe": "mocov3"}, 1, 1, "views.local_count: found 4, expected 0: no loss of mocov3 looks at local crops"),
    ({"recipe": "mocov3_sere"}, 1, 1, None),
    (_RESNET, 1, 1, None),
    (_MAE, 1, 1, None),
    (_MAE | {"views__global_count": 2}, 1, 1, None),
    (_MAE | {"masking__kind": "block"}, 1, 1, "masking.kind: found 'block', expected random: mae hides the same number of patches"),
    (_MAE | {"masking__ratio": (0.5, 0.75)}, 1, 1, "masking.ratio: found (0.5, 0.75), expected (0.5, 0.5): mae hides the same number"),
    (_MAE | {"masking__ratio": (0.001, 0.001)}, 1, 1, "masking.ratio: found 0.001 of 196 patches, expected some hidden and some visible"),
    (_MAE | {"mae__decoder_width": 500}, 1, 1, "mae.decoder_width: found 500, expected a multiple of 4 and of mae.decoder_heads = 16"),
    (_MAE | {"views__local_count": 1}, 1, 1, "views.local_count: found 1, expected 0: no loss of mae looks at local crops"),
    ({"views__global_count": 1}, 1, 1, "views.global_count: found 1, expected 2: dino_sere compares two global crops"),
    (_RESNET | {"relation__heads": 0}, 1, 1, "relation.heads: found 0 (the ViT's), expected a divisor of the width"),
    (_RESNET | {"relation__heads": 6}, 1, 1, "relation.heads: found 6, expected a divisor of the model's width 2048"),
    (_RESNET | {"relation__heads": 0, "recipe": "dino", "views__global_size": 225, "views__local_size": 97}, 1, 1, None),
    (_RESNET | {"views__global_size": 225}, 1, 1, "views.global_size: found 225, expected a multiple of 32: dino_sere compares places"),
    (_RESNET | {"recipe": "dinoplus", "views__local_size": 100}, 1, 1, "views.local_size: found 100, expected a multiple of 32"),
    (_RESNET | {"views__local_count": 0}, 1, 1, None),
    (_RESNET | {"masking__kind": "block"}, 1, 1, "masking.kind: found 'block', which is never read: no loss of recipe = dino_sere"),
    (_RESNET | {"model__drop_path": 0.1}, 1, 1, "model.drop_path: found 0.1, expected 0.0: a ResNet has no drop path"),
    (
        _RESNET | {"model__variant": "custom", "model__width": 40},
        1,
        1,
        "model.width: found 40, expected channels of the last map, a multiple of 32",
    ),
    ({"model__width": 100}, 1, 1, "model.width: found 100, expected 0 (or 384, the width of vits)"),
    ({"relation__heads": 5}, 1, 1, "relation.heads: found 5, expected a divisor of the model's width 384; nearest: 4"),
    ({"relation__alpha": 3.0, "relation__beta": 2.0}, 1, 1, "relation.alpha: found alpha + beta = 5, expected at most 4"),
    ({"relation__alpha": 3.0, "relation__beta": 2.0, "relation__image_weight": "paper"}, 1, 1, None),
    ({"recipe": "dino_spatial", "relation__alpha": 3.0}, 1, 1, None),
    ({"recipe": "dino_spatial", "relation__alpha": 3.5}, 1, 1, "relation.alpha: found alpha = 3.5, expected at most 3"),
    ({"recipe": "dino_channel", "relation__beta": 3.5}, 1, 1, "relation.beta: found beta = 3.5, expected at most 3"),
    ({"optimizer__warmup_epochs": 101}, 1, 1, "optimizer.warmup_epochs: found 101, expected at most schedule.epochs = 100"),
    ({"optimizer__warmup_epochs": 101, "schedule__total_steps": 10**6}, 1, 1, None),
    ({"optimizer__min_lr": 1.0}, 1, 1, "optimizer.min_lr: found 1, expected at most the peak, base_lr x batch_size / 256 = 0.001"),
    ({"model__in_channels": 1}, 1, 1, "photometry.mean: found 3 values, expected one for each of model.in_channels = 1"),
    ({"model__in_channels": 1}, 1, 1, "photometry.saturation: found 0.2, expected 0.0: it needs red, green and blue"),
    (_FIVE, 1, 1, None),
    (_FIVE | {"photometry__hue": 0.1}, 1, 1, "photometry.hue: found 0.1, expected 0.0: it needs red, green and blue"),
    (_FIVE | {"photometry__gray_prob": 0.2}, 1, 1, "photometry.gray_prob: found 0.2, expected 0.0"),
    ({"views__global_width": 448}, 1, 1, None),
    ({"views__global_width": 440}, 1, 1, "views.global_width: found 440, expected a multiple of model.patch_size = 16; nearest: 432"),
    ({"views__local_width": 10}, 1, 1, "views.local_width: found 10, expected a multiple of model.patch_size = 16; nearest: 16"),
    ({"views__local_width": 10, "views__local_count": 0}, 1, 1, "views.local_width: found 10, which is never read"),
    ({"views__global_width": -16}, 1, 1, "views.global_width: found -16, expected a whole number of at least 0"),
    (
        {"views__global_width": 448, "model__positions": "sincos_rows"},
        1,
        1,
        "views.global_width: found 448 beside global_size = 224, expected 0 (square crops): model.positions = sincos_rows knows",
    ),
    (_MAE | {"views__global_width": 448}, 1, 1, "views.global_width: found 448 beside global_size = 224, expected 0 (square crops): mae's"),
    (_RESNET | {"relation__heads": 0, "recipe": "dino_channel", "views__global_width": 300}, 1, 1, None),
    (_RESNET | {"views__global_width": 300}, 1, 1, "views.global_width: found 300, expected a multiple of 32"),
    ({"masking__kind": "block"}, 1, 1, "masking.kind: found 'block', which is never read: no loss of recipe = dino_sere learns"),
    ({"recipe": "ibot"}, 1, 1, "masking.kind: found 'none', expected block or random: ibot learns from hidden patches"),
    (_IBOT, 1, 1, None),
    (
        _IBOT | {"masking__ratio": (0.0, 0.0), "masking__ratio_var": (0.0, 0.0)},
        1,
        1,
        "masking.ratio: found 0.0 -+ 0.0 and 0.0 -+ 0.0 with masking.ratio_var, which hides none of 196 patches; expected at least 0.0051",
    ),
    (_IBOT | {"masking__prob": 0.0, "masking__ratio_var": (0.0, 0.2)}, 1, 1, "and masking.prob = 0, which hides none of 196 patches"),
    (
        _IBOT | {"masking__prob": 1.0, "masking__ratio": (0.3, 0.0), "masking__ratio_var": (0.2, 0.0)},
        1,
        1,
        "and masking.prob = 1, which hides",
    ),
    (_IBOT | {"masking__prob": 0.0, "masking__ratio": (0.3, 0.0), "masking__ratio_var": (0.0, 0.0)}, 1, 1, None),
    (
        _IBOT | {"masking__start_epoch": 100},
        1,
        1,
        "masking.start_epoch: found 100, expected less than schedule.epochs = 100: nothing would",
    ),
    (_IBOT | {"masking__start_epoch": 99}, 1, 1, None),
    ({"optimizer__freeze_backbone_epochs": 100}, 1, 1, "expected less than schedule.epochs = 100: the backbone would never move"),
    ({"optimizer__freeze_last_layer_epochs": 100}, 1, 1, "expected less than schedule.epochs = 100: the prototypes would never move"),
    ({"run__keep_every_steps": 500, "schedule__total_steps": 400}, 1, 1, "run.keep_every_steps: found 500, expected at most"),
    ({"eval__gallery": "bundled", "eval__query": "bundled"}, 1, 1, "which is never read: run.eval_every_steps is 0: nothing is evaluated"),
    ({"teacher__ema_momentum": 0.9} | _MAE, 1, 1, "teacher.ema_momentum: found 0.9, which is never read: recipe = mae has no teacher"),
    ({"views__local_size": 48, "views__local_count": 0}, 1, 1, "views.local_size: found 48, which is never read: views.local_count is 0"),
    ({"optimizer__beta2": 0.9, "optimizer__name": "lars"}, 1, 1, "optimizer.beta2: found 0.9, which is never read: optimizer.name = lars"),
    (_RESNET | {"model__positions": "sincos_rows"}, 1, 1, "model.positions: found 'sincos_rows', which is never read: model.name = resnet"),
    (_IBOT | {"masking__ratio": (0.0, 0.004), "masking__ratio_var": (0.0, 0.001)}, 1, 1, "which hides none of 196 patches"),
    (_IBOT | {"masking__ratio": (0.0, 0.004), "masking__ratio_var": (0.0, 0.0012)}, 1, 1, None),  # 1.02 of 196
    ({"schedule__epochs": 5}, 1, 1, "optimizer.warmup_epochs: found 10, expected at most schedule.epochs = 5"),
    ({"schedule__epochs": 0}, 1, 1, None),
    (_EVALUATED | {"eval__resize": 10, "eval__size": 40}, 1, 1, "eval.resize: found 10, expected 0 or at least the 40 pixels"),
    ({"eval__resize": 200}, 1, 1, "eval.resize: found 200, expected 0 or at least the 224 pixels of the crop that follows; nearest: 224"),
    (_EVALUATED | {"eval__resize": 40, "eval__size": 40}, 1, 1, None),
    (_EVALUATED | {"eval__batch_size": 63}, 8, 2, "eval.batch_size: found 63, expected a multiple of the 2 processes; nearest: 62"),
    (_EVALUATED | {"eval__batch_size": 63}, 8, 1, None),
    ({"eval__batch_size": 63}, 8, 2, "eval.batch_size: found 63, which is never read: run.eval_every_steps is 0"),
    ({"data__value_range": (0.0, 10000.0)}, 1, 1, None),
    ({"data__value_range": (5.0, 5.0)}, 1, 1, "data.value_range: found (5.0, 5.0), expected two different values, or (0.0, 0.0)"),
    ({"data__value_range": (5.0, 1.0)}, 1, 1, "data.value_range: found (5.0, 1.0), expected 2 values in rising order, each a number"),
    ({"run__fsdp": 3}, 8, 1, "run.fsdp: found 3, expected a divisor of the 8 devices; nearest: 2"),
    ({"run__fsdp": 3}, 1, 1, "run.fsdp: found 3, expected a divisor of the 1 devices; nearest: 1"),
    ({"run__eval_every_steps": 5}, 1, 1, "eval.gallery: found '', expected a source"),
    ({"data__source": "folder:"}, 1, 1, "data.source: found 'folder:', expected folder:DIR, with a directory"),
    ({"data__source": "folder:/no/such"}, 1, 1, "data.source: found 'folder:/no/such', expected folder:DIR, a directory that exists"),
    ({"data__source": "bundled:galery"}, 1, 1, "expected bundled[:train|gallery|query]; nearest: gallery"),
    ({"data__source": "fodler:x"}, 1, 1, "nearest: folder"),
    ({"data__source": "lst:x"}, 1, 1, "nearest: list"),
    ({"data__source": "list:pyproject.tml"}, 1, 1, "expected list:FILE, a file that exists; nearest: pyproject.toml"),
    ({"data__source": "list:/no/such"}, 1, 1, "data.source: found 'list:/no/such', expected list:FILE, a file that exists"),
    ({"data__source": "mix:0.7*bundled|0.3*bundled:query"}, 1, 1, None),
    ({"data__source": "mix:bundled"}, 1, 1, "data.source: 'mix:bundled': expected two or more sources, as in mix:WEIGHT*SOURCE"),
    ({"data__source": "mix:1*bundled|bundled"}, 1, 1, "expected one for each or none"),
    ({"data__source": "mix:-1*bundled|1*bundled"}, 1, 1, "found the weight '-1', expected a number above 0"),
    ({"data__source": "mix:1*bundled|1*folder:/no/such"}, 1, 1, "data.source: found 'folder:/no/such', expected folder:DIR"),
    ({"data__source": "mix:1*bundled|1*mix:bundled"}, 1, 1, "found 'mix:bundled' in a mixture, expected another source"),
    ({"data__source": "classes:pyproject.toml:mix:bundled|bundled"}, 1, 1, "SOURCE no mixture; mix sources of classes instead"),
    ({"data__source": "tfds:imagenet2012"}, 1, 1, "data.source: found 'tfds:imagenet2012', expected tfds:NAME[/CONFIG]:SPLIT"),
    (
        {"data__source": "tfds:/no/such:train"},
        1,
        1,
        "data.source: found 'tfds:/no/such:train', expected tfds:DIR:SPLIT, DIR a prepared set",
    ),
    ({"data__source": "tfds:imagenet2012_subset/1pct:train[:50%]"}, 1, 1, None),
    ({"recipe": "dino_ser"}, 1, 1, "nearest: dino_sere"),
]


@pytest.mark.parametrize(("changes", "devices", "processes", "line"), MISTAKES)
def test_each_mistake_has_its_line(changes, devices, processes, line):
    found = _mistakes(devices, processes, **changes)
    assert found == [] if line is None else any(line in one for one in found), found


def test_all_mistakes_are_told_at_once():
    changes = {"views__flip_prob": 2.0, "model__variant": "x", "data__batch_size": 0, "foo": 1, "data__source": "nothing"}
    with pytest.raises(rules.ConfigError) as error:
        rules.validate(_config(**changes), devices=1, processes=1)
    assert len(error.value.mistakes) == 5
    assert str(error.value).startswith("5 mistakes in the config:\n")
    assert str(rules.refusal(["--x: unknown flag"])) == "1 mistake, nothing was started:\n  --x: unknown flag"
    assert all(line in str(error.value) for line in error.value.mistakes)


def test_a_missing_key_is_named():
    config = _config()
    with config.unlocked():
        del config.model.depth
    assert rules.mistakes(config, devices=1, processes=1) == ["model.depth: missing, expected a whole number of at least 0"]


def test_folders(tmp_path):
    assert "it is empty" in _mistakes(data__source=f"folder:{tmp_path}")[0]
    assert _mistakes(data__source=str(tmp_path))[0].endswith(f"nearest: folder:{tmp_path}")
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    for written, meant in (("imagnet", "imagenet"), ("imagnet/train", "imagenet/train"), ("imagnet/tain", "imagenet"), ("zzz", "")):
        line = _mistakes(data__source=f"folder:{tmp_path}/{written}")[0]
        assert line.endswith(f"a directory that exists; nearest: folder:{tmp_path}/{meant}" if meant else "a directory that exists")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "image.jpg").write_bytes(b"x")
    assert _mistakes(data__source=f"folder:{tmp_path}") == []


def test_lengths_in_steps_are_judged_when_the_data_is_open():
    config = _config(optimizer__warmup_epochs=3, schedule__total_steps=100)
    assert lengths.length_mistakes(config, per_epoch=30, total=100) == []
    assert lengths.length_mistakes(config, per_epoch=40, total=0) == []  # nothing is trained, so nothing is too long
    assert lengths.length_mistakes(config, per_epoch=40, total=100) == [
        "optimizer.warmup_epochs: found 3 (120 steps), expected at most the 100 steps of the run"
    ]


@given(
    st.sampled_from(sorted(rules.RULES)), st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.booleans(), st.tuples(st.floats()))
)
def test_any_value_is_judged_by_its_rule_and_never_crashes(key, value):
    config = flatten(_config()) | {key: value}
    lines = rules.check(config, rules.RULES)
    assert [line.partition(":")[0] for line in lines] == ([] if rules.RULES[key].accepts(value) else [key])


@given(st.text(string.ascii_lowercase, min_size=1))
def test_unknown_keys_are_always_found(name):
    expected = f"model.{name}" not in rules.RULES
    assert bool(_mistakes(**{f"model__{name}": flatten(_config()).get(f"model.{name}", 1)})) == expected


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_json_round_trip_keeps_every_value_and_tuples(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    again = rules.from_json(rules.to_json(config))
    assert again == config
    assert flatten(again) == flatten(config)
    assert rules.differences(again, config) == []


def test_differences_ignore_what_only_concerns_the_running():
    saved = _config(views__aspect=(0.5, 2.0)).to_dict()
    running = _config(
        data__workers=9, data__prefetch=7, run__fsdp=4, run__log_every_steps=1, eval__temperature=0.2, views__aspect=(0.5, 2.0)
    )
    running.data.update(max_pixels=100, source="folder:/elsewhere")
    running.model.update(remat="full", scan_blocks=True)
    running.relation.sampling_impl = "separable"
    assert rules.differences(saved, running) == []
    other = _config(model__depth=3, views__aspect=(0.5, 1.0))
    assert rules.differences(saved, other) == [
        "model.depth: saved 0, now 3",
        "views.aspect: saved (0.5, 2.0), now (0.5, 1.0)",
    ]


def test_differences_name_keys_that_one_side_lacks():
    saved = _config().to_dict()
    del saved["seed"]
    assert rules.differences(saved, _config()) == ["seed: saved no such key, now 0"]


def test_arguments_of_a_config_file():
    config = common.arguments(common.pretrain(), "source=folder:/a/b:c,epochs=300,views.global_scale=(0.2,1.0),decay_bias=true,alpha=1")
    assert (config.data.source, config.schedule.epochs, config.views.global_scale) == ("folder:/a/b:c", 300, (0.2, 1.0))
    assert config.optimizer.decay_bias is True
    assert config.relation.alpha == 1.0
    assert isinstance(config.relation.alpha, float)


def test_mistakes_in_the_argument_of_a_config_file_are_told_at_once():
    with pytest.raises(ValueError, match="mistakes in the config's argument") as error:
        common.arguments(common.pretrain(), "foo,epoch=3,heads=3, data.batch_size=x,decay_bias=1,nonsense=2")
    lines = str(error.value).splitlines()[1:]
    assert [line.strip().partition(":")[0] for line in lines] == [
        "found 'foo', expected key=value",
        "epoch",
        "heads",
        "data.batch_size",
        "optimizer.decay_bias",
        "nonsense",
    ]
    assert "nearest: schedule.epochs" in lines[1]
    assert "model.heads, relation.heads" in lines[2]
    assert lines[5].endswith("unknown key")  # nothing is like it


def test_the_short_form_of_a_key_of_the_data_is_that_one():
    config = common.arguments(common.pretrain(), "batch_size=24,workers=0")
    assert (config.data.batch_size, config.data.workers, config.eval.batch_size) == (24, 0, 64)


@given(st.integers(-5, 300), st.integers(1, 300))
def test_the_nearest_divisor(value, whole):
    found = int(divisors(value, whole).rpartition(" ")[2])
    assert whole % found == 0
    assert not [n for n in range(1, whole + 1) if whole % n == 0 and abs(n - value) < abs(found - value)]


def test_the_papers_recipe_to_the_last_number():
    """SPEC 1.6, column DINO+SERE S; the schedules of SPEC 1.5."""
    config = flatten(importlib.import_module("configs.dino_sere_vits16").get_config())
    expected = {
        "schedule.epochs": 100,
        "data.batch_size": 512,
        "optimizer.base_lr": 5e-4,
        "optimizer.min_lr": 1e-6,
        "optimizer.warmup_epochs": 10,
        "optimizer.weight_decay": 0.04,
        "optimizer.weight_decay_end": 0.4,
        "optimizer.clip_grad": 3.0,
        "optimizer.freeze_last_layer_epochs": 1,
        "optimizer.decay_bias": False,
        "head.prototypes": 65536,
        "head.norm_last_layer": True,
        "dino.teacher_temp": 0.04,
        "dino.warmup_teacher_temp": 0.04,
        "dino.student_temp": 0.1,
        "views.global_scale": (0.35, 1.0),
        "views.local_scale": (0.05, 0.35),
        "views.local_count": 4,
        "relation.alpha": 1.0,
        "relation.beta": 1.0,
        "relation.teacher_temp_spatial": 0.5,
        "relation.teacher_temp_channel": 0.1,
        "relation.student_temp": 1.0,
        "teacher.ema_momentum": 0.996,
        "model.drop_path": 0.1,
        "photometry.blur_prob": (1.0, 0.1, 0.5),
        "photometry.solarize_prob": (0.0, 0.2, 0.0),
    }
    assert {key: config[key] for key in expected} == expected
