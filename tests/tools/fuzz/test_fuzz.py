"""The fuzzer finds what it should, and what it found once stays mended."""

import json
import random

import pytest
from typer.testing import CliRunner

from runtime.errors import DiffSegError
from runtime.frames import pictures
from tools.fuzz.__main__ import app
from tools.fuzz.readers import READERS, Reader, is_finding
from tools.fuzz.work import SIZE, Board, main, mutate, place_of

# Inputs that raised something other than a DiffSegError once.
FOUND = [
    ("patterns", b"1qtbBM/%099999999999999999999992d.p."),  # OverflowError: a repetition of a regular expression
    ("patterns", b"a_%" + b"9" * 5000 + b"d.png"),  # ValueError: too many digits
    ("archives", b"\x00\x93NUMPY\x01\x00\x10\x00{'descr': (\n      "),  # TokenError of tokenize
]


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_stays_mended(name, data):
    assert is_finding(READERS[name], data) is None


@pytest.mark.parametrize("name", READERS)
def test_seeds_are_read_and_mutations_are_no_findings(name):
    reader = READERS[name]
    seeds, draw, read = reader.seeds(), random.Random(7), 0
    for data in seeds:
        try:
            reader.check(data)
            read += 1
        except DiffSegError:
            pass
    assert read >= len(seeds) - 2  # AVIF and others that this build of OpenCV only writes
    for _ in range(20):
        data = mutate(draw.choice(seeds), seeds, draw)
        assert is_finding(reader, data) is None, data


def test_a_fault_is_found_and_kept_once(tmp_path, monkeypatch):
    def check(data):
        if len(data) % 2:
            raise KeyError(data)
        raise DiffSegError("an input that is one line")

    reader = Reader("test", check, lambda: [b"ab", b"abc", b"abcde"], ())
    monkeypatch.setitem(READERS, "test", reader)
    assert isinstance(is_finding(reader, b"abc"), KeyError) and is_finding(reader, b"ab") is None
    assert place_of(is_finding(reader, b"abc")) == place_of(is_finding(reader, b"a"))
    (tmp_path / "board").write_bytes(bytes(SIZE))
    board = Board(tmp_path / "board")
    main("test", 0.1, board, tmp_path / "cases", coverage=False, seed=1)
    assert board.count > 3 and len(board.current) < SIZE
    case, text = sorted((tmp_path / "cases").iterdir())
    assert case.read_bytes() == b"abc" and text.read_text().startswith("KeyError")


@pytest.mark.slow
def test_the_command(tmp_path):
    words = ["patterns", "--minutes", "0.05", "--output", str(tmp_path), "--json", "--no-coverage"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)[0]
    assert found["inputs"] > 0 and not any(found[name] for name in ("found", "crashes", "hangs", "cases"))


def test_numbers_of_pictures_that_no_name_has(tmp_path):
    (tmp_path / "a_1.png").touch()
    with pytest.raises(DiffSegError, match="no picture of that name"):
        pictures.numbered_pictures(tmp_path / f"a_%{'9' * 400}d.png")
    assert len(pictures.numbered_pictures(tmp_path / "a_%d.png")) == 1
