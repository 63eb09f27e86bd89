"""What is fuzzed: each reader with its seeds, which are drawn. A reader is one entry of READERS."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from threading import Event

from runtime.errors import DiffSegError

# What mutations put in: words of the formats, and numbers at their edges.
TOKENS = (
    *(b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"IHDR", b"IDAT", b"IEND", b"acTL", b"VP8X"),
    *(b"II*\x00", b"MM\x00*", b"\xff\xd8\xff", b"\xff\xd9", b"GIF89a", b"BM", b"P6 ", b"65535", b"#?RADIANCE\n"),
    *(
        b"-Y 9 +X 9\n",
        b"ftypavif",
        b"1e999",
        b"-1",
        b"null",
        b"[",
        b"{",
        b'"',
        b"%d",
        b"%04d",
        b"%",
        b"../",
        b"\x93NUMPY",
    ),
    *(b"descr", b"|O", b"PK\x03\x04", b"PK\x05\x06", b"\xed\xa0\x80", b"Infinity", b"99999999999999999999"),
)
MOST = 1 << 16  # bytes of an input


@dataclass(frozen=True, slots=True)
class Reader:
    """One reader.

    Attributes:
        check: reads the bytes. It may raise DiffSegError; whatever else it raises is a finding.
        seeds: gives inputs that it reads.
        modules: of which the branches are covered.
    """

    name: str
    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    modules: tuple[str, ...]


def check_image(data: bytes) -> None:
    """A picture is a frame or a DiffSegError."""
    from runtime.frames.decode import decode_frame
    from runtime.frames.formats import encoded_picture, is_animated, pixels_of

    encoded_picture(data[:32]), is_animated(data), pixels_of(data)
    frame = decode_frame(data, "x")
    assert frame.dtype.name == "uint8" and frame.ndim == 3 and frame.shape[2] == 3 and frame.size


def image_seeds() -> list[bytes]:
    """Drawn pictures in the formats that OpenCV writes."""
    import cv2
    import numpy as np

    drawn = np.add.outer(np.arange(12), np.arange(16)).astype(np.uint8)
    drawn = np.stack([drawn * 9, drawn * 3, 255 - drawn], axis=-1)
    suffixes = ("png", "jpg", "bmp", "tif", "webp", "ppm", "pgm", "pbm", "gif", "hdr", "jp2", "avif", "pfm", "exr")
    seeds = []
    for suffix in suffixes:
        image = drawn.astype(np.float32) / 99 if suffix in ("hdr", "pfm", "exr") else drawn
        try:
            written, data = cv2.imencode(f".{suffix}", image[..., 0] if suffix in ("pgm", "pbm") else image)
        except cv2.error:  # a format that this build leaves out
            continue
        seeds += [data.tobytes()] if written else []
    return [*seeds, cv2.imencode(".png", drawn.astype(np.uint16) * 200)[1].tobytes()]


def check_sidecar(data: bytes) -> None:
    """A description of an engine is an EngineSpec or a DiffSegError."""
    from runtime.engine.spec import EngineSpec

    with tempfile.NamedTemporaryFile(suffix=".onnx.json", dir=_memory()) as file:
        file.write(data)
        file.flush()
        from runtime.files import read_small_text

        EngineSpec.from_json(read_small_text(Path(file.name)), "x").to_json()


def sidecar_seeds() -> list[bytes]:
    """The embedded engine's."""
    from runtime.engine.registry import EMBEDDED
    from runtime.engine.spec import sidecar_path

    text = sidecar_path(EMBEDDED).read_text()
    plan = {"flavour": "tensorrt", "version": "11.0", "gpu": "x", "compute_capability": "9.0", "sha256": "0" * 64}
    return [text.encode(), json.dumps(json.loads(text) | {"plan": plan, "weights": [1, 0, 0.5]}).encode()]


def check_archive(data: bytes) -> None:
    """Label archives, as the evaluation reads them, and the journals of runs. The first byte chooses the reader."""
    from runtime.files import is_own_output
    from runtime.outputs.coco import LISTING
    from runtime.outputs.journal import entries, scan
    from tools.evaluate.masks import _read

    suffix = (".npy", ".png", ".jsonl", ".npz")[data[0] % 4] if data else ".npy"
    if suffix == ".jsonl":
        file = io.BytesIO(data[1:])
        lines = scan(file)
        list(entries(file, lines.counting()))
        lines.undisputed()
        with tempfile.TemporaryDirectory(dir=_memory()) as folder:
            LISTING.journal(Path(folder)).write_bytes(data[1:])
            LISTING.finish(Path(folder))
            json.loads(LISTING.path(Path(folder)).read_bytes())
        return
    with tempfile.NamedTemporaryFile(suffix=suffix, dir=_memory()) as written:
        written.write(data[1:])
        written.flush()
        is_own_output(Path(written.name))
        if suffix != ".npz":
            for values in _read(Path(written.name)):
                assert values.ndim in (2, 3) and values.size


def archive_seeds() -> list[bytes]:
    """A mask in each format, and a journal."""
    import cv2
    import numpy as np

    from runtime.outputs.archive import add_array

    labels = np.arange(48, dtype=np.uint8).reshape(6, 8) // 8
    array, packed = io.BytesIO(), io.BytesIO()
    np.save(array, labels)
    with zipfile.ZipFile(packed, "w") as archive:
        add_array(archive, "labels", labels)
    listed = {"name": "a/b.png", "size": [6, 8], "annotations": [{"label": 0, "category_id": 2}], "words": ["sky"]}
    resumed = {"input": "0" * 64, "made": "1" * 64, "outputs": {"labels": [1, 2]}}
    line = json.dumps({"target": "a/b"} | resumed | listed)
    journal = f'{{"software": "diffseg", "journal": "resume"}}\n{line}\n{line}\n'.encode()
    png = cv2.imencode(".png", labels)[1].tobytes()
    kinds = (array.getvalue(), png, journal, packed.getvalue())
    return [bytes([number]) + data for number, data in enumerate(kinds)]


def check_pattern(data: bytes) -> None:
    """An INPUT of the command line, with patterns of numbered pictures, in a folder that has some."""
    from runtime.frames.find import find_sources
    from runtime.frames.opening import open_clip

    folder = _folder_of_pictures()
    text = data.decode(errors="surrogateescape")
    if "\0" in text or text.startswith(("~", "/")) or ".." in text:  # elsewhere on this machine
        return
    found, _ = find_sources([f"{folder}/{text}"])
    for source in found:
        if source.kind == "sequence":
            clip = open_clip(source, rate=Fraction(25))
            for number, _ in enumerate(clip.read(Event())):
                assert number < 20
            clip.close()


def pattern_seeds() -> list[bytes]:
    """Patterns, globs and names."""
    return [b"a_%04d.png", b"%d.png", b"a_%d.png", b"*.png", b"**/*.p?g", b"a_0001.png", b"sub/%02d.png", b"[a-b]_*"]


def check_frames(data: bytes) -> None:
    """Standard input: the first byte says whether raw frames are expected, and their size."""
    from runtime.frames import raw
    from runtime.frames.source import OpenOptions, Source

    source = Source(Path("-"), Path("stdin"), "stdin", "-")
    with tempfile.TemporaryFile(dir=_memory()) as file:
        file.write(data[1:])
        file.seek(0)
        before, raw.STDIN = raw.STDIN, file.fileno()
        try:
            if data and data[0] % 2:
                size = (1 + data[0] % 16, 1 + data[0] // 16)
                for _, frame in raw.open_stdin(source, OpenOptions(size=size)).read(Event()):
                    assert frame.shape == (size[1], size[0], 3)
            else:
                settled = raw.settle_stdin(source, OpenOptions())
                assert settled.data is not None
                check_image(settled.data)
        finally:
            raw.STDIN = before


def frame_seeds() -> list[bytes]:
    """A picture, and raw frames."""
    return [b"\x00" + seed for seed in image_seeds()] + [b"\x21" + bytes(range(200)) * 3, b"\x00", b"\x01"]


READERS = {
    reader.name: reader
    for reader in (
        Reader("images", check_image, image_seeds, ("runtime.frames",)),
        Reader("sidecars", check_sidecar, sidecar_seeds, ("runtime.engine.spec", "runtime.engine.fields", "json")),
        Reader(
            "archives",
            check_archive,
            archive_seeds,
            ("runtime.outputs", "tools.evaluate.masks"),
        ),
        Reader("patterns", check_pattern, pattern_seeds, ("runtime.frames", "glob", "fnmatch")),
        Reader("frames", check_frames, frame_seeds, ("runtime.frames",)),
    )
}


def is_finding(reader: Reader, data: bytes) -> Exception | None:
    """The exception that a reader should not have raised; None where all is well."""
    try:
        reader.check(data)
    except DiffSegError as error:
        return None if str(error) else error
    except Exception as error:
        return error
    return None


def _memory() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112


@cache
def _folder_of_pictures() -> str:
    seeds = image_seeds()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (folder / "sub").mkdir()
    for name in ("a_0001.png", "a_0002.png", "a_10000.png", "1.png", "2.png", "b_%d.png", "[a].png", "sub/01.png"):
        (folder / name).write_bytes(seeds[0])
    (folder / "a_0003.png").write_bytes(seeds[0][:40])
    (folder / "sub" / "round").symlink_to("..")
    return str(folder)
