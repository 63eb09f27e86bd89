"""What INPUT means: pictures, clips, Parquet files or tar archives, in folders, globs, lists, here or in a store."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.bulk.places import Place, hidden, seal_of
from runtime.errors import DiffSegError
from runtime.files import is_own_output
from runtime.frames.source import IMAGE_SUFFIXES, VIDEO_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Mapping

PICTURES, CLIPS, PARQUET, TAR, LIST = "pictures", "clips", "Parquet files", "tar archives", "list"
ENDINGS: Mapping[str, tuple[str, ...]] = {
    PARQUET: (".parquet", ".pq"),
    TAR: (".tar", ".tgz", ".tar.gz"),
    PICTURES: tuple(sorted(IMAGE_SUFFIXES)),
    CLIPS: tuple(sorted(VIDEO_SUFFIXES)),
    LIST: (".txt", ".lst"),
}
# Where no option names them, the first of these that a Parquet file has.
IMAGE_COLUMNS = (
    "image",
    "bytes",
    "image_bytes",
    "jpg",
    "jpeg",
    "png",
    "content",
    "path",
    "image_path",
    "file_name",
    "uri",
    "url",
)
ID_COLUMNS = ("id", "__key__", "key")


class Entry(NamedTuple):
    """One file of the input: what it is, its name in the data set, and where it is."""

    kind: str
    id: str
    place: Place


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a Parquet file are read.

    Attributes:
        image: of encoded pictures, or of paths. `inside`: the field with the pictures, where the column is a struct.
        is_path: whether they are paths.
        id: of names; None: the file's name and the row's number.
    """

    image: str
    is_path: bool
    id: str | None = None
    inside: str | None = None


def kind_of(path: str) -> str | None:
    """What a file is, by the end of its name; None for any other."""
    name = path.lower()
    return next((kind for kind, endings in ENDINGS.items() if name.endswith(endings)), None)


def find(inputs: Sequence[str], *, clips: bool, left_out: Place) -> tuple[str, Iterator[Entry]]:
    """The kind of the input, and its files, found while they are asked for. What is in the output is left out.

    `clips`: clips are meant, and not pictures. Raises DiffSegError, also while files are asked for, where an INPUT
    cannot be read or holds nothing, or where files of two kinds are mixed.
    """
    wanted = {CLIPS} if clips else {PICTURES, PARQUET, TAR}
    several = len(inputs) > 1
    last = Counter(text.rpartition("/")[2] for text in inputs)
    found = (
        entry for text in inputs for entry in _below(text, wanted, left_out, several, last[text.rpartition("/")[2]] > 1)
    )
    first = next(found)

    def checked() -> Iterator[Entry]:
        yield first
        for entry in found:
            if entry.kind != first.kind:
                raise DiffSegError(
                    f"expected one kind of input, found {first.kind} ({first.place.name}) and {entry.kind} "
                    f"({entry.place.name}); choose one of them by a glob, such as 'folder/**/*.jpg'"
                )
            yield entry

    return first.kind, checked()


def _below(text: str, wanted: set[str], left_out: Place, several: bool, twice: bool) -> Iterator[Entry]:
    """The files of one INPUT. `twice`: another one has the same last part. Raises DiffSegError without files."""
    if not text:
        raise DiffSegError("an empty INPUT; expected a folder, a glob, a list or a URI")
    pattern = _pattern(text)
    root = Place.of(text if pattern is None else pattern[0])
    if pattern is None and not root.exists():
        raise DiffSegError(f"{root.name}: no such file or folder; check the spelling, and the bucket's region")
    if pattern is None and not root.is_folder():
        yield from _file(root, wanted, twice)
        return

    def is_wanted(name: str) -> bool:
        return kind_of(name) in wanted

    start = len(root.path.rstrip("/")) + 1
    empty = True
    for place in root.files(is_wanted, left_out.path if root.is_local == left_out.is_local else ""):
        below = place.path[start:]
        if pattern is not None and not pattern[1](below):
            continue
        if place.is_local and place.path.lower().endswith(".png") and _is_ours(place.path):
            continue
        kind = kind_of(place.path)
        assert kind is not None
        empty = False
        yield Entry(kind, readable(place.name if several else below), place)
    if empty:
        kinds = " or ".join(sorted(wanted))
        clips = "" if CLIPS in wanted else "; for clips add --clips"
        raise DiffSegError(f"{hidden(text)}: expected {kinds}, found none{clips}")


def _file(place: Place, wanted: set[str], twice: bool) -> Iterator[Entry]:
    """A file that the user named: a list, or a file of any name."""
    kind = kind_of(place.path)
    if kind != LIST:
        kind = kind if kind in wanted else CLIPS if CLIPS in wanted else PICTURES
        yield Entry(kind, readable(place.name if twice else place.path.rpartition("/")[2]), place)
        return
    folder = place.path.rpartition("/")[0]
    empty = True
    for line in _lines(place):
        if not line.strip():
            continue
        empty = False
        name = line.rstrip("\r\n")
        relative = "://" not in name and not name.startswith("~") and not os.path.isabs(name)  # noqa: PTH117
        named = place.at(os.path.normpath(f"{folder}/{name}")) if relative else None
        kind = kind_of(name)
        if kind == LIST or (kind is not None and kind not in wanted):
            kind = None
        kind = kind or (CLIPS if CLIPS in wanted else PICTURES)
        yield Entry(kind, readable(name), named or _named(name, kind))
    if empty:
        raise DiffSegError(f"{place.name}: expected a path or URI on each line, found none")


def _named(text: str, kind: str) -> Place:
    """The place of a line. One that no file system knows becomes a row with an error where it is an image."""
    try:
        return Place.of(text)
    except DiffSegError:
        if kind in (PARQUET, TAR):
            raise
        return Place(text, "", None)


def _lines(place: Place) -> Iterator[str]:
    with place.reading():
        if place.is_local:
            with open(place.path, encoding="utf-8-sig", errors="surrogateescape") as file:  # noqa: PTH123
                yield from file
        else:
            yield from place.read().decode("utf-8-sig", errors="replace").split("\n")


def _pattern(text: str) -> tuple[str, Callable[[str], bool]] | None:
    """A glob's folder, and whether a path below it matches; None for any other INPUT."""
    head, mark, query = text.partition("?") if "://" in text else (text, "", "")
    magic = re.search(r"[*\[]" if "://" in text else r"[*?\[]", head)
    if magic is None or ("://" not in text and os.path.lexists(text)):
        return None
    folder, _, _ = head[: magic.start()].rpartition("/")
    rest = head[len(folder) + 1 :] if folder or head.startswith("/") else head
    if "://" in head and not folder.partition("://")[2]:
        raise DiffSegError(f"{hidden(text)}: expected a bucket before the first '*', found none")
    compiled = re.compile(_regular(rest))
    folder = folder or ("/" if head.startswith("/") else ".")
    return f"{folder}{mark}{query}", lambda below: compiled.fullmatch(below) is not None


def _regular(pattern: str) -> str:
    """A glob as a regular expression: `**/` is any number of folders."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    known = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        known[part]
        if part in known
        else part.replace("[!", "[^")
        if part[:1] == "[" and len(part) > 2
        else re.escape(part)
        for part in parts
    )


def _is_ours(path: str) -> bool:
    from pathlib import Path

    return is_own_output(Path(path))


def readable(text: str) -> str:
    """Text that UTF-8 has; a file of any other name cannot be opened by it, and becomes a row with an error."""
    return text.encode(errors="backslashreplace").decode()


def choose_columns(schema: Any, where: str, image: str | None, name: str | None) -> Columns:
    """The columns to read of a `pyarrow.Schema`; `image` and `name`: those that the user names.

    Raises DiffSegError where there is no column of pictures or of paths, or not those that were named.
    """
    import pyarrow as pa

    def plain(kind: Any) -> Any:
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def is_text(kind: Any) -> bool:
        return str(kind) in ("string", "large_string", "string_view")

    count = Counter(schema.names)
    known = [column for column in schema.names if count[column] == 1]  # pyarrow finds no other by its name
    for option, given in (("--image-column", image), ("--id-column", name)):
        if given is not None and given not in known:
            raise DiffSegError(f"{option}: {where}: expected one of {', '.join(known)}, found {given!r}")
    identity = name or next((column for column in ID_COLUMNS if column in known), None)
    if identity is not None:
        kind = plain(schema.field(identity).type)
        if not (is_text(kind) or pa.types.is_integer(kind)):
            if name is not None:
                raise DiffSegError(f"--id-column: {where}: expected texts or whole numbers in {name}, found {kind}")
            identity = None
    for column in [image] if image is not None else [column for column in IMAGE_COLUMNS if column in known]:
        kind = plain(schema.field(column).type)
        if pa.types.is_fixed_size_binary(kind) or str(kind) in ("binary", "large_binary", "binary_view"):
            return Columns(column, False, identity)
        if is_text(kind):
            return Columns(column, True, identity)
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return Columns(column, False, identity, "bytes")
    raise DiffSegError(
        f"{where}: expected a column of pictures (binary) or of paths (text), such as image, bytes or path, found "
        f"{', '.join(f'{field.name} ({field.type})' for field in schema)}; name it by --image-column"
    )


def count_rows(
    places: Iterable[Place], image: str | None, name: str | None
) -> tuple[list[tuple[str, int]], Columns, list[str]]:
    """The rows of each Parquet file, by its footer; the columns to read, which are the same in all; and `seal_of` each.

    Raises DiffSegError where a file is not a Parquet file, or has other columns than the first.
    """
    from concurrent.futures import ThreadPoolExecutor

    def footer(place: Place) -> tuple[str, int, Columns, str]:
        import pyarrow.parquet as pq

        with place.reading(), place.system.open_input_file(place.path) as file:
            seal = seal_of(file)
            opened = pq.ParquetFile(file)
            found = choose_columns(opened.schema_arrow, place.name, image, name)
            return place.text, opened.metadata.num_rows, found, seal

    tables: list[tuple[str, int]] = []
    seals: list[str] = []
    chosen: Columns | None = None
    with ThreadPoolExecutor(16) as pool:
        for text, rows, columns, seal in pool.map(footer, places):
            if chosen not in (None, columns):
                raise DiffSegError(
                    f"{hidden(text)}: expected the columns of the other files ({chosen}), found {columns}; name them "
                    "by --image-column and --id-column"
                )
            chosen = columns
            tables.append((text, rows))
            seals.append(seal)
    assert chosen is not None
    return tables, chosen, seals
