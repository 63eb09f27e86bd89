"""What a service reaches, and what it costs: `python -m tools.benchmark serve`."""

from __future__ import annotations

import json
import tempfile
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.merge.threads import usable_cores
from runtime.terminal import check_extra
from tools.benchmark.common import in_fresh_process, machine, say
from tools.benchmark.serving import load, service
from tools.benchmark.streams import backends, copy_photographs, run_photographs_with

SHARE = 0.85  # of the engine's own rate
MEMORY_RATIO = 1.05
SLEEP = 0.02  # seconds a frame, of the engine's stand-in
CLIENTS = (1, 4, 16)
QUEUE, TOGETHER, HELD = 8, 40, 2.0  # overload: room, requests at once, seconds that the network holds a frame


class Part(str, Enum):
    """What may be measured."""

    stand_in = "stand-in"
    tiny = "tiny"
    overload = "overload"
    memory = "memory"


def serve(
    parts: Annotated[list[Part] | None, typer.Option("--part", help="What to measure; may be repeated. All.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs; default: drawn scenes.")] = None,
    count: Annotated[int, typer.Option(min=10, help="Requests of each measurement.")] = 300,
    requests: Annotated[int, typer.Option(min=1000, help="Requests of mixed sizes, for memory.")] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """What does a service reach, and what does it cost? Clients in a process of their own, over loopback.

    stand-in: an engine that sleeps 20 ms a frame (at least 0.85 of its own rate). tiny: with the embedded engine at
    least 0.85 of what one process of runtime.segment reaches on the same pictures, where the clients' processor time
    counts as the machine's; latencies at 1, 4 and 16 clients. overload: 40 requests at once for a queue of 8: each is
    answered, 32 with 503. memory: after 20,000 requests of mixed sizes at most 5 % more than after a tenth of them.
    Exit 1: a bound is missed.
    """
    check_extra("serve")
    wanted = parts or list(Part)
    report: dict[str, Any] = {"machine": machine(), "cores": usable_cores()}
    with tempfile.TemporaryDirectory() as folder:
        pictures = copy_photographs(photos, Path(folder) / "photographs", 20)
        if Part.stand_in in wanted:
            report["stand_in"] = measure_stand_in(pictures, count)
        if Part.tiny in wanted:
            report["tiny"] = [measure_tiny(backend, pictures, photos, Path(folder), count) for backend in backends()]
        if Part.overload in wanted:
            report["overload"] = measure_overload(pictures)
        if Part.memory in wanted:
            report["memory"] = measure_memory(Path(folder) / "mixed", requests)
    report["missed"] = _missed(report)
    typer.echo(json.dumps(report)) if as_json else _print(report)
    raise typer.Exit(1 if report["missed"] else 0)


def measure_stand_in(pictures: Path, count: int) -> dict[str, Any]:
    """The share of its own rate that a sleeping engine reaches."""
    say(f"stand-in: {count} requests")
    with service("labels", SLEEP) as served:
        in_fresh_process(load, served.port, str(pictures), 4, 40)
        found = in_fresh_process(load, served.port, str(pictures), 8, count)
    return _row(found) | {"share": round(count / found["seconds"] * SLEEP, 3)}


def measure_tiny(backend: str, pictures: Path, photos: Path | None, folder: Path, count: int) -> dict[str, Any]:
    """The share of the command line's rate, and latencies."""
    say(f"{backend}: {count} requests for each number of clients")
    many = copy_photographs(photos, folder / f"many-{backend}", count)
    with service(backend, 0.0) as served:
        in_fresh_process(load, served.port, str(pictures), 4, 20)
        begun = served.processor()
        rows = {clients: in_fresh_process(load, served.port, str(pictures), clients, count) for clients in CLIENTS}
        spent = (served.processor() - begun) / count / len(CLIENTS)
    alone = in_fresh_process(run_photographs_with, backend, str(many), 0.0, ["labels"])
    best = min(rows.values(), key=lambda row: row["seconds"])
    allowed = 1 / (alone["seconds"] + best["processor"] / count / usable_cores())
    return {
        "backend": backend,
        "clients": {clients: _row(row) for clients, row in rows.items()},
        "segment_per_second": round(1 / alone["seconds"], 2),
        "allowed_per_second": round(allowed, 2),
        "share": round(count / best["seconds"] / allowed, 3),
        "processor_ms": {"service": round(spent * 1e3, 1), "segment": round(alone["processor"] * 1e3, 1)},
    }


def measure_overload(pictures: Path) -> dict[str, Any]:
    """What becomes of more requests at once than there is room for."""
    say("overload")
    with service("labels", HELD, queue=QUEUE) as served:
        found = in_fresh_process(load, served.port, str(pictures), TOGETHER, TOGETHER)
    return {"queue": QUEUE, "requests": TOGETHER, "statuses": found["statuses"]}


def measure_memory(folder: Path, requests: int) -> dict[str, Any]:
    """Resident memory of the service after a tenth of the requests, and after all of them."""
    import cv2

    from tools.scenes.draw import draw_scene

    say(f"memory: {requests} requests")
    folder.mkdir()
    for number, size in enumerate([(48, 64), (600, 800), (90, 30), (120, 160), (31, 257), (1000, 600), (64, 64)] * 3):
        scene = draw_scene(number, (max(64, size[0]), max(64, size[1]))).frame
        end = (".jpg", ".png", ".webp")[number % 3]
        (folder / f"{number:02d}{end}").write_bytes(cv2.imencode(end, cv2.resize(scene, size[::-1]))[1].tobytes())
    with service("labels", 0.0) as served:
        resident: list[float] = []
        statuses: dict[str, int] = {}
        for part in range(10):
            form = ("labels", "overlay", "regions", "coco", "panoptic")[part % 5]
            path = f"/segment?format={form}"
            found = in_fresh_process(load, served.port, str(folder), 8, requests // 10, path)
            for status, number in found["statuses"].items():
                statuses[status] = statuses.get(status, 0) + number
            resident.append(round(served.memory(), 1))
    # Every form has been asked for once by then.
    return {
        "requests": requests,
        "statuses": statuses,
        "resident_mb": resident,
        "ratio": round(resident[-1] / resident[4], 3),
    }


def _row(found: dict[str, Any]) -> dict[str, Any]:
    latencies = found["latencies"] or [0.0]
    at = {
        f"p{share}": round(latencies[min(len(latencies) - 1, len(latencies) * share // 100)], 1)
        for share in (50, 95, 99)
    }
    done = sum(found["statuses"].values())
    return {
        "per_second": round(done / found["seconds"], 2),
        **at,
        "statuses": found["statuses"],
        "same_answers": found["same"],
        "client_processor_ms": round(found["processor"] / done * 1e3, 2),
    }


def _missed(report: dict[str, Any]) -> list[str]:
    missed = []
    rows = [("stand-in", report["stand_in"])] if "stand_in" in report else []
    rows += [(each["backend"], each) for each in report.get("tiny", [])]
    for name, each in rows:
        if each["share"] < SHARE:
            missed.append(f"{name}: expected at least {SHARE} of the rate, found {each['share']}")
        for row in each.get("clients", {0: each}).values():
            if set(row["statuses"]) != {"200"} or not row["same_answers"]:
                missed.append(f"{name}: expected one and the same answer for each picture, found {row['statuses']}")
    if "overload" in report:
        expected = {"200": QUEUE, "503": TOGETHER - QUEUE}
        if report["overload"]["statuses"] != expected:
            missed.append(f"overload: expected {expected}, found {report['overload']['statuses']}")
    if "memory" in report:
        found = report["memory"]
        if set(found["statuses"]) != {"200"}:
            missed.append(f"memory: expected an answer to each request, found {found['statuses']}")
        if found["ratio"] > MEMORY_RATIO:
            missed.append(f"memory: expected at most {MEMORY_RATIO} times as much, found {found['ratio']}")
    return missed


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "clients", "a second", "p50 ms", "p95 ms", "p99 ms", "client's ms", "statuses")
    rows = [("stand-in", 8, report["stand_in"])] if "stand_in" in report else []
    for each in report.get("tiny", []):
        rows += [(each["backend"], clients, row) for clients, row in each["clients"].items()]
    for name, clients, row in rows:
        figures = [row[key] for key in ("per_second", "p50", "p95", "p99", "client_processor_ms", "statuses")]
        table.add_row(name, str(clients), *map(str, figures))
    console = Console(soft_wrap=True)
    if rows:
        console.print(table)
    for each in [report["stand_in"]] if "stand_in" in report else []:
        console.print(f"stand-in: {each['share']} of its own rate of {1 / SLEEP:g} a second")
    for each in report.get("tiny", []):
        console.print(
            f"{each['backend']}: {each['share']} of {each['allowed_per_second']} a second: runtime.segment reaches "
            f"{each['segment_per_second']}, less the clients' processor time; processor time of a picture "
            f"{each['processor_ms']['service']} ms, and {each['processor_ms']['segment']} ms without the service"
        )
    for name in ("overload", "memory"):
        if name in report:
            console.print(f"{name}: {report[name]}")
    for line in report["missed"]:
        console.print(f"missed: {line}")
