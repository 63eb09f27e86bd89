"""`python -m export list MODEL`: shows what the export of a model would give."""

from __future__ import annotations

from export.commands.options import (
    ALL_BLOCKS,
    Attention,
    Config,
    Input,
    Model,
    Revision,
    Size,
    Vae,
    read_blocks,
    read_size,
)
from runtime.engine.inputs import DEFAULT_INPUT, find_input
from runtime.terminal import USAGE_ERROR, check_extra, one_line_errors


def list_model(
    model: Model,
    size: Size = None,
    attention: Attention = ALL_BLOCKS,
    revision: Revision = None,
    vae: Vae = None,
    config: Config = None,
    input: Input = DEFAULT_INPUT.name,
) -> None:
    """Show what the export of a model would give, from its configuration alone; nothing is written."""
    with one_line_errors(USAGE_ERROR):
        sides, blocks = read_size(size), read_blocks(attention)
        layout = find_input(input)
    check_extra("export")
    with one_line_errors():
        from export.model.describe import describe

        found = describe(model, sides, blocks, revision=revision, vae=vae, config=config)
    rows = {
        "model": f"{found.source} ({found.family})",
        "VAE": found.vae,
        "frame": f"{found.height}x{found.width}, multiples of {found.stride}; trained at {found.native_size}",
        "input": f"frame, {layout}",
        "parameters": ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in found.parameters.items()),
        "thresholds": ", ".join(map(str, found.thresholds)),
    }
    for index, level in enumerate(found.levels):
        layers = f"mean of {level.layers} layer{'s' if level.layers > 1 else ''}"
        n = level.height * level.width
        rows["outputs" if not index else " " * index] = f"{level.output} [B, {n}, {n}], {layers}"
    for name, text in rows.items():
        print(f"{name:12}{text}")
