"""Every experiment of configs/ at full size, built without computing: it keeps the rules, says what it must, and has the published size."""

from __future__ import annotations

import functools
import importlib
import re
import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import ablation
from sere_jax.build import pretraining
from sere_jax.config import arguments, keys
from sere_jax.config import check as rules
from sere_jax.config.names import flatten

ROOT = Path(__file__).resolve().parent.parent
LENGTH = pretraining.Steps(100, 10_000)
FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if not path.stem.startswith("common"))

# The arguments that the papers' tables name and no text shows as a command.
TABLES: dict[str, tuple[str, ...]] = {
    "ibot_vits16": ("epochs=800",),
    "ibot_sere_vits16": ("student_tokens=unmasked",),
    "ibot_sere_vitb16": ("epochs=200",),
    "dino_barlow_vits16": ("recipe=dino_channel", "projector=mlp,embedding=cls"),
    "mae_vits16": ("normalise_pixels=false",),
}


def _written() -> dict[str, tuple[str, ...]]:
    """The arguments in the commands of the documents and of the config files' own docstrings, but for what names the user's files."""
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    texts += [importlib.import_module(f"configs.{file}").__doc__ or "" for file in FILES]
    found: dict[str, dict[str, None]] = {}
    for file, argument in re.findall(r"configs/(\w+)\.py:([^\s`\"',;]+(?:,[^\s`\"',;]+)*)", "\n".join(texts)):
        parts = [part for part in argument.split(",") if not part.startswith(("source=", "init_from=", "table=", "row="))]
        if parts:
            found.setdefault(file, {})[",".join(parts)] = None
    return {file: tuple(arguments) for file, arguments in found.items()}


ARGUMENTS = {file: tuple(dict.fromkeys((*_written().get(file, ()), *TABLES.get(file, ())))) for file in FILES}
VIT_S, VIT_B, SERE_S, SERE_B = 21_665_664, 85_798_656, 148_992, 592_896  # 768^2 + 4 x 768
MASK_TOKEN = {"vits": 384, "vitb": 768}


def _config(file: str, argument: str = "") -> ConfigDict:
    return importlib.import_module(f"configs.{file}").get_config(",".join(part for part in ("data.source=bundled", argument) if part))


@functools.cache
def _abstract(file: str, argument: str = "") -> Any:
    return pretraining.abstract_state(_config(file, argument), LENGTH)


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("file", FILES)
def test_a_file_says_what_it_is(file: str):
    """Paper, launch, cost and expectation, measured kept apart from hoped for; the launch names the file itself."""
    text = importlib.import_module(f"configs.{file}").__doc__ or ""
    assert all(re.search(rf"^{word} +\S", text, re.MULTILINE) for word in ("Paper", "Launch", "Cost", "Expected"))
    assert "measured with this code: " in text and f"configs/{file}.py" in text


def test_a_file_sets_nothing_to_its_default(monkeypatch: pytest.MonkeyPatch):
    """A config file shows only what makes it that experiment. The functions of common_*.py take some defaults as arguments."""
    repeated = []
    files = {str(ROOT / "configs" / f"{file}.py") for file in FILES}
    project = {*files, *map(str, (ROOT / "configs").glob("common*.py")), arguments.__file__, keys.__file__}
    set_item = ConfigDict.__setitem__

    def watched(config: ConfigDict, key: str, value: Any) -> None:
        if key in config and not isinstance(value, ConfigDict) and (config[key], type(config[key])) == (value, type(value)):
            frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_stack(None)]
            setter, line = next((name, line) for name, line in frames if name in project)  # `arguments` sets what a launch asks for
            if setter in files:
                repeated.append(f"{Path(setter).name}:{line}: {key} = {value!r}")
        set_item(config, key, value)

    monkeypatch.setattr(ConfigDict, "__setitem__", watched)
    for file in FILES:
        _config(file)
    assert repeated == []


@pytest.mark.parametrize("file", FILES)
def test_every_argument_keeps_the_rules(file: str):
    for argument in ("", *ARGUMENTS.get(file, ())):
        assert rules.mistakes(_config(file, argument), devices=8, processes=1) == []


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith("16")])
def test_published_sizes(file: str):
    """ViT-S has 21.67 M parameters, a SERE module of it 148,992; iBOT adds a mask token to the backbone, MAE to its decoder."""
    config, params = _config(file), _abstract(file).params
    vit, sere = {"vits": (VIT_S, SERE_S), "vitb": (VIT_B, SERE_B)}[config.model.variant]
    masked = MASK_TOKEN[config.model.variant] if "patch" in pretraining.recipe(config).losses else 0
    assert _count(params["backbone"]) == vit + masked
    relations = {name: _count(tree) for name, tree in params.items() if name.startswith(("heads_spatial", "heads_channel"))}
    assert set(relations.values()) <= {sere}
    modules = len(pretraining.recipe(config).relations) if pretraining.recipe(config).self_relation else 0
    assert len(relations) == modules * (2 if config.views.local_count else 1)


def _rows() -> list[tuple[int, str]]:
    return [(number, row) for number, table in ablation.TABLES.items() for row in table.rows]


@pytest.mark.parametrize("size", ablation.SIZES)
def test_every_row_of_the_ablation_tables_keeps_the_rules(size: str):
    for number, row in _rows():
        config = ablation.get_config(f"table={number},row={row},size={size},source=bundled")
        assert rules.mistakes(config, devices=8, processes=1) == [], (number, row)
        assert len(ablation.TABLES[number].rows[row].paper) == len(ablation.TABLES[number].columns)


def test_the_tables_are_the_papers():
    """Rows that two tables share are the same config and the same figures; what a row changes is what its name says."""
    seen: dict[str, tuple[float, ...]] = {}
    for number, row in _rows():
        figures = ablation.TABLES[number].rows[row].paper
        assert seen.setdefault(str(flatten(ablation.row_config(number, row))), figures) == figures, (number, row)
    assert set(ablation.TABLES) == {7, 8, *range(10, 17)}
    for row, config in ((row, ablation.row_config(13, row)) for row in ablation.TABLES[13].rows):
        assert row == f"{config.relation.teacher_temp_spatial}_{config.relation.teacher_temp_channel}"
    for row, config in ((row, ablation.row_config(14, row)) for row in ablation.TABLES[14].rows):
        assert row == f"{config.relation.alpha}_{config.relation.beta}"
    assert [ablation.row_config(12, row).relation.heads for row in ablation.TABLES[12].rows] == [1, 3, 6, 12, 16]


def test_the_best_row_of_table_14_is_the_main_run():
    main, row = (flatten(config) for config in (_config("ibot_sere_vits16"), ablation.get_config("table=14,row=0.2_0.5,source=bundled")))
    assert {key for key in main if main[key] != row[key]} == set()


def test_the_rows_of_dinoplus_barlow_and_mocov3_are_their_own_configs():
    pairs = [("dinoplus_vits16", 10, "dinoplus"), ("dinoplus_sere_vits16", 10, "dinoplus_sere"), ("dino_barlow_vits16", 11, "barlow")]
    pairs += [("mocov3_vits16", 7, "mocov3"), ("mocov3_sere_vits16", 7, "mocov3_sere")]
    pairs += [("dino_resnet50", 16, "dino"), ("dino_sere_resnet50", 16, "dino_sere")]
    for file, table, row in pairs:
        assert flatten(_config(file)) == flatten(ablation.get_config(f"table={table},row={row},source=bundled")), file


@pytest.mark.parametrize(("argument", "expected"), [("epochs=100", 300), ("epochs=300", 900), ("local_count=0,epochs=100", 200)])
def test_effective_epochs(argument: str, expected: int):
    """Table 6: 2 + 4 crops count three times, 2 + 10 four times, MAE's one crop once."""
    config = _config("dino_vits16", argument)
    assert pretraining.effective_epochs(config, pretraining.steps(config, 512 * 7 + 5)) == expected
    ibot = _config("ibot_vits16")
    assert pretraining.effective_epochs(ibot, pretraining.steps(ibot, 1024)) == 400
    mae = _config("mae_vits16")
    assert pretraining.effective_epochs(mae, pretraining.steps(mae, 4096)) == 800


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "argument"), [(file, argument) for file in FILES for argument in ("", *ARGUMENTS.get(file, ())) if file != "ablation"]
)
def test_a_whole_step_at_full_size(file: str, argument: str):
    """Traced, not compiled: shapes and types fit from the bytes of a batch to the next state."""
    _trace(_config(file, argument))


@pytest.mark.slow
@pytest.mark.parametrize("size", ablation.SIZES)
@pytest.mark.parametrize("table", ablation.TABLES)
def test_a_whole_step_of_every_ablation(table: int, size: str):
    for row in ablation.TABLES[table].rows:
        _trace(ablation.get_config(f"table={table},row={row},size={size},source=bundled"))


def _trace(config: ConfigDict) -> None:
    state = pretraining.abstract_state(config, LENGTH)
    after, metrics = jax.eval_shape(pretraining.train_step(config, LENGTH), state, pretraining.abstract_views(config))
    kinds = zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True)
    assert all((new.shape, new.dtype) == (old.shape, old.dtype) for new, old in kinds)
    assert all(value.shape == () and value.dtype in (jnp.float32,) for value in metrics.values())


def test_arguments_belong_to_files_that_exist():
    assert set(TABLES) | set(_written()) <= set(FILES)
    # The commands are found where they stand.
    assert "data.batch_size=1024" in ARGUMENTS["mae_vits16"] and "recipe=ibot,decay_bias=false,epochs=400" in ARGUMENTS["ibot_sere_vitb16"]
