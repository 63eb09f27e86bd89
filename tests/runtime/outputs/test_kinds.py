"""Every kind of output is read back, by the format's own reader where there is one, and compared with the labels."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data
from typer.testing import CliRunner

from runtime import DiffSegError, Result, Segmenter
from runtime.files import is_own_output
from runtime.frames.source import Source
from runtime.outputs.coco import LISTING as INSTANCES
from runtime.outputs.coco import describe
from runtime.outputs.journal import key_of
from runtime.outputs.listing import Listing
from runtime.outputs.panoptic import LISTING, encode_ids
from runtime.outputs.registry import KINDS, listings
from runtime.segment import app
from runtime.stream.photographs import run_photographs
from tests.runtime.clips import draw, small_disk, write_clip
from tests.runtime.outputs.test_outlines import blobs, fill

pytestmark = pytest.mark.usefixtures("embedded_stays_open")

CAT = data.chelsea()[..., ::-1].copy()
COFFEE = data.coffee()[::2, ::2, ::-1].copy()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    cv2.imwrite("in/cat.png", CAT)
    cv2.imwrite("in/sub/coffee.jpg", COFFEE)
    return tmp_path


@pytest.fixture(scope="module")
def expected():
    """Labels of the two photographs by name."""
    segmenter = Segmenter.open()
    coffee = cv2.imdecode(cv2.imencode(".jpg", COFFEE)[1], cv2.IMREAD_COLOR)
    return {"cat.png": segmenter(CAT).labels, "sub/coffee.jpg": segmenter(coffee).labels}


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def coco():
    """`pycocotools.coco.COCO`, which prints."""
    return pytest.importorskip("pycocotools.coco").COCO


def check_instances(path, expected):
    """pycocotools decodes every mask, and they are the labels."""
    read = coco()(str(path))
    assert len(read.imgs) == len(expected) and [one["name"] for one in read.cats.values()] == ["segment"]
    assert len(read.anns) == sum(len(np.unique(labels)) for labels in expected.values())
    for image in read.imgs.values():
        labels = expected[image["file_name"]]
        assert (image["height"], image["width"]) == labels.shape
        found = np.full(labels.shape, -1)
        for annotation in read.loadAnns(read.getAnnIds(imgIds=image["id"])):
            mask = read.annToMask(annotation).astype(bool)
            assert (found[mask] == -1).all()
            found[mask] = annotation["label"]
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["area"] == mask.sum() and annotation["bbox"] == box and annotation["iscrowd"] == 0
        assert np.array_equal(found, labels)


def check_panoptic(folder, listing, expected):
    """Ids, areas and boxes as panopticapi has them; void is 0, and nowhere."""
    found = json.loads((folder / listing).read_text())
    things = {one["id"] for one in found["categories"]}
    images = {image["id"]: image for image in found["images"]}
    assert sorted(image["file_name"] for image in images.values()) == sorted(expected)
    for annotation in found["annotations"]:
        image = images[annotation["image_id"]]
        labels = expected[image["file_name"]]
        picture = cv2.imread(str(folder / annotation["file_name"]))[..., ::-1].astype(np.int64)
        assert picture.shape[:2] == labels.shape == (image["height"], image["width"])
        ids = picture @ [1, 256, 65536]
        assert np.array_equal(ids, labels + 1)
        assert [one["id"] for one in annotation["segments_info"]] == np.unique(ids).tolist()
        for one in annotation["segments_info"]:
            rows, columns = np.nonzero(ids == one["id"])
            assert one["area"] == len(rows) and one["category_id"] in things and one["iscrowd"] == 0
            assert one["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


@pytest.mark.parametrize("seed", range(6))
def test_pycocotools_decodes_what_we_encode(seed):
    mask = pytest.importorskip("pycocotools.mask")
    labels = blobs(seed)
    found = describe(labels)
    assert [one["label"] for one in found] == np.unique(labels).tolist()
    for one in found:
        wanted = labels == one["label"]
        assert np.array_equal(mask.decode(one["segmentation"]), wanted) and one["area"] == wanted.sum()
        again = mask.encode(np.asfortranarray(wanted.astype(np.uint8)))
        assert again["counts"].decode() == one["segmentation"]["counts"]


@pytest.mark.slow
def test_photographs_in_one_file_each(folder, expected):
    pytest.importorskip("pycocotools")
    result = run("in", "--save", "coco,panoptic")
    assert result.exit_code == 0, result.stderr
    check_instances(folder / "segmented" / "instances.json", expected)
    check_panoptic(folder / "segmented", "panoptic.json", expected)
    # A second run over a part replaces what it did, and keeps the rest.
    assert run("in/cat.png", "--save", "coco,panoptic", "--threshold", "2").exit_code == 0
    other = Segmenter.open(thresholds=2.0)(CAT).labels
    check_instances(folder / "segmented" / "instances.json", expected | {"cat.png": other})
    check_panoptic(folder / "segmented", "panoptic.json", expected | {"cat.png": other})
    assert all(is_own_output(folder / "segmented" / name) for name in written(folder / "segmented"))


@pytest.mark.slow
def test_a_file_per_photograph(folder, expected):
    result = run("in", "--save", "masks,cutouts,npz,polygons,yolo")
    assert result.exit_code == 0, result.stderr
    for name, frame in (("cat.png", CAT), ("sub/coffee.jpg", cv2.imread("in/sub/coffee.jpg"))):
        labels, stem = expected[name], folder / "segmented" / name.rpartition(".")[0]
        numbers = [f"{label:06d}.png" for label in np.unique(labels)]
        for kind in ("masks", "cutouts"):
            assert written(stem.with_name(f"{stem.name}_{kind}")) == numbers
        for label in np.unique(labels):
            mask = cv2.imread(f"{stem}_masks/{label:06d}.png", cv2.IMREAD_UNCHANGED)
            assert mask.dtype == np.uint8 and np.array_equal(mask, 255 * (labels == label))
            cutout = cv2.imread(f"{stem}_cutouts/{label:06d}.png", cv2.IMREAD_UNCHANGED)
            x, y, width, height = cv2.boundingRect((labels == label).view(np.uint8))
            part = np.s_[y : y + height, x : x + width]
            assert np.array_equal(cutout[..., 3], mask[part])
            assert np.array_equal(cutout[..., :3], frame[part] * (mask[part] > 0)[..., None])
        with np.load(f"{stem}_labels.npz") as archive:
            assert np.array_equal(archive["labels"], labels)
            settings = json.loads(str(archive["settings"]))
            assert settings["engine"].endswith("tiny.onnx") and settings["thresholds"] and settings["refine"] == []
        shapes = json.loads((stem.with_name(f"{stem.name}_polygons.geojson")).read_text())
        for feature in shapes["features"]:
            shape = feature["geometry"]
            pieces = [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]
            drawn = sum(fill([ring[:-1] for ring in piece], labels.shape) for piece in pieces)
            assert np.array_equal(drawn, labels == feature["properties"]["index"])
        covered = np.zeros(labels.shape, int)
        for line in stem.with_name(f"{stem.name}.txt").read_text().strip().splitlines():
            polygon = np.array(line.split()[1:], np.float64).reshape(-1, 2) * labels.shape[::-1]
            drawn = fill([polygon], labels.shape)
            assert len(np.unique(labels[drawn])) == 1
            covered += drawn
        assert (covered == 1).all()
    assert all(is_own_output(folder / "segmented" / name) for name in written(folder / "segmented"))
    # Fewer segments in a second run leave no masks of the first.
    assert run("in/cat.png", "--save", "masks", "--threshold", "2").exit_code == 0
    count = Segmenter.open(thresholds=2.0)(CAT).count
    assert 0 < count < len(np.unique(expected["cat.png"]))
    assert len(written(folder / "segmented" / "cat_masks")) == count


@pytest.mark.slow
def test_a_clip(folder):
    mask = pytest.importorskip("pycocotools.mask")
    write_clip(folder / "clip.mp4", 5)
    kinds = "labels,coco,panoptic,masks,cutouts,npz,polygons,yolo"
    for part in ((), ("--end", "0.1")):  # the second run is shorter, and leaves nothing of the first
        result = run("clip.mp4", "--save", kinds, *part)
        assert result.exit_code == 0, result.stderr
        out = folder / "segmented"
        pictures = sorted((out / "clip_labels").iterdir())
        labels = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(int) for path in pictures]
        assert len(labels) == (3 if part else 5)
        found = json.loads((out / "clip_instances.json").read_text())
        (video,) = found["videos"]
        assert (video["length"], video["height"], video["width"]) == (len(labels), 48, 64)
        assert video["file_names"] == [f"clip/{path.stem}.jpg" for path in pictures]
        again = np.full((len(labels), 48, 64), -1)
        for track in found["annotations"]:
            lists = [track[name] for name in ("segmentations", "areas", "bboxes")]
            for frame, (rle, area, box) in enumerate(zip(*lists, strict=True)):
                assert (rle is None) == (area is None) == (box is None)
                if rle is not None:
                    there = mask.decode(rle).astype(bool)
                    assert area == there.sum() and box == list(cv2.boundingRect(there.view(np.uint8)))
                    again[frame][there] = track["label"]
            assert len(lists[0]) == len(labels)
        assert np.array_equal(again, labels)
        check_panoptic(
            out, "clip_panoptic.json", {f"clip/{p.stem}.jpg": one for p, one in zip(pictures, labels, strict=True)}
        )
        numbers = [path.stem for path in pictures]
        for kind in ("masks", "cutouts", "polygons", "yolo", "panoptic"):
            assert sorted(path.stem for path in (out / f"clip_{kind}").iterdir()) == numbers, kind
        one = cv2.imread(str(out / "clip_masks" / numbers[-1] / f"{labels[-1].max():06d}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(one == 255, labels[-1] == labels[-1].max())
        with np.load(out / "clip_labels.npz") as archive:
            assert np.array_equal(archive["000001"], labels[1]) and json.loads(str(archive["settings"]))
        assert not [name for name in written(out) if name.endswith(".part")]


def test_ids_beyond_a_byte_are_three_bytes():
    labels = np.array([[0, 254, 255], [65534, 65535, 300000]], np.int32)
    ids = encode_ids(labels).astype(np.int64) @ [1, 256, 65536]
    assert np.array_equal(ids, labels + 1)
    with pytest.raises(ValueError, match="labels: expected 0 to 16777214"):
        encode_ids(np.array([[1 << 24]], np.int32))


@pytest.mark.parametrize("name", ["panoptic.json", "panoptic.jsonl"])
def test_a_listing_of_someone_elses_is_never_overwritten(folder, name):
    (folder / "segmented").mkdir()
    (folder / "segmented" / name).write_text('{"info": {"contributor": "me"}, "images": []}\n')
    result = run("in", "--save", "labels,panoptic")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line == f"error: segmented/{name}: exists and is not this program's; move it away or choose another --output"
    assert written(folder / "segmented") == [name]  # before any work
    assert (folder / "segmented" / name).read_text().startswith('{"info": {"contributor": "me"}')


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("yolo", "cat.txt"),
        ("polygons", "cat_polygons.geojson"),
        ("masks", "cat_masks/000000.png"),
        ("npz", "cat_labels.npz"),
    ],
)
def test_a_file_of_someone_elses_is_never_overwritten(folder, kind, name):
    path = folder / "segmented" / name
    path.parent.mkdir(parents=True)
    path.write_text("0 0.5 0.5 0.1 0.1\n")
    result = run("in/cat.png", "--save", kind)
    assert result.exit_code == 1 and "is not this program's" in result.stderr and len(result.stderr.splitlines()) == 1
    assert path.read_text() == "0 0.5 0.5 0.1 0.1\n" and written(folder / "segmented") == [name]


@pytest.mark.slow
def test_after_a_kill_the_next_run_assembles_the_file(folder, expected):
    """A kill leaves a journal whose last line is cut, and no assembled file."""
    assert run("in", "--save", "panoptic").exit_code == 0
    out = folder / "segmented"
    (out / "panoptic.json").unlink()
    journal = (out / "panoptic.jsonl").read_bytes()
    (out / "panoptic.jsonl").write_bytes(journal[:-30])
    assert run("in/cat.png", "--save", "panoptic").exit_code == 0
    check_panoptic(out, "panoptic.json", {"cat.png": expected["cat.png"]})
    assert run("in/sub/coffee.jpg", "--save", "panoptic", "--output", "segmented/sub").exit_code == 0
    check_panoptic(out / "sub", "panoptic.json", {"coffee.jpg": expected["sub/coffee.jpg"]})


def test_after_an_error_what_was_done_is_assembled(folder, expected):
    (folder / "in" / "broken.png").write_text("no picture")
    result = run("in", "--save", "panoptic")
    assert result.exit_code == 1 and "broken.png" in result.stderr
    check_panoptic(folder / "segmented", "panoptic.json", expected)


def test_a_listing_needs_no_memory_for_its_entries(folder):
    import tracemalloc

    sections = {"images": lambda entry, number, inner: [{"id": number, "name": entry["target"]}]}
    listing = Listing("many", sections, {}, lambda *parts: {})
    peaks = []
    for count in (500, 4000):
        out = folder / str(count)
        out.mkdir()
        listing.add(out, b"")
        with listing.journal(out).open("a") as file:
            for number in range(count):
                file.write(json.dumps({"target": f"{number}", "padding": "x" * 2000}) + "\n")
        tracemalloc.start()
        listing.finish(out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        found = json.loads(listing.path(out).read_text())
        assert [image["name"] for image in found["images"]] == [str(number) for number in range(count)]
    assert peaks[1] - peaks[0] < 3500 * 100  # their lines have 7 MB more


def test_a_listing_is_never_cut_on_a_full_disk(folder):
    LISTING.add(folder, b'{"target":"a"}\n')
    with small_disk(200), pytest.raises(DiffSegError, match=r"panoptic\.jsonl: a line could not be written whole"):
        LISTING.add(folder, b'{"target":"' + b"b" * 500 + b'"}\n')
    LISTING.add(folder, b'{"target":"c"}\n')
    lines = LISTING.journal(folder).read_bytes().splitlines()
    assert [lines[1], lines[-1]] == [b'{"target":"a"}', b'{"target":"c"}'] and len(lines) == 4


@pytest.mark.parametrize("listing", [LISTING, INSTANCES])
def test_a_damaged_line_of_a_listing_is_left_out(tmp_path, listing):
    good = {"target": "a", "name": "a.png", "size": [2, 3], "png": "a_panoptic.png", listing.segments: [{"id": 1}]}
    bad = [
        *({key: value for key, value in good.items() if key != gone} for gone in ("name", "size", listing.segments)),
        *(good | {"size": size} for size in ([], [2], 7, ["2", 3], [0, 3])),
        *(good | {"words": words} for words in ("sky", [["sky"]], 3)),
        *(good | {listing.segments: given} for given in (None, 3, "x", ["x"], [3])),
        *(good | {listing.segments: [{"category_id": number}]} for number in (0, -1, 2, 10**30, "1", None, True)),
    ]
    lines = [json.dumps({**line, "target": f"b{number}"}).encode() for number, line in enumerate(bad)]
    deep = [b'{"target":' + b"[" * 100_000, b'{"target":"c","input":' + b'{"a":' * 100_000]
    with listing.journal(tmp_path).open("wb") as file:
        for line in (b'{"software": "diffseg"}', *lines, *deep, json.dumps(good).encode()):
            file.write(line + b"\n")
    listing.begin(tmp_path)
    assert listing.listed(tmp_path) == {key_of("a")}
    listing.finish(tmp_path)
    assert [one["file_name"] for one in json.loads(listing.path(tmp_path).read_bytes())["images"]] == ["a.png"]
    assert len(listing.journal(tmp_path).read_bytes().splitlines()) == 2
    for wrong in (b'"images": [{"id": 1, "file_name": 3}]', b'"images": ' + b"[" * 100_000):
        listing.journal(tmp_path).unlink(missing_ok=True)
        listing.path(tmp_path).write_bytes(b'{"info": {"software": "diffseg"}, "annotations": [], ' + wrong + b"}")
        with pytest.raises(DiffSegError, match="found a damaged file without its journal"):
            listing.begin(tmp_path)


def test_a_line_that_never_ends_is_not_read_into_memory(tmp_path, monkeypatch):
    from runtime.outputs import journal

    monkeypatch.setattr(journal, "MOST_LINE", 100)
    kept = journal.Journal(tmp_path / "index.jsonl", "it is left out")
    with kept.path.open("wb") as file:
        file.write(b'{"software": "diffseg"}\n{"target": "a"}\n' + b" " * 200 + b'{"target": "b"}\n{"target": "c"}\n')
    with kept.path.open("rb") as file:
        assert journal.scan(file).listed() == {key_of("a"), key_of("c")}
    with pytest.raises(DiffSegError, match=r"index\.jsonl: expected a line .* it is left out"):
        kept.add(b'{"target": "' + b"d" * 100 + b'"}\n')


def test_a_missing_package_is_named_before_the_work(folder, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pycocotools" else find(name))
    result = CliRunner().invoke(app, ["in", "--save", "coco"])
    assert isinstance(result.exception, ModuleNotFoundError) and result.exception.name == "pycocotools"
    assert not (folder / "segmented").exists()


def test_what_a_result_gives_other_programs(folder):
    result = Segmenter.open()(CAT, keep_frame=True)
    assert result.frame is CAT and Segmenter.open()(CAT).frame is None
    masks = result.to_sam()
    assert np.array_equal(sum(one["segmentation"] * number for number, one in enumerate(masks)), result.labels)
    assert [(one["area"], tuple(one["bbox"])) for one in masks] == [(s.area, s.box) for s in result.segments]
    ids, segments = result.to_panoptic()
    assert np.array_equal(ids.astype(int) @ [1, 256, 65536], result.labels + 1) and len(segments) == result.count
    for label, pieces in result.polygons().items():
        assert np.array_equal(sum(fill(piece, result.labels.shape) for piece in pieces), result.mask(label))
    shown = cv2.imdecode(np.frombuffer(result._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(shown, result.overlay()) and shown.shape == CAT.shape
    assert np.abs(shown.astype(int) - CAT).mean() < np.abs(Segmenter.open()(CAT).overlay().astype(int) - CAT).mean()


def test_coco_of_a_result_is_a_data_set_of_pycocotools():
    read = coco()()
    result = Segmenter.open()(CAT)
    read.dataset = json.loads(json.dumps(result.to_coco("cat.png")))
    read.createIndex()
    assert read.imgs[1]["file_name"] == "cat.png" and len(read.anns) == result.count
    for annotation in read.anns.values():
        assert np.array_equal(read.annToMask(annotation), result.mask(annotation["label"]))


def test_save_writes_what_the_command_line_writes(folder, expected):
    kinds = "overlay,labels,masks,cutouts,panoptic,polygons,yolo"
    assert run("in/cat.png", "--save", kinds).exit_code == 0
    paths = Segmenter.open()(CAT, keep_frame=True).save("mine/cat", kinds)
    names = written(folder / "segmented")
    assert written(folder / "mine") == names and all(path.exists() for path in paths)
    for name in names:
        one, other = ((folder / place / name).read_bytes() for place in ("segmented", "mine"))
        assert one == other or name.startswith("panoptic.json")
    check_panoptic(folder / "mine", "panoptic.json", {"cat": expected["cat.png"]})
    bare = Segmenter.open()(CAT)
    with pytest.raises(DiffSegError, match=r"kinds: overlay, cutouts needs the frame; .* keep_frame=True"):
        bare.save("bare/cat", "overlay,labels,cutouts")
    with pytest.raises(DiffSegError, match="kinds: expected some of overlay"):
        bare.save("bare/cat", "overlays")
    assert not (folder / "bare").exists()


def test_plot_draws_the_overlay(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    result = Segmenter.open()(CAT, keep_frame=True)
    axes = result.plot()
    assert np.array_equal(np.asarray(axes.images[0].get_array()), result.overlay()[..., ::-1])
    assert axes.get_title() == f"{result.count} segments" and result.plot(axes) is axes


def test_detections_of_supervision_are_the_segments():
    supervision = pytest.importorskip("supervision")
    result = Segmenter.open()(CAT)
    found = supervision.Detections.from_sam(result.to_sam())
    assert len(found) == result.count and sorted(found.area) == sorted(segment.area for segment in result.segments)
    wanted = {(x, y, x + width, y + height) for x, y, width, height in (s.box for s in result.segments)}
    assert {tuple(int(side) for side in box) for box in found.xyxy} == wanted


def test_mixed_inputs_and_levels(folder, stand_in):
    cv2.imwrite("in/square.png", draw(0))
    write_clip(folder / "in" / "clip.mp4", 2)
    result = run("in/square.png", "in/clip.mp4", "--save", "panoptic", "--temporal", "off", "--json")
    assert result.exit_code == 0, result.stderr
    assert len(json.loads((folder / "segmented" / "panoptic.json").read_text())["images"]) == 1
    assert len(json.loads((folder / "segmented" / "clip_panoptic.json").read_text())["images"]) == 2
    outputs = json.loads(result.stdout.splitlines()[0])["outputs"]
    assert outputs == ["segmented/square_panoptic.png", "segmented/panoptic.json"]


def read_panoptic(folder, number):
    """[H, W, 2] of category and segment, as panopticapi reads a picture of a listing."""
    listing = json.loads((folder / "panoptic.json").read_text())
    annotation = listing["annotations"][number]
    picture = cv2.imread(str(folder / annotation["file_name"]))[..., ::-1].astype(np.int64)
    ids = picture @ [1, 256, 65536]
    categories = {one["id"]: one["category_id"] for one in annotation["segments_info"]}
    return np.stack([np.vectorize(categories.get)(ids), ids], axis=-1)


@pytest.mark.slow  # it imports torch
def test_panoptic_quality_of_a_changed_result_by_torchmetrics(folder):
    """Four quarters; in the changed result a quarter of one of them is a segment of its own."""
    torch, detection = pytest.importorskip("torch"), pytest.importorskip("torchmetrics.detection")
    labels = np.zeros((40, 40), np.int32)
    labels[:, 20:] += 1
    labels[20:] += 2
    changed = labels.copy()
    changed[20:30, 20:30] = 4
    for name, made in (("a", labels), ("b", changed)):
        Result(made, int(made.max()) + 1, {}).save(folder / "out" / name, "panoptic")
    read = [torch.from_numpy(read_panoptic(folder / "out", number)[None]) for number in (0, 1)]
    for one, other, expected in ((0, 0, 1), (1, 1, 1), (1, 0, (3 + 0.75) / (4 + 0.5)), (0, 1, (3 + 0.75) / (4 + 0.5))):
        metric = detection.PanopticQuality(things={1}, stuffs={0})
        # The mean is over things and stuff, and there is no stuff.
        assert float(metric(read[one], read[other])) == pytest.approx(expected), (one, other)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_photographs(folder, stand_in):
    import tracemalloc

    stages = Segmenter(stand_in).stages
    data = cv2.imencode(".png", draw(3))[1].tobytes()

    def peak(count, name):
        sources = (Source(Path("-"), Path(f"{number}"), data=data) for number in range(count))
        kinds = ["labels", "panoptic", "npz"]
        tracemalloc.start()
        run_photographs(stages, sources, folder / name, kinds, finished=lambda job: None)
        for listing in listings(kinds):
            listing.finish(folder / name)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(json.loads((folder / name / "panoptic.json").read_text())["images"]) == count
        return found

    # A frame of 48×64 has 9,216 bytes, its labels 12,288. How many frames are under way at a time differs by chance,
    # and threads of other tests may still hold something: so there is a second try.
    few = peak(40, "few")
    assert any(peak(240, name) - few < 200 * 5000 for name in ("many", "again"))


@pytest.mark.parametrize("name", ["photo.png", "clip.mp4"])
@pytest.mark.parametrize("kind", [kind.name for kind in KINDS if not kind.needs_words])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(folder, stand_in, kind, name):
    pytest.importorskip("pycocotools")
    cv2.imwrite("photo.png", draw(3))
    write_clip(folder / "clip.mp4", 2)
    with small_disk(60):
        result = run(name, "--save", kind)
    assert result.exit_code == 1 and "Traceback" not in result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1 or (kind in ("coco", "panoptic") and len(lines) == 2)  # the picture's, and the listing's
    for line in lines:
        assert line.startswith("error: ") and ("disk" in line or "cannot be written" in line) and "segmented" in line
    journals = {"instances.jsonl", "panoptic.jsonl"}
    assert {path.name for path in (folder / "segmented").rglob("*") if path.is_file()} <= journals


@pytest.mark.parametrize("words", ["coco,cocoa", "", "none,labels", "Labels"])
def test_unknown_kinds_are_named_before_the_work(folder, words):
    result = run("in", "--save", words)
    assert result.exit_code == 2 and "--save: expected some of overlay, labels, segments" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (folder / "segmented").exists()


def test_kinds_that_would_write_one_file_of_a_clip_are_named(folder, stand_in):
    write_clip(folder / "clip.mp4", 2)
    cv2.imwrite("photo.png", draw(3))
    result = run("clip.mp4", "--save", "archive,npz")
    assert result.exit_code == 1 and not written(folder / "segmented")
    assert result.stderr.splitlines() == [
        "error: --save: archive and npz write one file, segmented/clip_labels.npz; choose one of them"
    ]
    assert run("photo.png", "--save", "archive,npz,labels").exit_code == 0
    assert written(folder / "segmented") == ["photo_labels.npz", "photo_labels.png"]


def test_more_segments_than_a_byte_counts(folder):
    mask = pytest.importorskip("pycocotools.mask")
    labels = np.arange(20 * 16, dtype=np.int32).reshape(20, 16).repeat(3, axis=0).repeat(2, axis=1)
    found = Result(labels, 320, {}).to_coco("many.png")["annotations"]
    assert [one["area"] for one in found] == [6] * 320
    for one in found[::50]:
        np.testing.assert_array_equal(mask.decode(one["segmentation"]), labels == one["label"])


def test_an_empty_journal_that_a_full_disk_left_is_ours(folder):
    pytest.importorskip("pycocotools")
    (folder / "out").mkdir()
    (folder / "out" / "instances.jsonl").touch()
    Result(np.zeros((8, 8), np.int32), 1, {}).save(folder / "out" / "a", "coco")
    assert len(json.loads((folder / "out" / "instances.json").read_text())["images"]) == 1


@pytest.mark.parametrize("stem", ["", "out/", "."])
def test_a_stem_has_a_name(folder, stem):
    with pytest.raises(DiffSegError, match="stem: expected a path such as"):
        Result(np.zeros((8, 8), np.int32), 1, {}).save(stem, "labels")
