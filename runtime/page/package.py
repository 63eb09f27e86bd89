"""onnxruntime-web from the npm registry: one version, whose hash is known beforehand."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import tarfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from runtime.errors import DiffSegError
from runtime.files import cache_folder, write_atomically

NAME, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
REGISTRY = "https://registry.npmjs.org/"
FILE = f"{NAME}-{VERSION}.tgz"
MOST_BYTES = 128 << 20  # of the package
SECONDS = 60  # without a byte
BY_HAND = f"run 'npm pack {NAME}@{VERSION}' where there is a network, and give its file with --package"


def read_package(registry: str, given: Path | None = None) -> bytes:
    """The package as npm packs it: from the file `given`, else from this program's cache, else from the registry.

    Raises DiffSegError where it cannot be read, or its hash is another one.
    """
    if given is not None:
        try:
            with given.open("rb") as file:
                data = file.read(MOST_BYTES)
        except OSError as error:
            raise DiffSegError(f"--package {given}: cannot be read ({error.strerror}); {BY_HAND}") from None
        return _checked(data, f"--package {given}")
    kept = cache_folder() / "npm" / FILE
    with contextlib.suppress(OSError, DiffSegError):
        return _checked(kept.read_bytes(), str(kept))
    data = _fetched(registry)
    with contextlib.suppress(OSError):  # next time it is fetched again
        write_atomically(kept, data)
    return data


def _fetched(registry: str) -> bytes:
    if not registry.startswith(("https://", "http://")):
        raise DiffSegError(f"--registry: expected an address that begins with https://, found {registry!r}")
    address = f"{registry.rstrip('/')}/{NAME}/-/{FILE}"
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            data = answer.read(MOST_BYTES)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DiffSegError(f"cannot fetch {address} ({reason}); {BY_HAND}") from None
    return _checked(data, address)


def _checked(data: bytes, name: str) -> bytes:
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != INTEGRITY:
        raise DiffSegError(f"{name}: expected {NAME} {VERSION} with the hash {INTEGRITY}, found {found}; {BY_HAND}")
    return data


def files_of(package: bytes, names: tuple[str, ...]) -> dict[str, bytes]:
    """Files of the package's folder `dist` by name. Raises DiffSegError where one is missing."""
    found: dict[str, bytes] = {}
    wanted = {f"package/dist/{name}": name for name in names}
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for member in archive:
            if member.name in wanted and (file := archive.extractfile(member)) is not None:
                found[wanted[member.name]] = file.read()
                if len(found) == len(names):
                    return found
    missing = next(name for name in names if name not in found)
    raise DiffSegError(f"{NAME} {VERSION} has no file dist/{missing}; this is a bug of this program")
