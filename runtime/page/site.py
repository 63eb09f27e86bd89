"""A static site that segments pictures in the browser alone: its files, from an engine and onnxruntime-web."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime import __version__
from runtime.engine.base import rebuild_command
from runtime.engine.external import external_data
from runtime.engine.inputs import DEFAULT_INPUT
from runtime.engine.registry import EMBEDDED_NAME, open_engine
from runtime.errors import DiffSegError
from runtime.files import DAMAGE, OWN_JSON, is_own_output, read_small_text, write_atomically
from runtime.labels import LEAST_PIECE
from runtime.merge.registry import DEFAULT
from runtime.options import default_config
from runtime.page.package import NAME, VERSION, files_of
from runtime.page.shared import FILES, HEAT, MOST_BYTES, MOST_PIXELS, VIEW

if TYPE_CHECKING:
    from runtime.engine.spec import EngineSpec

BROWSER = Path(__file__).with_name("browser")
MARK = "diffseg-page.json"  # in a site: which files are ours
PAGE = ("page.js", "browser.js", "style.css", "icon.svg", "sample.jpg")
ENTRY, OWN_ENTRY = 'src="page/service.js"', 'src="page/browser.js"'
HEAD = '<meta charset="utf-8">'
# What the service says in its headers: the page asks no other host for anything. ONNX Runtime compiles WebAssembly.
POLICY = "default-src 'self'; img-src 'self' blob: data:; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
MOST_ENGINE = 512 << 20  # bytes; a tab of a telephone may have no more memory
NOT_LOADED = ("LICENSE", "NOTICE.txt", "ThirdPartyNotices.txt", "sample.jpg")  # before the first picture is segmented


class Load(NamedTuple):
    """Bytes that a browser loads before the first picture is segmented, as they are and compressed with gzip."""

    plain: int
    compressed: int


class Source(NamedTuple):
    """An engine for a site: what it is, the name of its file, and its bytes."""

    spec: EngineSpec
    name: str
    data: bytes


def read_engine(path: Path | None) -> Source:
    """The engine in a file; None: the embedded one. It is opened, so that it is known to run.

    Raises DiffSegError where it cannot be opened or a browser cannot use it; the message says what is possible.
    """
    possible = "expected an .onnx engine with the head attention; leave --engine out for the embedded tiny"
    if path is not None and path.suffix.lower() != ".onnx" and str(path) != EMBEDDED_NAME:
        raise DiffSegError(f"{path.name}: a browser runs ONNX engines alone; {possible}")
    engine = open_engine(path, "cpu", "onnxruntime", threads=1)
    spec, name = engine.spec, engine.path.name
    if not name.isprintable():  # also what is no UTF-8, which no address can have
        raise DiffSegError(f"{name}: expected a name that the address of a file can have; rename it")
    usable = replace(spec, head="attention", precision="fp32", batch=1, input=DEFAULT_INPUT.name, solver=DEFAULT)
    remedy = rebuild_command(usable, "")
    if spec.head != "attention":
        raise DiffSegError(
            f"{name} has the head {spec.head}, but the page merges attention itself; expected the head attention: "
            f"{remedy}; or leave --engine out for the embedded tiny"
        )
    if spec.precision != "fp32" or (spec.batch or 1) > 1:
        raise DiffSegError(
            f"{name} has the precision {spec.precision} and the batch {spec.batch or 'dynamic'}; expected fp32 and 1: "
            f"{remedy} (with --compact it is half as large)"
        )
    if spec.frame_input is not DEFAULT_INPUT:
        raise DiffSegError(f"{name} takes {spec.frame_input}; expected {DEFAULT_INPUT}: {remedy}")
    if spec.solver != DEFAULT:
        raise DiffSegError(f"{name} has the solver {spec.solver}; expected {DEFAULT}, as the page has: {remedy}")
    if external_data(engine.path) or engine.path.stat().st_size > MOST_ENGINE:
        raise DiffSegError(
            f"{name} is too large for a browser: expected one file of at most {MOST_ENGINE >> 20} MB without weights "
            f"beside it, found {engine.path.stat().st_size >> 20} MB; serve it with 'diffseg serve', or leave --engine "
            "out for the embedded tiny"
        )
    return Source(spec, name, engine.path.read_bytes())


def describe(engine: Source) -> dict[str, Any]:
    """What the page's scripts must know of an engine."""
    from runtime.pyramid.anchors import anchor_queries
    from runtime.pyramid.weights import resolution_ratios

    spec, config = engine.spec, default_config(engine.spec)
    grids = [(level.height, level.width) for level in spec.levels]
    return {
        "name": Path(engine.name).stem,
        "file": engine.name,
        "bytes": len(engine.data),
        "version": __version__,
        "size": [spec.height, spec.width],
        "outputs": [level.output for level in spec.levels],
        "grids": grids,
        "ratios": resolution_ratios(config.weights, grids, [level.layers for level in spec.levels]),
        "anchors": anchor_queries(grids[0], config.grid).tolist(),
        "threshold": "auto" if spec.auto else list(spec.thresholds),
        "thresholds": list(spec.thresholds),
        "auto": True,
        "least_piece": LEAST_PIECE,
        "attention": True,
        "view": VIEW,
        "heat": HEAT,
        "most_bytes": MOST_BYTES,
        "most_pixels": MOST_PIXELS,
        "palette": palette_of(),
    }


def palette_of() -> dict[str, Any]:
    """The colours of segments, RGB, and what chooses among them: see `runtime.outputs.palette`."""
    from runtime.outputs.palette import DISTINCT, FAR, distances, palette

    apart = distances()
    return {
        "colours": palette(len(apart))[:, ::-1].tolist(),
        "distances": apart.astype(float).round(2).tolist(),
        "distinct": DISTINCT,
        "far": FAR,
    }


def site_files(engine: Source, package: bytes) -> tuple[dict[str, bytes], Load]:
    """Path in the site → bytes, and what a browser loads of them. `package`: of `runtime.page.package.read_package`."""
    import onnxruntime

    web = files_of(package, (SCRIPT, WASM))
    installed = Path(onnxruntime.__file__).parent
    index = (FILES / "index.html").read_text(encoding="utf-8")
    policy = f'{HEAD}\n<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    assert index.count(ENTRY) == index.count(HEAD) == 1
    files = {
        "index.html": index.replace(ENTRY, OWN_ENTRY).replace(HEAD, policy).encode(),
        **{f"page/{file}": (FILES / file).read_bytes() for file in PAGE},
        **{f"page/browser/{path.name}": path.read_bytes() for path in sorted(BROWSER.glob("*.js"))},
        f"engine/{engine.name}": engine.data,
        # Some file servers do not know that .mjs is a script.
        f"onnxruntime/{SCRIPT.replace('.mjs', '.js')}": web[SCRIPT],
        f"onnxruntime/{WASM}": web[WASM],
        # The npm package has no copy of its licence; the Python package of ONNX Runtime has it.
        **{f"onnxruntime/{file}": (installed / file).read_bytes() for file in ("LICENSE", "ThirdPartyNotices.txt")},
        "NOTICE.txt": NOTICE.encode(),
    }
    loaded = [data for path, data in files.items() if not path.endswith(NOT_LOADED)]
    load = Load(sum(map(len, loaded)), sum(len(gzip.compress(data, 6)) for data in loaded))
    about = describe(engine) | {
        "where": "It never leaves this browser. The first picture loads "
        f"{megabytes(load.plain)} ({megabytes(load.compressed)} where the site compresses); later ones load nothing.",
        "links": [{"text": "Licences", "href": "NOTICE.txt"}],
    }
    return files | {"engine/engine.json": json.dumps(about, separators=(",", ":")).encode()}, load


def check_folder(folder: Path) -> None:
    """Raise DiffSegError unless a site can be written into a folder: a new one, an empty one, or an older site."""
    if folder.exists() and not folder.is_dir():
        raise DiffSegError(f"--output {folder}: expected a folder, found a file; choose another one")
    try:
        others = folder.is_dir() and any(folder.iterdir()) and not is_own_output(folder / MARK)
        if not others:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiffSegError(f"--output {folder}: cannot be written ({error.strerror}); choose another folder") from None
    if others:
        raise DiffSegError(
            f"--output {folder}: has files of others; expected a new folder, an empty one, or a site of this program; "
            "choose another one"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DiffSegError(f"--output {folder}: cannot be written (Permission denied); choose another folder")


def write_site(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a site's files, each whole, over those of an older site. What others have added to it stays.

    Raises DiffSegError where one cannot be written.
    """
    mark = folder / MARK
    try:
        before = _listed(mark)
        for path in files:
            if not _is_below(folder, path):
                raise DiffSegError(
                    f"--output {folder}: expected folders of the site's own, found a link at {Path(path).parent}; "
                    "remove it, or choose another folder"
                )
        # First, so that a folder that was interrupted is known to be ours.
        text = json.dumps({**OWN_JSON, "version": __version__, NAME: VERSION, "files": sorted({*before, *files})})
        write_atomically(mark, text.encode())
        for path, data in files.items():
            write_atomically(folder / path, data)
        for path in before - set(files):
            if _is_below(folder, path) and not (folder / path).is_dir():
                (folder / path).unlink(missing_ok=True)
        write_atomically(mark, json.dumps(json.loads(text) | {"files": sorted(files)}).encode())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DiffSegError(f"--output {folder}: cannot be written ({reason}); make room, or choose another") from None


def _listed(mark: Path) -> set[str]:
    """The files of the older site; none where the list is damaged: they then stay."""
    try:
        return {path for path in json.loads(read_small_text(mark))["files"] if isinstance(path, str)}
    except (DiffSegError, *DAMAGE):
        return set()


def _is_below(folder: Path, path: str) -> bool:
    """Whether a path of a site leads to a file in its folder, and to nothing elsewhere, as by links."""
    inside = Path(path)
    if "\0" in path or ".." in inside.parts or inside.is_absolute() or not inside.name:
        return False
    return Path(os.path.realpath(folder), inside.parent) == Path(os.path.realpath(folder / inside.parent))


def megabytes(size: int) -> str:
    """`27912345` → "27.9 MB"."""
    return f"{size / 1e6:.1f} MB"


NOTICE = f"""DiffSeg {__version__}: this page, its scripts (page/) and the engine tiny, if it is the one in engine/.
Copyright the authors. Licensed under the Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0
The engine tiny was trained from scratch on drawn scenes and on photographs that are not part of it:
  alexeygrigorev/clothing-dataset, CC0
  marcusklasson/GroceryStoreDataset, MIT, Copyright (c) 2019 Marcus Klasson
An engine of another model is under the licence of that model.

onnxruntime-web {VERSION} (onnxruntime/), from https://www.npmjs.com/package/onnxruntime-web
Copyright (c) Microsoft Corporation. Licensed under the MIT License: onnxruntime/LICENSE
Parts of others in it: onnxruntime/ThirdPartyNotices.txt
"""
