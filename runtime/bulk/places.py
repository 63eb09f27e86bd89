"""Files and folders on this machine or in a store, by paths or URIs, through the file systems of pyarrow."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from runtime.errors import DiffSegError
from runtime.files import write_atomically
from runtime.outputs.failures import explain

PART = 8 << 20  # bytes that are read of a file at a time
SEALED = 1 << 16  # bytes of a Parquet file's end by which a change is seen; a footer fits as a rule
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# Stores in which an object appears when it is whole: what is not needs no temporary name.
_COMMITS = ("s3", "gcs", "abfs")
_CREDENTIALS = re.compile(
    r"ACCESS_DENIED|credential|UNAUTHORIZED|INVALID_ACCESS|SIGNATURE_DOES|Permission|HTTP status 40[13]|"
    r"access token|authenticate",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder.

    Attributes:
        text: the absolute path on this machine, or the URI, such as "s3://bucket/photos?region=eu-west-1".
        path: as its file system has it. `system`: a `pyarrow.fs.FileSystem`.
    """

    text: str
    path: str
    system: Any = field(repr=False, compare=False)

    @classmethod
    def of(cls, text: str) -> Place:
        """The place that a path or URI names.

        Raises DiffSegError where there is no file system for it, or pyarrow is missing.
        """
        try:
            from pyarrow import fs
        except ImportError:
            raise DiffSegError('paths of data sets need pyarrow: pip install "diffseg[bulk]"') from None

        if not _SCHEME.match(text):
            path = os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111 - links stay
            return cls(path, path, _local())
        try:
            system, path = _system_of(text)
        except OSError as error:
            raise DiffSegError(f"{hidden(text)}: cannot be reached ({first_line(error)}); {remedy(error)}") from None
        except Exception as error:  # several kinds, by the scheme
            raise DiffSegError(
                f"{hidden(text)}: expected a path, or a URI such as s3://bucket/folder, gs://bucket/folder or "
                f"file:///folder ({first_line(error)})"
            ) from None
        local = isinstance(system, fs.LocalFileSystem)
        return cls(path if local else text, path.rstrip("/") or path, system)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return self.text == self.path

    @property
    def name(self) -> str:
        """For messages: without passwords."""
        return hidden(self.text)

    def __truediv__(self, below: str) -> Place:
        """What is below a folder."""
        return self.at(f"{self.path.rstrip('/')}/{below}")

    def at(self, path: str) -> Place:
        """Another path of the same file system."""
        if self.is_local:
            return Place(path, path, self.system)
        head, mark, query = self.text.partition("?")
        # Of hdfs://host:9000/folder the path has neither scheme nor host.
        prefix = head.rstrip("/").removesuffix(self.path)
        return Place(f"{prefix}{quote(path, safe='/=@:+,;!$&()*~-._')}{mark}{query}", path, self.system)

    def exists(self) -> bool:
        """Whether a file or folder is there. Raises DiffSegError where that cannot be known."""
        return self._kind() != "NotFound"

    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self._kind() == "Directory"

    def read(self, check: Callable[[int, str], None] = lambda size, name: None) -> bytes:
        """A file's bytes. Raises DiffSegError, also where `check` does for the number of bytes that have come."""
        parts, size = list[bytes](), 0
        with self.reading(), self.system.open_input_stream(self.path) as file:
            while part := file.read(PART):
                parts.append(part)
                size += len(part)
                check(size, self.name)
        return b"".join(parts)

    def write(self, data: bytes | memoryview) -> None:
        """Write a whole file or none. Raises DiffSegError, `NoMoreSpace` where the disk is full."""
        try:
            if self.is_local:
                write_atomically(Path(self.path), data)
            elif self.system.type_name in _COMMITS:
                with self.system.open_output_stream(self.path) as file:
                    file.write(data)
            else:
                part = f"{self.path}.{os.getpid()}.part"
                self.system.create_dir(self.path.rpartition("/")[0], recursive=True)
                with self.system.open_output_stream(part) as file:
                    file.write(data)
                self.system.move(part, self.path)
        except Exception as error:
            raise self.failed(error, "written") from None

    def reading(self) -> _Reading:
        """A block in which errors of the store become a DiffSegError that names the place."""
        return _Reading(self)

    def failed(self, error: Exception, done: str) -> DiffSegError:
        """Why a place cannot be `done`, read or written, in one line."""
        if isinstance(error, DiffSegError):
            return error
        number = getattr(error, "errno", None)
        if done == "written" and (self.is_local or number in (errno.ENOSPC, errno.EDQUOT)):
            return explain(Path(self.path), error, "what was finished is whole")
        advice = "" if self.is_local else f"; {remedy(error)}"
        if isinstance(error, FileNotFoundError) or number == errno.ENOENT:
            return DiffSegError(f"{self.name}: no such file or folder{advice}")
        said = getattr(error, "strerror", None) if self.is_local else None
        reason = str(said or first_line(error))
        return DiffSegError(f"{self.name}: cannot be {done} ({reason}){advice}")

    def check_writable(self) -> None:
        """Raise DiffSegError unless a file can be written below this folder."""
        probe = self / "_diffseg/.probe"
        probe.write(b"")
        with contextlib.suppress(OSError):  # who may write need not be allowed to delete
            self.system.delete_file(probe.path)

    def files(self, wanted: Callable[[str], bool], left_out: str = "") -> Iterator[Place]:
        """Files below this folder whose name is `wanted`, by folders, sorted; nothing hidden.

        `left_out`: the path of a folder that is not entered. Only the names of one folder are in memory at a time.
        """
        waiting = [self.path]
        while waiting:
            folder = waiting.pop()
            names, folders = self._inside(folder)
            waiting += [f"{folder.rstrip('/')}/{name}" for name in sorted(folders, reverse=True)]
            waiting = [path for path in waiting if path != left_out and not path.endswith("/_diffseg")]
            for name in sorted(name for name in names if wanted(name)):
                yield self.at(f"{folder.rstrip('/')}/{name}")

    def _inside(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of files and folders in a folder that are not hidden."""
        names: list[str] = []
        folders: list[str] = []
        with self.at(folder).reading():
            if self.is_local:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name[0] != ".":
                            (folders if entry.is_dir(follow_symlinks=False) else names).append(entry.name)
                return names, folders
            from pyarrow import fs

            for info in self.system.get_file_info(fs.FileSelector(folder)):
                if info.base_name[:1] != ".":
                    (folders if info.type == fs.FileType.Directory else names).append(info.base_name)
        return names, folders

    def _kind(self) -> str:
        with self.reading():
            return str(self.system.get_file_info(self.path).type.name)


class _Reading:
    def __init__(self, place: Place) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) or type(error).__module__.startswith("pyarrow"):
            assert isinstance(error, Exception)
            raise self._place.failed(error, "read") from None


def seal_of(file: Any) -> str:
    """What changes with an open Parquet file: a hash of its length and its end, with offsets and statistics."""
    length = file.size()
    file.seek(max(0, length - SEALED))
    end = file.read()
    file.seek(0)
    return hashlib.blake2b(length.to_bytes(8, "little") + end, digest_size=8).hexdigest()


def is_absolute(text: str) -> bool:
    """Whether a path or URI means the same in all working folders."""
    return bool(_SCHEME.match(text)) or os.path.isabs(os.path.expanduser(text))  # noqa: PTH111, PTH117


def hidden(text: str) -> str:
    """A URI without its password and secret keys."""
    text = re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", text)
    return re.sub(r"([?&](?:secret_key|access_key|session_token)=)[^&]*", r"\1***", text)


def remedy(error: Exception) -> str:
    """What to look at where a store cannot be used."""
    if _CREDENTIALS.search(str(error)):
        return "check the credentials: of S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
    return "check the address and the network"


def first_line(error: Exception) -> str:
    """The beginning of an error's message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


@functools.cache
def _local() -> Any:
    from pyarrow import fs

    return fs.LocalFileSystem()


@functools.lru_cache(maxsize=64)
def _of_root(root: str, query: str) -> Any:
    """The file system of a bucket, opened once in a process: each has its connections."""
    import pyarrow as pa
    from pyarrow import fs

    if root.startswith("s3://"):
        # A small file is then one request in place of three.
        with contextlib.suppress(pa.ArrowInvalid):  # of an older pyarrow
            return fs.FileSystem.from_uri(f"{root}?{'&'.join(filter(None, (query, 'allow_delayed_open=true')))}")[0]
    elif "retry_limit_seconds" not in query:
        # Without credentials Google's library would look for them for a quarter of an hour.
        query = "&".join(filter(None, (query, "retry_limit_seconds=30")))
    return fs.FileSystem.from_uri(f"{root}?{query}" if query else root)[0]


def _system_of(text: str) -> tuple[Any, str]:
    from pyarrow import fs

    match = re.match(r"((?:s3|gs|gcs)://[^/?]+)(/[^?]*)?(?:\?(.*))?$", text)
    if match is None:
        system, path = fs.FileSystem.from_uri(text)
        return system, path
    from urllib.parse import unquote

    bucket = match[1].rpartition("@")[2].rpartition("//")[2]
    return _of_root(match[1], match[3] or ""), unquote(f"{bucket}{match[2] or ''}")
