"""A job's manifest and shards: every row once, whatever ends a run, and nothing done twice."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runtime.bulk import SegmentBatch, read
from runtime.bulk.finished import read_about
from runtime.bulk.manifest import choose_rows
from runtime.bulk.places import Place
from runtime.bulk.reader import read_rows
from runtime.errors import DiffSegError, NoMoreSpace
from runtime.result import Result
from runtime.segmenter import Segmenter
from tests.runtime.clips import StandIn, small_disk


def shards(folder="out"):
    return sorted(Path(folder).glob("shard-*.parquet"))


def test_a_folder_becomes_shards_that_are_read_back(pictures, here, segment):
    (pictures / "bad.jpg").write_bytes(b"no picture")
    summary = here("in", shard_rows=4)
    assert (summary["images"], summary["errors"], summary["shards"]) == (6, 1, {"all": 2, "before": 0, "now": 2})
    assert summary["stopped"] is None and json.loads(Path("out/summary.json").read_text()) == summary
    found = dict(read("out"))
    assert list(found) == ["0.png", "1.png", "2.png", "below/3.png", "below/4.png"]
    for name, result in found.items():
        assert isinstance(result, Result) and result.identities is None
        np.testing.assert_array_equal(result.labels, segment.segmenter(cv2.imread(f"in/{name}")).labels)
    given = dict(read("out", errors="give"))
    assert isinstance(given["bad.jpg"], DiffSegError) and len(given) == 6
    with pytest.raises(DiffSegError, match="not an image"):
        list(read("out", errors="raise"))
    about = read_about(Place.of("out/shard-0000001.parquet"))
    assert (about["shard"], about["rows"], about["errors"], about["settings"]) == (1, 2, 0, segment.made)


def test_what_is_finished_is_not_done_again(pictures, here, segment):
    assert here("in", shard_rows=2)["shards"]["now"] == 3
    before = {path: path.stat().st_mtime_ns for path in shards()}
    shards()[1].unlink()
    calls = segment.segmenter.engine.calls
    summary = here("in", shard_rows=2)
    assert summary["shards"] == {"all": 3, "before": 2, "now": 1} and summary["images"] == 5
    assert segment.segmenter.engine.calls == calls + 2
    assert {path: path.stat().st_mtime_ns for path in shards() if path != list(before)[1]} == {
        path: when for path, when in before.items() if path != list(before)[1]
    }
    assert here("in")["shards"] == {"all": 3, "before": 3, "now": 0}
    assert len(dict(read("out"))) == 5


def test_the_manifest_holds_whatever_is_in_the_folder_later(pictures, here):
    here("in", shard_rows=2)
    shutil.copy("in/0.png", "in/00.png")
    for path in shards():
        path.unlink()
    assert here("in")["images"] == 5
    assert sorted(dict(read("out"))) == ["0.png", "1.png", "2.png", "below/3.png", "below/4.png"]


def test_a_shard_is_written_before_its_report(pictures, here, segment):
    """A worker that was killed between the two does not do it again."""
    from runtime.bulk.manifest import read_job
    from runtime.bulk.shard import do_shard

    here("in", shard_rows=2)
    calls = segment.segmenter.engine.calls
    report = do_shard(read_job(Place.of("out")), Place.of("out"), 0, segment)
    assert (report["rows"], segment.segmenter.engine.calls) == (2, calls)


def test_other_settings_inputs_and_outputs_are_refused(pictures, here, monkeypatch):
    here("in")
    other = SegmentBatch(Segmenter(StandIn(), auto=False))
    other.made = "other"
    other.settings = {**other.settings, "thresholds": (0.5,)}
    with pytest.raises(DiffSegError, match=r"has a job with thresholds \[1.0\], found .0.5.*; give the same again"):
        here("in", opened=other)
    with pytest.raises(DiffSegError, match=r"has the job of INPUT \['in'\], found \['in/below'\]"):
        here("in/below")
    with monkeypatch.context() as moved:
        moved.chdir("in")
        Path("in").mkdir()
        with pytest.raises(DiffSegError, match=r"has the job of the working folder .*; choose another --output"):
            here("in", output="../out")
        Path("in").rmdir()
    with pytest.raises(DiffSegError, match="has a job with --save none, found labels"):
        here("in", save=("labels",))
    assert here("in", output="new", opened=other)["images"] == 5


def test_a_shard_of_another_job_is_refused(pictures, here):
    here("in", shard_rows=2)
    here("in", output="other", shard_rows=3)
    shutil.copy("other/shard-0000001.parquet", "out/shard-0000001.parquet")
    with pytest.raises(DiffSegError, match=r"shard-0000001.parquet: expected a shard of this job .*; move it away"):
        here("in")
    Path("out/shard-0000001.parquet").write_bytes(b"no shard")
    with pytest.raises(DiffSegError, match="a file that is no shard"):
        here("in")
    Path("out/shard-0000001.parquet").unlink()
    assert here("in")["shards"]["now"] == 1
    job = Path("out/_diffseg/job.json")
    whole = json.loads(job.read_text())
    for damaged in ("{", "[" * 100_000, *(json.dumps(whole | each) for each in ({"clips": []}, {"asked": []}))):
        job.write_text(damaged)
        with pytest.raises(DiffSegError, match=r"job.json: expected the manifest of a job, found a damaged file"):
            here("in")


def test_a_worker_with_another_engine_does_nothing(pictures, here, segment, monkeypatch):
    other = SegmentBatch(Segmenter(StandIn()))
    here("in", shard_rows=2)
    shards()[0].unlink()
    monkeypatch.setattr("runtime.bulk.run.describe", lambda *given: vars(segment) | {"made": segment.made})
    other.made = "other"
    summary = here("in", opened=other)
    assert "a worker's engine or settings are not the job's" in summary["stopped"] and len(shards()) == 2


def test_more_errors_than_allowed_stop_the_job(pictures, here):
    for number in range(6):
        (pictures / f"bad{number}.jpg").write_bytes(b"no picture")
    summary = here("in", shard_rows=2, most_errors=2)
    assert "at most 2 images with errors (--max-errors), found 3" in summary["stopped"]
    assert summary["shards"]["now"] == 3 and len(shards()) == 3
    again = here("in", most_errors=2)
    assert (again["stopped"], again["shards"]["now"]) == (summary["stopped"], 0)
    done = here("in", most_errors=6)
    assert (done["stopped"], done["images"], done["errors"], done["now"]["images"]) == (None, 11, 6, 5)


def test_a_disk_that_fills_up_stops_the_job_and_loses_nothing(pictures, here, monkeypatch):
    begun = here("in", output="other", shard_rows=2)
    whole = shards("other")[0].stat().st_size
    assert begun["stopped"] is None
    write = Place.write

    def full(place, data):
        if place.path.endswith("shard-0000001.parquet"):
            with small_disk(whole // 2):
                return write(place, data)
        return write(place, data)

    monkeypatch.setattr(Place, "write", full)
    summary = here("in", shard_rows=2)
    assert "shard-0000001.parquet" in summary["stopped"] and len(shards()) >= 1
    assert not list(Path("out").glob(".*")), "no temporary file is left"
    monkeypatch.setattr(Place, "write", write)
    assert here("in")["stopped"] is None and len(dict(read("out"))) == 5


def test_no_more_space_ends_the_job_at_once(pictures, here, monkeypatch):
    write = Place.write

    def full(place, data):
        if "shard-" in place.path:
            raise NoMoreSpace("the disk is full")
        return write(place, data)

    monkeypatch.setattr(Place, "write", full)
    summary = here("in", shard_rows=1)
    assert summary["stopped"] == "the disk is full" and summary["now"]["images"] == 0


def test_an_interruption_keeps_what_is_finished(pictures, here, segment, monkeypatch):
    from runtime.bulk import run

    real = run.do_shard

    def interrupted(job, output, shard, *more, **options):
        if shard == 1:
            raise KeyboardInterrupt
        return real(job, output, shard, *more, **options)

    with pytest.raises(KeyboardInterrupt) as caught:
        run.run_job(run.Request(["in"], "out", shard_rows=2), lambda: segment, print, interrupted)
    assert "2 of 5 images" in str(caught.value)
    assert json.loads(Path("out/summary.json").read_text())["stopped"] == "interrupted"
    assert here("in")["shards"] == {"all": 3, "before": 1, "now": 2}


def test_further_kinds_of_output_are_written_once_by_shard(pictures, here, segment):
    shutil.copy("in/0.png", "in/0.bmp.png")
    cv2.imwrite("in/0.bmp", cv2.imread("in/0.png"))
    here("in", shard_rows=4, save=("labels", "overlay", "coco"))
    first, second = Path("out/files/shard-0000000"), Path("out/files/shard-0000001")
    names = [path.relative_to(first).as_posix() for path in sorted(first.rglob("*_labels.png"))]
    assert names == ["0.bmp_labels.png", "0.png_labels.png", "0_labels.png", "1_labels.png"]
    labels = cv2.imread(str(second / "below" / "3_labels.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(labels, segment.segmenter(cv2.imread("in/below/3.png")).labels)
    assert (second / "below" / "3_overlay.png").exists()
    listed = json.loads((second / "instances.json").read_text())
    assert [image["file_name"] for image in listed["images"]] == ["2.png", "below/3.png", "below/4.png"]
    assert not list(Path("out/files").glob(".*"))


def test_files_of_a_killed_attempt_are_replaced(pictures, here):
    here("in", save=("labels",))
    (shard,) = shards()
    shard.unlink()
    Path("out/files/.shard-0000000.left").mkdir()
    Path("out/files/shard-0000000/0_labels.png").write_bytes(b"half")
    assert here("in", save=("labels",))["stopped"] is None
    assert cv2.imread("out/files/shard-0000000/0_labels.png", cv2.IMREAD_UNCHANGED) is not None
    assert [path.name for path in Path("out/files").iterdir()] == ["shard-0000000"]


def test_shards_are_so_many_that_each_worker_gets_some():
    assert [choose_rows(images, 2) for images in (1, 100, 5000, 10**8)] == [16, 16, 313, 1000]


def test_parquet_rows_are_read_in_slices(tmp_path, pictures, here):
    data = [path.read_bytes() for path in sorted(pictures.rglob("*.png"))]
    for number, part in enumerate((data[:2], data[2:])):
        table = pa.table({"id": pa.array(range(10 * number, 10 * number + len(part))), "image": part})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=2)
    summary = here(["0.parquet", "1.parquet"], shard_rows=2)
    assert summary["shards"]["all"] == 3
    rows = list(read_rows("out"))
    assert [row["id"] for row in rows] == ["0", "1", "10", "11", "12"] and not any(row["error"] for row in rows)
    assert not list(Path("out/_diffseg").glob("inputs*")), "its rows are not listed again"
    for path in shards():
        path.unlink()
    pq.write_table(pa.table({"id": pa.array([7]), "image": data[:1]}), "0.parquet")
    assert "expected 2 rows as the job's manifest has them, found 1" in here(["0.parquet", "1.parquet"])["stopped"]


def test_a_parquet_file_that_was_changed_is_refused(pictures, here):
    data = (pictures / "0.png").read_bytes()
    pq.write_table(pa.table({"id": list("abcd"), "image": [data] * 4}), "in.parquet")
    here("in.parquet", shard_rows=2)
    shards()[1].unlink()
    pq.write_table(pa.table({"id": list("dcba"), "image": [data] * 4}), "in.parquet")
    summary = here("in.parquet")
    assert "found others; it was changed" in summary["stopped"] and len(shards()) == 1


def test_the_output_may_be_the_input_also_after_a_kill_within_the_manifest(pictures, here):
    here("in", output="in", shard_rows=5)
    Path("in/_diffseg/job.json").unlink()
    Path("in/shard-0000000.parquet").unlink()
    assert here("in", output="in")["images"] == 5


def test_a_second_driver_is_refused_while_one_works(pictures, here, monkeypatch):
    from runtime.bulk import run

    pytest.importorskip("fcntl")
    refused = []

    def again(*given):
        with pytest.raises(DiffSegError, match="another diffseg bulk works on it; wait for its end") as found:
            here("in")
        refused.append(found)
        return begin(*given)

    begin = run._reports
    monkeypatch.setattr(run, "_reports", again)
    assert here("in")["images"] == 5 and len(refused) == 1


def test_an_output_that_is_none_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiffSegError, match="expected shards"):
        list(read(str(tmp_path / "empty")))
    with pytest.raises(DiffSegError, match="no such file or folder"):
        list(read(str(tmp_path / "nowhere")))
    with pytest.raises(DiffSegError, match="errors: expected 'skip'"):
        list(read(str(tmp_path), errors="hide"))
