"""What is done is not done twice; what is not whole, or not the same any more, is done again."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from runtime import Result
from runtime.outputs.journal import INDEX, Journal, Lines, key_of, scan
from runtime.segment import app
from runtime.stream import resume as resume_module
from runtime.stream.contents import content_of_engine
from runtime.stream.resume import Ledger
from tests.runtime.clips import StandIn, draw, small_disk, write_clip

ROOT = Path(__file__).parents[3]
KINDS = "labels,panoptic,masks"
TINY = ROOT / "engines" / "tiny.onnx"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Three drawn photographs in `in/`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number in range(3):
        cv2.imwrite(f"in/{number}.png", draw(5 * number))
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """An engine that takes no time."""
    monkeypatch.setattr("runtime.segmenter.open_engine", lambda *arguments, **options: StandIn())


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status, result.stderr
    return result


def resume(*arguments, status=0):
    """How many were skipped, as the last line and the last JSON line say, and what else was said."""
    result = run("in", "--save", KINDS, *arguments, "--resume", "--json", status=status)
    *lines, last = map(json.loads, result.stdout.splitlines())
    assert len(lines) == last["segmented"] and all("segments" in line for line in lines)
    *said, ending = result.stderr.splitlines()
    total = sum(last.values())
    assert ending.startswith(f"{last['segmented']} of {total} ")
    assert f", {last['skipped']} skipped" in ending
    return last["skipped"], said


def contents(folder, but=(INDEX,)):
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in but}


def test_what_is_done_is_skipped_and_counted(quick, folder):
    assert resume() == (0, [])
    before = {path: path.stat().st_mtime_ns for path in (folder / "segmented").glob("*.png")}
    kept = contents(folder / "segmented")
    assert resume() == (3, [])
    assert {path: path.stat().st_mtime_ns for path in (folder / "segmented").glob("*.png")} == before
    assert contents(folder / "segmented") == kept
    cv2.imwrite("in/3.png", draw(40))
    assert resume() == (3, [])
    assert len(json.loads((folder / "segmented/panoptic.json").read_text())["images"]) == 4
    # Fewer kinds of the same are done, too; further ones are not.
    assert resume("--save", "masks")[0] == 4
    assert resume("--save", "overlay")[0] == 0
    assert resume("--save", f"{KINDS},overlay")[0] == 4


def test_a_changed_input_is_done_again(quick, folder):
    resume()
    size = (folder / "in/1.png").stat().st_size
    status = (folder / "in/1.png").stat()
    data = cv2.imencode(".png", 255 - draw(5), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
    (folder / "in/1.png").write_bytes(data + b"\0" * (size - len(data)))  # of the same length and time
    os.utime(folder / "in/1.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    skipped, said = resume()
    assert skipped == 2 and said == ["1 input was done before, but changed since: done again"]
    kept = contents(folder / "segmented")
    run("in", "--save", KINDS, "--output", "fresh")
    assert contents(folder / "fresh") == kept  # its entry in panoptic.json has kept its place


@pytest.mark.parametrize("option", [("--threshold", "0.9"), ("--refine", "snap"), ("--min-area", "30")])
def test_another_setting_is_another_result(quick, option):
    resume()
    skipped, said = resume(*option)
    assert skipped == 0 and said == ["3 inputs were done before, but by another engine or other settings: done again"]
    assert resume(*option)[0] == 3 and resume()[0] == 0


@pytest.mark.slow
def test_another_engine_is_another_result(folder):
    engine = folder / "engines" / "tiny.onnx"
    engine.parent.mkdir()
    for suffix in ("", ".json"):
        shutil.copy(f"{TINY}{suffix}", f"{engine}{suffix}")
    resume()
    assert resume("--engine", engine)[0] == 3  # the same one, elsewhere
    before = content_of_engine(engine)
    engine.write_bytes(engine.read_bytes() + b"\x72\x00")  # one more field, an empty one
    assert content_of_engine(engine) != before
    assert resume("--engine", engine)[0] == 0 and resume("--engine", engine)[0] == 3


@pytest.mark.parametrize("name", ["0_labels.png", "0_masks/000000.png", "0_panoptic.png", "panoptic.jsonl"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_outputs_that_are_missing_or_cut_do_not_count(quick, folder, name, damage):
    resume()
    kept = contents(folder / "segmented")
    path = folder / "segmented" / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    skipped, said = resume()
    listed = name == "panoptic.jsonl"
    why = "not listed any more under its name" if listed else "outputs are missing or have been changed"
    again = [f"1 input was done before, but {why}: done again"]
    # A journal that is gone is made anew from what was assembled from it.
    assert (skipped, said) == ((3, []) if listed and damage == "gone" else (2, again))
    assert contents(folder / "segmented") == kept


def test_a_kind_that_shares_its_file_is_looked_for_too(quick, folder):
    assert resume("--save", "archive,labels")[0] == 0 and resume("--save", "labels")[0] == 3
    (folder / "segmented" / "0_labels.png").unlink()
    assert resume("--save", "labels")[0] == 2


def test_a_run_without_resume_voids_what_it_writes(quick, folder):
    run("in/1.png", "--save", KINDS)
    assert not (folder / "segmented" / INDEX).exists()  # a run of one input needs no index
    assert resume() == (
        0,
        [f"segmented: no {INDEX}, which runs of several inputs write: all is segmented"],
    )
    run("in/1.png", "--save", KINDS, "--threshold", "3")
    assert resume()[0] == 2


def test_a_run_of_several_inputs_can_be_resumed_without_having_asked_for_it(quick, folder):
    run("in", "--save", KINDS)
    assert resume() == (3, [])


def test_what_python_saves_in_the_folder_is_void_too(quick, folder):
    resume()
    Result(np.zeros((48, 64), np.int32), 1, {}).save(folder / "segmented" / "1", "labels")
    assert resume()[0] == 2
    Result(np.zeros((48, 64), np.int32), 1, {}).save(folder / "elsewhere" / "1", "labels")
    assert contents(folder / "elsewhere", ()).keys() == {"1_labels.png"}


def test_an_unfinished_line_or_output_never_counts(quick, folder):
    resume()
    index = folder / "segmented" / INDEX
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(lines[:-1]) + lines[-1][:-10])
    assert resume()[0] == 2
    # A run with other settings began to write this one and was killed: its outputs may be of either.
    begun = json.loads(lines[-2])
    assert begun["target"] == "2" and "kinds" not in begun
    with index.open("a") as file:
        file.write(json.dumps(begun | {"made": "other"}) + "\n")
    assert resume()[0] == 2 and resume()[0] == 3


@pytest.mark.parametrize("kinds", ['{"labels":[1]}', "3", '{"labels":{"\\u0000":[1]}}', '{"labels":{"../../etc":7}}'])
def test_an_index_that_somebody_edited_does_no_harm(quick, folder, kinds):
    run("in", "--save", "labels", "--resume")
    index = folder / "segmented" / INDEX
    *lines, last = index.read_text().splitlines()
    entry = json.loads(last)
    index.write_text("\n".join([*lines, last.replace(json.dumps(entry["kinds"], separators=(",", ":")), kinds)]) + "\n")
    for skipped in (2, 3):
        assert f", {skipped} skipped" in run("in", "--save", "labels", "--resume").stderr


def test_names_that_are_not_utf_8(quick, folder):
    Path("in/0.png").rename(os.fsdecode(b"in/\xff\xe9.png"))
    assert resume()[0] == 0 and resume()[0] == 3
    assert len(json.loads((folder / "segmented/panoptic.json").read_text())["images"]) == 3


def test_two_runs_that_wrote_one_output_with_other_settings_both_do_not_count(folder):
    index = Journal(folder / "index.jsonl", "")
    for target, made in (("a", 1), ("b", 1), ("a", 2), ("a", 1), ("b", 1), ("c", 2), ("a", 2)):
        index.add(json.dumps({"target": target, "made": made}).encode() + b"\n")
    with index.path.open("rb") as file:
        assert set(scan(file).undisputed()) == {key_of("b"), key_of("c")}
    index.compact(lambda lines: sorted(lines.undisputed().values()))
    assert [json.loads(line).get("target") for line in index.path.read_text().splitlines()] == [None, "b", "c"]


def test_a_journal_is_compacted_while_others_add_to_it(folder):
    program = """
import sys, pathlib
from runtime.outputs.journal import Journal, Lines
journal = Journal(pathlib.Path("many.jsonl"), "")
for number in range(300):
    journal.add(b'{"target":"%s-%d"}\\n' % (sys.argv[1].encode(), number // 2))
    if number % 50 == 0:
        journal.compact(Lines.counting)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [subprocess.Popen([sys.executable, "-c", program, name], env=environment) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    Journal(folder / "many.jsonl", "").compact(Lines.counting)
    head, *lines = map(json.loads, (folder / "many.jsonl").read_text().splitlines())
    assert head["software"] == "diffseg"
    assert sorted(line["target"] for line in lines) == sorted(f"{name}-{n}" for name in "ab" for n in range(150))


def test_an_index_of_someone_else_is_left_alone(quick, folder):
    (folder / "segmented").mkdir()
    (folder / "segmented" / INDEX).write_text('{"my": "notes"}\n')
    for option in ((), ("--resume",)):
        result = run("in", *option, status=1)
        (line,) = result.stderr.splitlines()
        assert (
            line
            == f"error: segmented/{INDEX}: exists and is not this program's; move it away or choose another --output"
        )
    assert contents(folder / "segmented", ()) == {INDEX: b'{"my": "notes"}\n'}


def test_resume_needs_outputs(folder):
    result = run("in", "--save", "none", "--resume", status=2)
    assert "--resume: expected outputs to go by, found --save none" in result.stderr


def test_an_index_that_cannot_be_written_fails_the_input_in_one_line(quick, folder):
    resume()
    resume()  # which compacts the index
    cv2.imwrite("in/3.png", draw(40))
    index = folder / "segmented" / INDEX
    with small_disk(index.stat().st_size + 10):
        result = run("in", "--save", "labels", "--resume", status=1)
    assert f"{INDEX}: a line could not be written whole; is the disk full?" in result.stderr
    assert "Traceback" not in result.stderr and result.stderr.splitlines()[-1].startswith("0 of 4 images")
    assert resume()[0] == 3 and resume()[0] == 4


def test_whole_clips(quick, folder):
    shutil.rmtree("in")
    (folder / "in").mkdir()
    write_clip(folder / "in/a.mp4", 5)
    write_clip(folder / "in/b.mp4", 3)
    kinds = ("--save", "labels,overlay,panoptic,npz")
    first = run("in", *kinds, "--resume")
    assert first.stderr.splitlines()[-1] == "2 of 2 inputs segmented into segmented, 0 skipped"
    kept = contents(folder / "segmented", (INDEX,))
    again = run("in", *kinds, "--resume", "--json")
    assert json.loads(again.stdout) == {"segmented": 0, "skipped": 2, "failed": 0}
    assert contents(folder / "segmented") == kept
    (folder / "segmented/a_labels/000002.png").unlink()
    assert ", 1 skipped" in run("in", *kinds, "--resume").stderr.splitlines()[-1]
    assert ", 0 skipped" in run("in", *kinds, "--resume", "--every", "2").stderr.splitlines()[-1]
    for number in range(3):
        cv2.imwrite(f"shot_{number}.png", draw(number))
    for skipped in (0, 1):
        ending = run("shot_%d.png", "--save", "labels", "--resume").stderr.splitlines()[-1]
        assert f", {skipped} skipped" in ending
    cv2.imwrite("shot_1.png", draw(30))
    assert ", 0 skipped" in run("shot_%d.png", "--save", "labels", "--resume").stderr.splitlines()[-1]


def test_a_damaged_clip_is_never_done(quick, folder):
    data = write_clip(folder / "clip.ts", 12).read_bytes()
    (folder / "clip.ts").write_bytes(data[: len(data) // 2] + b"\0" * 2000)
    for _ in range(2):
        result = CliRunner().invoke(app, ["clip.ts", "--save", "labels", "--resume"])
        assert ", 0 skipped" in result.stderr.splitlines()[-1] or result.exit_code == 0


@pytest.fixture
def many(folder):
    """Forty photographs, and what an uninterrupted run makes of them."""
    pytest.importorskip("pycocotools")
    for number in range(40):
        cv2.imwrite(f"in/{number:02d}.png", cv2.resize(draw(number), (256, 192)))
    for name in ("0", "1", "2"):
        (folder / "in" / f"{name}.png").unlink()
    run("in", "--save", "labels,coco,panoptic", "--output", "whole")
    return contents(folder / "whole")


def as_in_a_terminal():
    """What a shell starts in the background ignores SIGINT, and so would its children."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def start(*arguments, **options):
    command = [sys.executable, "-m", "runtime.segment", "in", "--save", "labels,coco,panoptic", "--json", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_goes_on_where_it_was(folder, many, number):
    pytest.importorskip("pycocotools")
    with start("--resume", preexec_fn=as_in_a_terminal) as process:
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(number)
        rest, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    done = 5 + len(rest.splitlines())
    if number != signal.SIGKILL:
        done -= 1  # the last line has the counts
        assert json.loads(rest.splitlines()[-1]) == {"segmented": done, "skipped": 0, "failed": 0}
        assert said.splitlines()[-1].endswith(f"; {done} of 40 images segmented into segmented, 0 skipped")
    assert done < 40
    result = run("in", "--save", "labels,coco,panoptic", "--resume", "--json")
    last = json.loads(result.stdout.splitlines()[-1])
    assert done - 1 <= last["skipped"] < 40 and last["segmented"] == 40 - last["skipped"]
    assert contents(folder / "segmented") == many
    assert f", {last['skipped']} skipped" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_two_programs_in_one_folder(folder, many):
    pytest.importorskip("pycocotools")
    programs = [start("--resume"), start("--resume", "--threshold", "0.9")]
    for program in programs:
        _, errors = program.communicate(timeout=120)
        assert program.returncode == 0, errors
    result = run("in", "--save", "labels,coco,panoptic", "--resume", "--json")
    found = contents(folder / "segmented")
    lists = {"instances.json", "panoptic.json", "instances.jsonl", "panoptic.jsonl"}
    assert found.keys() == many.keys() and not [
        name for name in found if name not in lists and found[name] != many[name]
    ]
    for name in ("instances.json", "panoptic.json"):
        read = json.loads(found[name])
        assert len(read["images"]) == 40
        wanted = json.loads(many[name])
        assert sum(len(one.get("segments_info", [0])) for one in read["annotations"]) == sum(
            len(one.get("segments_info", [0])) for one in wanted["annotations"]
        )
    assert json.loads(result.stdout.splitlines()[-1])["failed"] == 0


def test_a_run_with_nothing_to_do_writes_nothing(quick, folder, monkeypatch):
    """On a read-only disk it succeeds."""
    pytest.importorskip("pycocotools")
    options = ("--save", "labels,coco")
    assert resume(*options)[0] == 0 and resume(*options)[0] == 3
    before = {path: path.stat().st_mtime_ns for path in (folder / "segmented").iterdir()}
    assert resume(*options)[0] == 3
    assert {path: path.stat().st_mtime_ns for path in (folder / "segmented").iterdir()} == before


def test_a_folder_that_cannot_be_written_is_refused_once(quick, folder, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as on a read-only disk; root may write everywhere else
    ran = run("in", status=1)
    assert ran.stderr.count("error: ") == 1 and "which is read-only" in ran.stderr


def listed(folder, kind="panoptic"):
    return sorted(image["file_name"] for image in json.loads((folder / f"segmented/{kind}.json").read_text())["images"])


def test_a_photograph_whose_outputs_get_another_name_is_listed_once(quick, folder):
    resume()
    (folder / "in/0.png").rename(folder / "kept.png")
    cv2.imwrite("in/0.jpg", draw(3))
    resume()
    (folder / "kept.png").rename(folder / "in/0.png")  # now both have their suffix in the outputs' names
    assert resume()[0] == 2 and listed(folder) == ["0.jpg", "0.png", "1.png", "2.png"]
    (folder / "in/0.jpg").unlink()
    assert resume()[0] == 2 and listed(folder) == ["0.jpg", "0.png", "1.png", "2.png"]
    assert resume()[0] == 3


def test_an_assembled_file_that_is_cut_is_made_anew(quick, folder):
    resume()
    path = folder / "segmented/panoptic.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert resume() == (3, []) and path.read_bytes() == whole


@pytest.mark.parametrize("kind", ["panoptic", "coco"])
def test_a_journal_that_is_gone_is_made_from_the_assembled_file(quick, folder, kind):
    if kind == "coco":
        pytest.importorskip("pycocotools")
    name = {"coco": "instances"}.get(kind, kind)
    run("in", "--save", kind)
    before = json.loads((folder / f"segmented/{name}.json").read_text())
    (folder / f"segmented/{name}.jsonl").unlink()
    cv2.imwrite("new.png", draw(40))
    run("new.png", "in/1.png", "--save", kind)
    after = json.loads((folder / f"segmented/{name}.json").read_text())
    assert listed(folder, name) == ["0.png", "1.png", "2.png", "new.png"]
    for one in (before, after):
        names = {image["id"]: image["file_name"] for image in one["images"]}
        for annotation in one["annotations"]:
            annotation.pop("id", None)
            annotation["image"] = names[annotation.pop("image_id")]
    assert [one for one in after["annotations"] if one["image"] == "0.png"] == [
        one for one in before["annotations"] if one["image"] == "0.png"
    ]
    (folder / f"segmented/{name}.jsonl").unlink()
    path = folder / f"segmented/{name}.json"
    path.write_bytes(path.read_bytes().replace(b'"width"', b'"weight"'))
    said = run("new.png", "--save", kind, status=1).stderr
    assert said.count("\n") == 1 and "found a damaged file without its journal" in said


def test_a_full_disk_ends_the_run_with_one_line(quick, folder, monkeypatch):
    def refuse(path, data):
        if path.name.startswith("1"):
            raise OSError(28, os.strerror(28))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    for number in range(3, 9):
        cv2.imwrite(f"in/{number}.png", draw(5 * number))
    monkeypatch.setattr("runtime.outputs.png.write_atomically", refuse)
    said = run("in", "--save", "labels", status=1).stderr.splitlines()
    assert said == [
        "error: segmented/1_labels.png: the disk is full; choose a folder you may write to, with space, by --output",
        "1 of 9 images segmented into segmented",
    ]
    monkeypatch.undo()


def test_an_index_leads_to_no_other_folder(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(resume_module, "_extent", lambda path: looked.append(path) or [1])
    ledger = Ledger.__new__(Ledger)
    ledger._folder = tmp_path
    assert not any(ledger._is_there({name: [1]}) for name in ("/", "../x", "a/../../b")) and not looked
    assert ledger._is_there({"a/b.png": [1]}) and looked == [tmp_path / "a" / "b.png"]
