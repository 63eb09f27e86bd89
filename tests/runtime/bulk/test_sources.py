"""What INPUT may be, and what is said where it is not."""

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runtime.bulk.batch import Image
from runtime.bulk.cutting import cut_clip
from runtime.bulk.inputs import choose_columns, find
from runtime.bulk.places import Place, hidden, remedy
from runtime.bulk.reader import read_rows
from runtime.errors import DiffSegError
from runtime.frames.limits import check_bytes
from tests.runtime.clips import write_clip


def ids(*inputs, clips=False, output="out"):
    kind, entries = find(inputs, clips=clips, left_out=Place.of(output))
    return kind, [entry.id for entry in entries]


def png(pictures):
    return (pictures / "0.png").read_bytes()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_folders_globs_lists_and_uris_of_pictures(pictures):
    everything = ["0.png", "1.png", "2.png", "below/3.png", "below/4.png"]
    assert ids("in") == ids("in/") == ids(pictures.as_uri()) == ("pictures", everything)
    assert ids("in/*.png")[1] == everything[:3] == ids("in/[0-2].png")[1]
    assert ids("in/**/*.png")[1] == everything == ids(f"{pictures.as_uri()}/**/*.png")[1]
    assert ids("in/**/[!3].png")[1] == ["0.png", "1.png", "2.png", "below/4.png"]
    assert ids("in/0.png")[1] == ["0.png"]
    Path("list.txt").write_text("in/1.png\n\nin/below/3.png\n")
    assert ids("list.txt") == ("pictures", ["in/1.png", "in/below/3.png"])
    assert ids("in/0.png", "in/below")[1] == ["0.png", str(pictures / "below" / "3.png"), str(pictures / "below/4.png")]


def test_what_is_hidden_or_written_by_us_is_left_out(pictures, here):
    (pictures / ".0.png").write_bytes(png(pictures))
    (pictures / "notes.md").write_text("none")
    here("in/0.png", output="in/out", save=("labels",))
    assert ids("in", output="in/out")[1] == ["0.png", "1.png", "2.png", "below/3.png", "below/4.png"]
    assert list(Path("in/out").rglob("0_labels.png")), "which has a mark"
    assert ids("in/**/*.png", output="elsewhere") == ids("in", output="in/out")


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_no_text_becomes_a_row_with_an_error(pictures, here):
    Path(os.fsdecode(b"in/\xff.png")).write_bytes(png(pictures))
    summary = here("in")
    assert (summary["images"], summary["errors"]) == (6, 1)
    Path(os.fsdecode(b"in/\xfe.png")).write_bytes(png(pictures))
    assert here("in", output="other")["errors"] == 2
    assert {row["id"] for row in read_rows("other") if row["error"]} == {r"\udcfe.png", r"\udcff.png"}


def test_parquet_with_bytes_paths_or_a_struct(pictures, here):
    data, path = png(pictures), str(pictures / "0.png")
    tables = {
        "bytes": pa.table({"key": ["a"], "jpg": [data]}),
        "path": pa.table({"id": ["a", "b"], "path": ["in/0.png", path]}),
        "struct": pa.table({"image": [{"bytes": data, "path": "x.png"}, None], "label": [1, 2]}),
    }
    for name, table in tables.items():
        pq.write_table(table, f"{name}.parquet")
        summary = here(f"{name}.parquet", output=f"out-{name}")
        assert (summary["images"], summary["errors"]) == (len(table), name == "struct"), name
    rows = list(read_rows("out-struct"))
    assert [row["id"] for row in rows] == ["struct.parquet#0", "struct.parquet#1"]
    assert "expected a picture in image, found nothing" in rows[1]["error"]


def test_tar_archives_are_read_from_beginning_to_end(pictures, here):
    data = png(pictures)
    members = [("a.png", data), ("a.json", b"{}"), ("below/b.png", data), ("a.png", data), ("c.jpg", b"none")]
    write_tar("one.tar", members)
    write_tar("two.tar", members[:1])
    whole = Path("one.tar").read_bytes()
    Path("three.tar").write_bytes(whole[: len(data) + 700])
    Path("four.tar").write_bytes(b"no archive")
    summary = here("*.tar")
    assert summary["shards"]["all"] == 4 and summary["stopped"] is None
    errors = {row["id"]: row["error"] for row in read_rows("out")}
    assert errors.pop("one.tar/a.png") is errors.pop("one.tar/below/b.png") is errors.pop("two.tar/a.png") is None
    assert errors.pop("three.tar/a.png", None) is None
    assert "is in the archive twice" in errors.pop("one.tar/a.png#2") and "not an image" in errors.pop("one.tar/c.jpg")
    assert set(errors) == {"three.tar#1", "four.tar#0"} or set(errors) == {"four.tar#0"}
    assert all("expected a whole tar archive" in error for error in errors.values())


def test_files_of_one_name_in_several_folders_have_ids_of_their_own(pictures, here):
    data = png(pictures)
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(f"{name}/x.png").write_bytes(data)
        pq.write_table(pa.table({"image": [data]}), f"{name}/part-0.parquet")
    here(["a/x.png", "b/x.png"])
    assert [row["id"] for row in read_rows("out")] == [str(Path(f"{name}/x.png").absolute()) for name in "ab"]
    here("[ab]/*.parquet", output="other")
    assert [row["id"] for row in read_rows("other")] == [f"{Path(name).absolute()}/part-0.parquet#0" for name in "ab"]


def test_lines_of_a_list(pictures, here):
    Path("list.txt").write_bytes(b"\xef\xbb\xbfin/1.png\r\nnothing://bucket/a.png\nin/below/../2.png\n")
    here("list.txt")
    rows = {row["id"]: row["error"] for row in read_rows("out")}
    assert list(rows) == ["in/1.png", "nothing://bucket/a.png", "in/below/../2.png"]
    assert "expected a path, or a URI" in rows.pop("nothing://bucket/a.png") and set(rows.values()) == {None}


def test_columns_of_other_types(pictures, here):
    path = pa.array([str(pictures / "0.png")])
    double = pa.Table.from_arrays([path, path, path], ["image", "image", "path"])
    pq.write_table(double, "double.parquet")
    assert here("double.parquet")["errors"] == 0
    pq.write_table(pa.table({"id": pa.array(["a"]).dictionary_encode(), "path": path.dictionary_encode()}), "d.parquet")
    here("d.parquet", output="other")
    assert [(row["id"], row["error"]) for row in read_rows("other")] == [("a", None)]
    with pytest.raises(DiffSegError, match=r"d.parquet: expected a shard of diffseg bulk, found no column frame"):
        list(read_rows("d.parquet"))


def test_damage_within_an_archive_is_told_and_ids_stay_unique(pictures, here, monkeypatch):
    data = png(pictures)
    write_tar("same.tar", [("a.png", data)] * 3)
    write_tar("torn.tar", [("a.png", data), ("b.png", data), ("c.png", data)])
    torn = bytearray(Path("torn.tar").read_bytes())
    begin = torn.index(b"b.png")
    torn[begin : begin + 512] = b"Z" * 512
    Path("torn.tar").write_bytes(torn)
    monkeypatch.setattr("runtime.bulk.reading.MOST_MEMBER", len(data))
    write_tar("large.tar", [("a.png", data + b" "), ("b.png", data)])
    here("*.tar")
    errors = {row["id"]: row["error"] for row in read_rows("out")}
    assert list(errors) == [
        *("large.tar/a.png", "large.tar/b.png"),
        *("same.tar/a.png", "same.tar/a.png#1", "same.tar/a.png#2"),
        *("torn.tar/a.png", "torn.tar#1"),
    ]
    assert "expected a picture of at most" in errors["large.tar/a.png"] and errors["large.tar/b.png"] is None
    assert "expected a whole tar archive" in errors["torn.tar#1"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        ([""], "an empty INPUT"),
        (["empty"], "empty: expected Parquet files or pictures or tar archives, found none; for clips add --clips"),
        (["in/*.jpg"], r"in/\*.jpg: expected .* found none"),
        (["empty.txt"], "empty.txt: expected a path or URI on each line, found none"),
        (
            ["mixed"],
            r"expected one kind of input, found pictures .* and Parquet files .*; choose one of them by a glob",
        ),
        (["nothing://bucket/folder"], "nothing://bucket/folder: expected a path, or a URI such as s3://"),
        (["s3://*.jpg"], r"expected a bucket before the first '\*'"),
        (["twice.txt"], "twice.txt: expected each id once, found 'in/0.png' twice"),
        (["twice.parquet"], "twice.parquet: expected each id once, found '1' twice"),
        (["gap.parquet"], "expected an id in each row, found an empty id"),
        (["text.parquet"], r"text.parquet: expected a column of pictures .*, found label \(int64\); name it by"),
        (["none.parquet"], "none.parquet: expected rows with images, found Parquet files without rows"),
        (["broken.parquet"], "broken.parquet: cannot be read"),
    ],
)
def test_bad_inputs_are_one_line(pictures, here, inputs, message):
    Path("empty").mkdir()
    Path("mixed").mkdir()
    Path("empty.txt").write_text("\n")
    Path("twice.txt").write_text("in/0.png\nin/1.png\nin/0.png\n")
    Path("broken.parquet").write_bytes(b"PAR1 none PAR1")
    Path("mixed/a.png").write_bytes(png(pictures))
    for name in ("mixed/b.parquet", "none.parquet"):
        pq.write_table(pa.table({"image": pa.array([], pa.binary())}), name)
    pq.write_table(pa.table({"id": [1, 2, 1], "image": [b""] * 3}), "twice.parquet")
    pq.write_table(pa.table({"id": [1, None], "image": [b""] * 2}), "gap.parquet")
    pq.write_table(pa.table({"label": [1]}), "text.parquet")
    with pytest.raises(DiffSegError, match=message) as caught:
        here(inputs)
    assert "\n" not in str(caught.value)
    assert not list(Path().glob("out/shard-*"))


def test_columns_that_are_named_must_be_there():
    schema = pa.schema(
        {"id": pa.float64(), "a": pa.binary(), "b": pa.string(), "image": pa.int8(), "path": pa.string()}
    )
    found = choose_columns(schema, "x", None, None)
    assert (found.image, found.is_path, found.id) == ("path", True, None)
    assert choose_columns(schema, "x", "a", "b").image == "a"
    with pytest.raises(DiffSegError, match="--image-column: x: expected one of id, a, b, image, path, found 'c'"):
        choose_columns(schema, "x", "c", None)
    with pytest.raises(DiffSegError, match="--id-column: x: expected texts or whole numbers in id, found double"):
        choose_columns(schema, "x", None, "id")
    with pytest.raises(DiffSegError, match="expected a column of pictures"):
        choose_columns(schema, "x", "image", None)


def test_an_output_that_cannot_be_written_is_one_line(pictures, here):
    Path("file").write_text("none")
    with pytest.raises(DiffSegError, match=r"cannot be written|no such file|exists"):
        here("in", output="file/out")
    with pytest.raises(DiffSegError, match="expected a path, or a URI"):
        here("in", output="nothing://bucket")


def test_what_a_store_says_names_the_remedy():
    assert "credentials" in remedy(OSError("AWS Error ACCESS_DENIED during HeadObject operation"))
    assert "credentials" in remedy(OSError("Could not create a OAuth2 access token"))
    assert "network" in remedy(OSError("Could not resolve host"))


def test_places_keep_their_query_and_hide_their_secrets():
    uri = "s3://key:secret@bucket/folder?region=eu-west-1&endpoint_override=127.0.0.1:1&scheme=http"
    place = Place.of(uri)
    assert (place.path, place.is_local) == ("bucket/folder", False)
    below = place / "a b#1.png"
    assert below.text == "s3://key:secret@bucket/folder/a%20b%231.png?" + uri.partition("?")[2]
    assert Place.of(below.text).path == "bucket/folder/a b#1.png"
    assert "secret" not in below.name and hidden("s3://b/a?secret_key=x&region=y") == "s3://b/a?secret_key=***&region=y"
    with pytest.raises(DiffSegError, match="expected bytes or a path"):
        Image({"id": "a"})


@pytest.fixture(scope="module")
def store():
    """A store that speaks S3 on loopback, with one bucket; the query of its URIs."""
    pytest.importorskip("flask")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    query = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
    yield query
    server.stop()


@pytest.mark.slow
def test_a_store_is_read_and_written(pictures, here, store, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    folder = Place.of(f"s3://photos/in?{store}")
    folder.system.create_dir("photos")
    for path in pictures.rglob("*.png"):
        (folder / f"set #1/{path.name}").write(path.read_bytes())
    output = f"s3://photos/out?{store}"
    for inputs in (f"s3://photos/in?{store}", f"s3://photos/in/**/*.png?{store}"):
        summary = here(inputs, output=output, shard_rows=2, save=("labels", "coco"))
        assert (summary["images"], summary["errors"], summary["stopped"]) == (5, 0, None)
        assert here(inputs, output=output, save=("labels", "coco"))["shards"] == {"all": 3, "before": 3, "now": 0}
        assert len(list(read_rows(output))) == 5
        assert (Place.of(output) / "files/shard-0000002/set #1/4_labels.png").exists()
        Place.of(output).system.delete_dir("photos/out")
    pytest.importorskip("av")
    write_clip("a.mp4")
    (folder / "a.mp4").write(Path("a.mp4").read_bytes())
    assert [part["stop"] for part in cut_clip("a", (folder / "a.mp4").text, 5, 2)] == [5, 10, 12]
    with pytest.raises(DiffSegError, match=r"s3://nobody/in\?.*: (no such file or folder|cannot be read)"):
        here(f"s3://nobody/in?{store}")


def test_a_file_of_too_many_bytes_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.frames.limits.MORE_BYTES", 1000)
    monkeypatch.setattr("runtime.frames.limits._most", 1)
    monkeypatch.setattr("runtime.bulk.places.PART", 500)
    (tmp_path / "a.png").write_bytes(bytes(1 << 16))
    place = Place.of(str(tmp_path / "a.png"))
    assert len(place.read()) == 1 << 16
    read = []

    def check(size, name):
        read.append(size)
        check_bytes(size, name)

    with pytest.raises(DiffSegError, match=r"a.png: expected a picture of at most .* MB, found more"):
        place.read(check)
    assert read == [500, 1000, 1500]
