"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from export.model.families import BLOCKS
from runtime.engine.inputs import FRAME_INPUTS
from runtime.errors import DiffSegError
from runtime.terminal import options_named

if TYPE_CHECKING:
    from runtime.pyramid.weights import Weighting

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Diffusers folder, id on the model hub (owner/name), or .safetensors file."),
]
Size = Annotated[str | None, typer.Option(metavar="HxW", help="Frame size in pixels; the model's own if left out.")]
Attention = Annotated[str, typer.Option(help="U-Net blocks whose maps are averaged.")]
Revision = Annotated[str | None, typer.Option(help="Revision on the model hub.")]
Vae = Annotated[str | None, typer.Option(metavar="FOLDER|ID", help="Another VAE, such as a tiny autoencoder (TAESD).")]
Config = Annotated[
    str | None, typer.Option(metavar="FOLDER|ID", help="Configuration and tokenizer of a checkpoint file.")
]
NewEngine = Annotated[Path, typer.Option(help="Engine to write: engines/NAME gives engines/NAME.onnx.")]

_LAYOUTS = "; ".join(f"{each.name}: {each}" for each in FRAME_INPUTS.values())
Input = Annotated[str, typer.Option(metavar="LAYOUT", help=f"How the graph takes a frame. {_LAYOUTS}.")]

ALL_BLOCKS = ",".join(BLOCKS)


def read_size(text: str | None) -> tuple[int, int] | None:
    """`512x768` or `512` → (height, width). Raises DiffSegError for anything else."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if not (len(sides) <= 2 and all(side.isdecimal() and int(side) > 0 for side in sides)):
        raise DiffSegError(f"--size: expected HxW in pixels such as 512x768, or one number, found {text!r}")
    return int(sides[0]), int(sides[-1])


def read_blocks(text: str) -> tuple[str, ...]:
    """`up,down` → those parts of the U-Net, in order of execution. Raises DiffSegError for anything else."""
    blocks = {word.strip() for word in text.split(",")}
    if not blocks <= set(BLOCKS):
        raise DiffSegError(f"--attention: expected some of {ALL_BLOCKS}, found {text!r}")
    return tuple(block for block in BLOCKS if block in blocks)


def read_batch(text: str) -> int | None:
    """`4` → 4, `dynamic` → None. Raises DiffSegError for anything else."""
    if text == "dynamic":
        return None
    if not (text.isdecimal() and int(text) > 0):
        raise DiffSegError(f"--batch: expected a number above 0 or 'dynamic', found {text!r}")
    return int(text)


def read_seed(text: str | None) -> int | None:
    """`7` → 7, `none` → no noise, None → the head's own. Raises DiffSegError for anything else."""
    from export.engine import NO_NOISE

    if text in (None, "none"):
        return None if text is None else NO_NOISE
    if not (text.isdecimal() and int(text) < 2**63):
        raise DiffSegError(f"--noise-seed: expected 0 to 2^63 - 1, or none, found {text!r}")
    return int(text)


def read_thresholds(text: str | None) -> tuple[float, ...] | None:
    """`1.1,0.9` → numbers. Raises DiffSegError for anything but finite numbers above 0."""
    if text is None:
        return None
    try:
        thresholds = tuple(float(word) for word in text.split(","))
    except ValueError:
        thresholds = ()
    if not (thresholds and all(0 < threshold < float("inf") for threshold in thresholds)):
        raise DiffSegError(f"--threshold: expected numbers above 0 with commas between them, found {text!r}")
    return thresholds


def read_words(text: str | None) -> tuple[str, ...]:
    """`sky,a red car` → words. What they may be is checked where they are used."""
    return () if text is None else tuple(" ".join(word.split()) for word in text.split(","))


def read_weights(text: str) -> Weighting:
    """A rule's name, or `1,0,0,0` → numbers. Raises DiffSegError for anything else."""
    from runtime.pyramid.weights import as_weights

    with options_named({"weights": "--weights"}):
        return as_weights(text if text in ("proportional", "per-tensor") else text.split(","))


def engine_path(output: Path) -> Path:
    """`engines/NAME` → `engines/NAME.onnx`."""
    return output if output.suffix == ".onnx" else output.with_name(output.name + ".onnx")
