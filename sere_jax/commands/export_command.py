"""Export weights: python -m sere_jax export --checkpoint=X --format=timm --network=teacher --output=FILE.safetensors

X is a run's workdir or any file that `load_backbone` reads, so this command also converts one format into another. It writes two
files beside FILE: one that ends in `.config.json` (architecture, timm's arguments, the training config, the origin of the weights)
and one that ends in `.preprocessor.json` (sizes, mean, std, interpolation). The format hf_vit writes a directory that
`transformers` reads. docs/weights.md has a table of formats. Only `.pth` needs PyTorch, no format needs an accelerator, and the
checkpoint may come from any number of devices. Exit code 2: the export failed;
mistakes of the command line are told before JAX is imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sere_jax.buckets import Location
from sere_jax.interop.files import FileError
from sere_jax.interop.tables import InteropError
from sere_jax.train.saved_steps import CheckpointError
from sere_jax.weights import source
from sere_jax.writing import destination

FORMATS = ("timm", "dino", "ibot", "sere", "hf_vit", "npz")
DTYPES = ("float32", "bfloat16", "float16")

FULL = ("dino", "ibot", "sere")  # layouts of whole checkpoints, which may be `.pth`
_BOTH = (*FULL, "npz")  # layouts that can hold both networks
_ENDINGS = {"timm": (".safetensors",), "hf_vit": ("",), "npz": (".npz",)} | dict.fromkeys(FULL, (".safetensors", ".pth"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(argv)
    mistakes = source.mistakes(options.checkpoint, options.step)
    mistakes += layout_mistakes(destination(options.output), options.format, options.network, options.with_heads, options.dtype)
    if mistakes:
        print(*(f"export: {sentence}" for sentence in mistakes), sep="\n", file=sys.stderr)
        return 2
    from sere_jax.commands.export import export  # imports JAX

    try:
        written = export(
            options.checkpoint,
            options.output,
            layout=options.format,
            network=options.network,
            step=options.step,
            with_heads=options.with_heads,
            dtype=options.dtype,
            heads=options.heads,
            image_size=options.image_size,
            ignore=[pattern for pattern in options.ignore.split(",") if pattern],
        )
    except (CheckpointError, FileError, InteropError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print("".join(f"{line}\n" for line in written.report), end="")
    print(f"{written.tensors}: {written.numbers:,} numbers in {options.dtype}, format {options.format}")
    print(f"{written.config}\n{written.preprocessor}")
    return 0


def layout_mistakes(output: Location, layout: str, network: str, with_heads: bool, dtype: str) -> list[str]:
    """The arguments of an export that do not fit each other, as sentences."""
    mistakes = [
        f"{name}: found {value!r}, expected one of {', '.join(choices)}"
        for name, value, choices in (("format", layout, FORMATS), ("dtype", dtype, DTYPES))
        if value not in choices
    ]
    endings = _ENDINGS.get(layout, (output.suffix,))
    if output.suffix not in endings:
        expected = "a directory" if endings == ("",) else f"a name that ends in {' or '.join(endings)}"
        mistakes.append(f"output: found {output.name!r}, expected {expected} for the format {layout}")
    if with_heads and layout == "hf_vit":
        mistakes.append(f"with_heads: the {layout} layout has no heads, expected the format dino, ibot, sere or npz")
    if network == "both" and layout not in _BOTH:
        mistakes.append(f"network: the {layout} layout holds one network, expected teacher or student, or the format {', '.join(_BOTH)}")
    return mistakes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sere_jax export", description="Export the weights of a checkpoint.")
    parser.add_argument("--checkpoint", required=True, help="workdir, its checkpoints directory, one step in it, or a file")
    parser.add_argument(
        "--output", required=True, help="FILE.safetensors; .npz for npz; .pth too for dino, ibot, sere; hf_vit: a directory"
    )
    parser.add_argument("--format", default="timm", choices=FORMATS, help="names and layout of the tensors (default: timm)")
    parser.add_argument("--network", default="", choices=("teacher", "student", "both"), help="default: the one that the recipe evaluates")
    parser.add_argument("--step", type=int, help="default: the newest")
    parser.add_argument(
        "--with_heads",
        action="store_true",
        help="also write heads (dino, ibot: DINO's; sere, npz: all; timm: the classifier of a fine-tuned network)",
    )
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="type of the weights (default: float32)")
    parser.add_argument("--heads", type=int, default=0, help="attention heads, for files that do not state them")
    parser.add_argument("--image_size", type=int, default=0, help="pixels a side to resize the position embedding to; default: it stays")
    parser.add_argument(
        "--ignore", default="", help="patterns of tensors to leave out, separated by commas: 'head.*,*.num_batches_tracked'"
    )
    return parser
