"""What is built and run under sanitizers: two builds of the merge core, each with both bodies of the tile product.

The threads of a block are real threads in all of them: AddressSanitizer does not know the stacks of fibers, and
ThreadSanitizer sees no race between them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import DiffSegError
from runtime.native import build

ROOT = Path(__file__).resolve().parents[2]
HARNESS = Path(__file__).with_name("harness.cpp")
TESTS = ("tests/runtime/native/test_native.py", "tests/runtime/native/test_native_parts.py")
LIBRARY = "DIFFSEG_TEST_LIBRARY"  # tests/runtime/conftest.py reads it
CORPUS = "corpus"
FINDING = 77  # exit status of a program that a sanitizer ends
INPUT, SECONDS, MEMORY = 512, 120, 4096  # of the fuzzer: bytes of an input; seconds and MB that one may take
COMMON = ("-std=c++17", "-O1", "-g", "-fno-omit-frame-pointer", "-pthread", "-DDIFFSEG_CPU", "-DDIFFSEG_CPU_THREADS")


@dataclass(frozen=True, slots=True)
class Sanitizer:
    """A kind of build.

    Attributes:
        name: for people and `--only`.
        tests: which of the native tests it runs, for pytest's -k; all of them if empty.
        flags: of both compilers.
        counted: whether the fuzzer counts in the library which code an input reaches. All threads count in the same
            place, which is a race; without it the fuzzer sees what the harness reaches.
        runtime: the library that a program which is not built so, as Python, must load first.
        options: environment variables for whatever runs it.
    """

    name: str
    tests: str
    flags: tuple[str, ...]
    counted: bool
    runtime: str
    options: tuple[tuple[str, str], ...]


SANITIZERS = (
    Sanitizer(
        "address",
        "",
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DDIFFSEG_CPU_BARRIERS"),
        True,
        "libasan.so",
        (("ASAN_OPTIONS", f"exitcode={FINDING}"), ("UBSAN_OPTIONS", f"print_stacktrace=1:exitcode={FINDING}")),
    ),
    Sanitizer(
        "thread",
        "not embedded_engine",  # ONNX Runtime is not built so, and its locks look like races
        ("-fsanitize=thread",),
        False,
        "libtsan.so",
        (("TSAN_OPTIONS", f"halt_on_error=1:exitcode={FINDING}:report_thread_leaks=0"),),
    ),
)
BODIES = {"plain": (), "tensor": ("-DDIFFSEG_CPU_TENSOR",)}


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that is run. `kind`: "tests" or "fuzz"."""

    kind: str
    sanitizer: Sanitizer
    body: str

    @property
    def name(self) -> str:
        """For people and `--only`: "fuzz, address, plain"."""
        return f"{self.kind}, {self.sanitizer.name}, {self.body}"

    def build_commands(self, target: Path) -> list[list[str]]:
        """Compile the library for the tests, or the fuzzer with the library in it. Raises as `compiler` does."""
        flags = [*COMMON, *self.sanitizer.flags, f"-I{build.HERE}"]
        library = [*flags, *BODIES[self.body], "-x", "c++", str(build.SOURCE)]
        if self.kind == "tests":
            return [[compiler("g++"), *library, "-shared", "-fPIC", "-fvisibility=hidden", "-o", str(target)]]
        counted = ["-fsanitize=fuzzer-no-link"] if self.sanitizer.counted else []
        made, clang = target.with_suffix(".o"), compiler("clang++")
        return [
            [clang, *counted, *library, "-c", "-o", str(made)],
            [clang, *flags, "-fsanitize=fuzzer", str(HARNESS), str(made), "-o", str(target)],
        ]

    def run_command(self, built: Path, folder: Path, seconds: int) -> list[str]:
        """Run what was built. The fuzzer runs for `seconds` and leaves inputs that fail in `folder`.

        All fuzzers share a folder of inputs that reach new code, so that each begins where the last one ended.
        """
        if self.kind == "tests":
            # Output is not captured: a sanitizer's report would be lost with the process.
            command = [sys.executable, "-m", "pytest", "-q", "-s", "-x", "-m", "not slow and not gpu"]
            return [*command, "-k", self.sanitizer.tests, *TESTS]
        return [
            *(str(built), f"-max_total_time={seconds}", f"-max_len={INPUT}", "-len_control=0", "-print_final_stats=1"),
            *(f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY}", f"-error_exitcode={FINDING}"),
            *(f"-artifact_prefix={folder}/", str(folder.parent / CORPUS)),
        ]

    def environment(self, built: Path) -> dict[str, str]:
        """The environment in which it runs."""
        added = dict(self.sanitizer.options)
        if self.kind == "tests":
            found = _output([compiler("g++"), f"-print-file-name={self.sanitizer.runtime}"])
            added |= {LIBRARY: str(built), "LD_PRELOAD": found, "OPENBLAS_NUM_THREADS": "1"}
            if "ASAN_OPTIONS" in added:  # Python itself leaks
                added["ASAN_OPTIONS"] += ":detect_leaks=0"
        return {**os.environ, **added}


PARTS = tuple(Part(kind, sanitizer, body) for kind in ("fuzz", "tests") for sanitizer in SANITIZERS for body in BODIES)


def chosen(only: list[str]) -> list[Part]:
    """The parts whose names have all the words of one of `only`; all parts if it is empty."""
    return [part for part in PARTS if not only or any(set(words.split()) <= set(_words(part)) for words in only)]


def _words(part: Part) -> list[str]:
    return part.name.replace(",", "").split()


def compiler(name: str) -> str:
    """The path of a compiler. Raises DiffSegError where it is not installed."""
    found = shutil.which(name)
    if found is None:
        package = "clang" if name.startswith("clang") else name
        raise DiffSegError(f"{name} is not on PATH; the sanitizers need it: apt-get install {package}")
    return found


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
