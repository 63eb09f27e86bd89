"""A labels engine out of an engine of maps, without PyTorch: its graph, followed by the graph of the merge.

The merge has no weights of the network. It is traced once for a shape of maps (`python -m tools.tiny merge`), and is in
this package for that of the embedded engine, so it goes with every engine of this shape, whatever its weights are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.engine.inputs import find_input
from runtime.engine.onnx_file import read_engine
from runtime.engine.registry import EMBEDDED
from runtime.engine.spec import EngineSpec, sidecar_path
from runtime.errors import DiffSegError
from runtime.files import write_atomically
from runtime.hosts.engine.graph import Graph
from runtime.hosts.engine.header import header

MERGE = EMBEDDED.with_name(f"{EMBEDDED.stem}-merge.onnx")


def write_labels_engine(engine: Path, folder: Path, merge: Path = MERGE, layout: str | None = None) -> list[Path]:
    """Write `<stem>-labels.onnx` into `folder`, with its sidecar and a C header `<stem>-labels.h`; returns the paths.

    `engine`: of the head `attention`. `merge`: the graph of the merge. `layout`: how the graph takes a frame, a name in
    `runtime.engine.inputs`; None: as the engine does. Thresholds keep the engine's defaults and stay an input. The
    labels are those of `python -m export --head labels`, and of the merge core on the engine's maps.
    Raises DiffSegError when the engine is not of the merge's shape, or a file cannot be read; OSError.
    """
    spec, shape = read_engine(engine), read_engine(merge)
    if spec.head != "attention":
        raise DiffSegError(f"{engine}: expected an engine with the head attention, found {spec.head}; give such a one")
    for name, expected, found in _differences(shape, spec):
        raise DiffSegError(
            f"{engine}: expected {name} {expected}, as the embedded engine has, found {found}; export the model again "
            "with 'python -m export MODEL --head labels --output engines/NAME', which needs PyTorch"
        )
    graph, head = Graph(engine), Graph(merge)
    if graph.opsets != head.opsets:
        raise DiffSegError(f"{engine} has operators of another version than {merge.name}; export the engine again")
    graph.follow(head, kept={"thresholds"})
    described = replace(spec, head="labels", auto=False, input=find_input(layout or spec.input).name)
    if described.input != spec.input:
        if spec.frame_input.planar or not described.frame_input.planar:
            raise DiffSegError(f"--input {layout}: the engine {engine} takes {spec.frame_input}; leave the option out")
        shape_taken: Any = described.frame_input.shape(spec.batch, spec.height, spec.width)
        graph.take_planes("frame", shape_taken, described.frame_input.brightest)
    if graph.outputs() != list(described.outputs):
        raise DiffSegError(
            f"{engine} has other outputs than its metadata says; expected {', '.join(spec.outputs)}; export it again"
        )
    path = folder / f"{engine.stem}-labels.onnx"
    written = {
        path: graph.to_bytes(described.to_json()),
        sidecar_path(path): described.to_json().encode(),
        path.with_suffix(".h"): header(described, path.name).encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for target in reversed(written):  # the engine last: when it is there, the others are there, too
        write_atomically(target, written[target])
    return list(written)


def _differences(shape: EngineSpec, spec: EngineSpec) -> list[tuple[str, Any, Any]]:
    """What of the merge's shape an engine does not have: name, expected and found."""
    sides: dict[str, list[Any]] = {
        "frames of": [f"{each.height}x{each.width}" for each in (shape, spec)],
        "frames per call:": [each.batch or "any number" for each in (shape, spec)],
        "maps": [", ".join(level.output for level in each.levels) for each in (shape, spec)],
        "layers per map:": [",".join(str(level.layers) for level in each.levels) for each in (shape, spec)],
        "the grid": [each.grid for each in (shape, spec)],
        "the weights": [each.weights for each in (shape, spec)],
        "the solver": [each.solver for each in (shape, spec)],
        "iterations:": [len(each.thresholds) for each in (shape, spec)],
        "the precision": [each.precision for each in (shape, spec)],
    }
    return [(name, expected, found) for name, (expected, found) in sides.items() if expected != found]
