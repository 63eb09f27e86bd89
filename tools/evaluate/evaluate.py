"""`python -m tools.evaluate DATASET ROOT`: evaluates methods on a data set."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.errors import DiffSegError
from runtime.terminal import FAILED, check_extra, complain

if TYPE_CHECKING:
    from runtime.engine.spec import EngineSpec
    from tools.evaluate.masks import Protocol
    from tools.evaluate.methods import Evaluator
    from tools.evaluate.variants import Variant


class Method(str, Enum):
    """The methods by name; `tools.evaluate.methods` and `tools.evaluate.classical` implement them."""

    diffseg = "diffseg"
    kmeans_c = "kmeans-c"
    kmeans_s = "kmeans-s"
    felzenszwalb = "felzenszwalb"
    mean_shift = "mean-shift"
    slic_merged = "slic-merged"
    kmeans_lab = "kmeans-lab"
    one_segment = "one-segment"


class ProtocolName(str, Enum):
    """Protocols in place of a data set's own; `tools.evaluate.masks` reads them."""

    diffcut = "diffcut"


class Similarity(str, Enum):
    """The divergence by which the merge compares maps."""

    kl = "kl"
    js = "js"


def evaluate(
    context: typer.Context,
    root: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that the data set was unpacked into.")],
    engine: Annotated[
        list[Path] | None,
        typer.Option("--engine", "-e", help="Engine file; default: the embedded one. Repeat to compare."),
    ] = None,
    method: Annotated[list[Method] | None, typer.Option(help="diffseg by default. Repeat to compare.")] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            help="KL threshold, one per iteration with commas, or auto; default: the engine's. Repeat to compare."
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="proportional, per-tensor, 64-only, or numbers with commas; default: the engine's. Repeat to compare."
        ),
    ] = None,
    grid: Annotated[
        list[int] | None, typer.Option(help="Anchors per axis; default: the engine's. Repeat to compare.")
    ] = None,
    iterations: Annotated[
        list[int] | None, typer.Option(min=1, max=100, help="Of the merge; default: the engine's. Repeat to compare.")
    ] = None,
    similarity: Annotated[
        list[Similarity] | None,
        typer.Option(
            help="kl (the paper's) or js (Jensen–Shannon; its default threshold is a quarter). Repeat to compare."
        ),
    ] = None,
    solver: Annotated[
        list[str] | None, typer.Option(help="merge, kmeans, ncut or kcut; default: merge. Repeat to compare.")
    ] = None,
    tau: Annotated[list[float] | None, typer.Option(help="Of ncut. Repeat to compare.")] = None,
    alpha: Annotated[list[float] | None, typer.Option(help="Of ncut and kcut. Repeat to compare.")] = None,
    refine: Annotated[
        list[str] | None,
        typer.Option(help="none, or words such as snap, pamr, kmeans with commas; default: none. Repeat to compare."),
    ] = None,
    min_area: Annotated[
        list[float] | None,
        typer.Option(help="Smaller regions go to neighbours: a share of the image, or pixels. Repeat to compare."),
    ] = None,
    pieces: Annotated[
        list[str] | None,
        typer.Option(
            help="unlike, split or keep, as of diffseg segment; keep is the default in papers' protocols. Repeat to "
            "compare."
        ),
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="As of diffseg segment, for all.")] = False,
    protocol: Annotated[
        ProtocolName | None,
        typer.Option(
            help="In place of the data set's own: DiffCut's, with pictures of 1024x1024 and labels of 128x128."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for results; default: evaluated/DATASET.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Such as train, val or test; default: the usual one.")] = None,
    only: Annotated[Path | None, typer.Option(help="Text file that names the images to take, one per line.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Take every n-th image.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first n images.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Leave out images without picture or mask.")] = False,
    images: Annotated[str | None, typer.Option(help="Folder of the pictures below ROOT.")] = None,
    masks: Annotated[str | None, typer.Option(help="Folder of the masks below ROOT.")] = None,
    mask_ending: Annotated[
        str | None, typer.Option(help="End of a mask's name in place of the picture's suffix, such as _mask.png.")
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="JSON file that maps mask values to classes.")] = None,
    ignore: Annotated[
        list[int] | None,
        typer.Option(help="Another value in a mask that means unlabelled. Repeat for more."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Processes; default: one per core, if memory allows."),
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Best and worst images on the sheet index.html; 0: none.")] = 6,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "cpu",
    backend: Annotated[str | None, typer.Option(help="onnxruntime or openvino.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table.")] = False,
) -> None:
    """Evaluate methods on a data set with ground truth."""
    from rich.console import Console

    check_extra("evaluate")
    from runtime.engine.registry import EMBEDDED
    from tools.evaluate import report, runner
    from tools.evaluate.datasets import open_dataset
    from tools.evaluate.layouts import ALIASES
    from tools.evaluate.methods import ATTENTION_METHODS, Evaluator
    from tools.evaluate.sheet import write_sheet

    name = ALIASES.get(str(context.info_name), str(context.info_name))
    data = open_dataset(
        name,
        root,
        split=split,
        images=images,
        masks=masks,
        mask_ending=mask_ending,
        classes=classes,
        ignore=frozenset(ignore or ()),
        only=only,
        every=every,
        limit=limit,
        partial=partial,
        protocol=protocol.value if protocol else None,
    )
    axes: dict[str, list[Any] | None] = {
        "weights": weights,
        "threshold": threshold,
        "iterations": iterations,
        "grid": grid,
        "similarity": [one.value for one in similarity or []],
        "refine": refine,
        "min_area": min_area,
        "solver": solver,
        "tau": tau,
        "alpha": alpha,
        "pieces": pieces,
        "flip": [True] if flip else None,
    }
    methods = [one.value for one in method or [Method.diffseg]]
    if engine and not any(name in ATTENTION_METHODS for name in methods):
        raise DiffSegError(f"--engine: not used by {', '.join(methods)}; add --method diffseg, or leave it out")
    engines = [str(path) for path in engine or [EMBEDDED]]
    evaluator = Evaluator(device, backend)
    variants = _variants(data.protocol, engines, methods, axes, evaluator)
    for path in engines if data.protocol.input else ():
        _say_other_size(path, evaluator.engine(path).spec, data.protocol.input)
    job = runner.Job(data, variants, device, backend)
    jobs = jobs or _default_jobs(variants)
    folder = output or Path("evaluated") / name
    with _progress(len(data.samples), data.protocol.title) as advance:
        records, failures = runner.run(job, folder, jobs, advance)
    for message in failures.values():
        complain(message)
    if len(failures) == len(data.samples):
        raise DiffSegError(f"none of {len(failures)} images could be evaluated")
    summary = report.summarise(data, variants, records, len(failures))
    report.write(folder, variants, summary, records)
    if pictures:
        with Console(stderr=True).status("drawing the best and the worst images"):
            write_sheet(folder / "index.html", job, summary, records, pictures, jobs)
    if as_json:
        print(json.dumps(summary))
    else:
        title = f"{data.protocol.title}: {len(data.samples) - len(failures)} images"
        Console().print(report.table(report.cells(data, variants, summary), title))
        files = "results.json, images.csv" + ", index.html" * bool(pictures)
        print(f"{files} are in {folder}", file=sys.stderr)
    if data.missing:
        print(f"{data.missing} images whose picture or mask is missing are left out (--partial)", file=sys.stderr)
    if failures:
        complain(f"{len(failures)} of {len(data.samples)} images left out of all figures")
        raise typer.Exit(FAILED)


def _variants(
    protocol: Protocol, engines: list[str], methods: list[str], axes: dict[str, list[Any] | None], evaluator: Evaluator
) -> tuple[Variant, ...]:
    """Every combination of the values that were given, each once, in their order."""
    from tools.evaluate.methods import ATTENTION_METHODS
    from tools.evaluate.variants import Variant, Wish, settle

    given = {name: values for name, values in axes.items() if values}
    takes = {"diffseg": set(axes), "kmeans-c": {"weights"}, "kmeans-s": {"weights"}}
    idle = [name for name in given if not any(name in takes.get(method, ()) for method in methods)]
    if idle:
        raise DiffSegError(
            f"--{idle[0].replace('_', '-')}: not used by {', '.join(methods)}; add --method diffseg, or leave the "
            "option out"
        )
    wishes = [Wish(**dict(zip(given, values, strict=True))) for values in product(*given.values())]
    found = []
    for method in methods:
        if method not in ATTENTION_METHODS:
            found.append(Variant(method))
            continue
        for path in engines:
            spec = evaluator.engine(path).spec
            found += [settle(method, path, spec, protocol, wish) for wish in wishes]
    return tuple(dict.fromkeys(found))


def _say_other_size(path: str, spec: EngineSpec, side: int | None) -> None:
    """A notice where an engine takes frames of another size than the protocol's pictures."""
    if (spec.height, spec.width) != (side, side):
        found = f"{spec.height}x{spec.width}"
        complain(
            f"{path}: the protocol has frames of {side}x{side}, this engine takes {found}: figures are not comparable"
        )


def _default_jobs(variants: Any) -> int:
    """One process for every core that this one may use, as far as memory holds their engines."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    engines = {Path(variant.engine) for variant in variants if variant.engine}
    weights = sum(p.stat().st_size for e in engines for p in (e, e.with_name(e.name + ".data")) if p.is_file())
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        free = 1024 * int(meminfo.partition("MemAvailable:")[2].split()[0])
    except (OSError, ValueError, IndexError):  # another system
        return cores
    return max(1, min(cores, int(free / (2 * weights + 500e6))))


@contextmanager
def _progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr if that is a terminal; yields the function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
