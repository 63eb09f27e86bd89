"""Data sets in the layouts of their downloads, masks in all their formats, and the pieces of the paper's protocol."""

import json

import cv2
import numpy as np
import pytest

from runtime.errors import DiffSegError
from tests.tools.evaluate import drawn
from tests.tools.evaluate.running import figures, run
from tools.evaluate.datasets import centre_square, open_dataset, resize_bilinear, resize_labels
from tools.evaluate.masks import read_protocol, read_truths, shipped_protocol


def nearest(labels, side):
    """Nearest neighbour with half-pixel centres, pixel by pixel."""
    index = [[int((i + 0.5) * length / side) for i in range(side)] for length in labels.shape]
    return labels[np.ix_(*index)]


def bilinear(frame, side):
    """Bilinear with half-pixel centres, clamped edges, no antialiasing, in float64."""
    out = frame.astype(np.float64)
    for axis in (0, 1):
        length = out.shape[axis]
        position = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
        below = np.floor(position).astype(int)
        share = (position - below).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        above = np.minimum(below + 1, length - 1)
        out = np.take(out, below, axis) * (1 - share) + np.take(out, above, axis) * share
    return out


def test_pieces_of_the_protocol():
    draw = np.random.default_rng(0)
    frame = draw.integers(0, 256, (31, 45, 3)).astype(np.uint8)
    labels = draw.integers(-1, 27, (31, 45)).astype(np.int32)
    assert np.array_equal(centre_square(labels), labels[:, 7:38])
    for side in (31, 64, 512, 17):
        assert np.array_equal(resize_labels(centre_square(labels), side), nearest(labels[:, 7:38], side))
        difference = resize_bilinear(frame, side, side) - bilinear(frame, side)
        assert np.abs(difference).max() < 0.501


def test_protocols_are_complete():
    coco = shipped_protocol("coco-stuff-27")
    assert len(coco.images) == len(set(coco.images)) == 2175 and len(coco.labels) == 183
    assert coco.labels[255] == -1 and set(coco.labels.values()) == set(range(-1, 27)) and coco.crop == 512
    cityscapes = shipped_protocol("cityscapes-27")
    assert [cityscapes.labels[value] for value in range(7, 34)] == list(range(27)) and cityscapes.crop == 512
    assert {cityscapes.labels[value] for value in range(-1, 7)} == {-1}
    assert len(shipped_protocol("camvid").colours) == 32


def test_a_list_chooses_images_and_must_name_some_that_exist(tmp_path):
    root, chosen = drawn.bsds(tmp_path / "bsds"), tmp_path / "list.txt"
    chosen.write_text("2\n\n0 \n", encoding="utf-8-sig")
    assert [sample.name for sample in open_dataset("bsds500", root, only=chosen).samples] == ["0", "2"]
    assert [sample.name for sample in open_dataset("bsds500", root, only=chosen, every=2).samples] == ["0"]
    for content, named in ((b"0\n7", "1 of 2 images"), (b"\xff", "text file"), (b"", "expected the names")):
        chosen.write_bytes(content)
        with pytest.raises(DiffSegError, match=named):
            open_dataset("bsds500", root, only=chosen)


LAYOUTS = {
    "voc": ("JPEGImages", "SegmentationClass", (0, 1, 20, 255), drawn.save_palette, "ImageSets/Segmentation/val.txt"),
    "context": (
        "JPEGImages",
        "SegmentationClassContext",
        (0, 1, 59),
        drawn.save,
        "ImageSets/SegmentationContext/val.txt",
    ),
    "ade20k": ("images/validation", "annotations/validation", (0, 1, 150), drawn.save, None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_index_masks(name, tmp_path):
    images, masks, values, save_mask, listing = LAYOUTS[name]
    root = drawn.indexed(tmp_path / "set", images, masks, values, save_mask, count=3)
    if listing:
        (root / listing).parent.mkdir(parents=True)
        (root / listing).write_text("scene0\nscene2\n")
    data = open_dataset(name, root)
    assert [sample.name for sample in data.samples] == (
        ["scene0", "scene2"] if listing else ["scene0", "scene1", "scene2"]
    )
    labels = shipped_protocol(name).labels
    for seed, sample in zip((0, 2) if listing else (0, 1, 2), data.samples, strict=True):
        mask = drawn.scene(seed + 30)[1] % len(values)
        (truth,) = data.load(sample)[1]
        assert np.array_equal(truth, np.array([labels[value] for value in values])[mask])
    (found,) = figures(tmp_path, name, root, "--method", "one-segment")
    assert found["images"] == len(data.samples) and 0 < found["accuracy"] < 1


def test_camvid_index_masks_and_colours_are_the_same_truth(tmp_path):
    values = (3, 1, 10, 11)
    indices = drawn.indexed(tmp_path / "a", "test", "testannot", values, suffix=".png")
    colours = {3: (128, 0, 192), 1: (64, 192, 0), 10: (192, 0, 192), 11: (0, 0, 0)}  # lane, wall, scooter, void

    def save_colours(path, mask):
        picture = np.zeros((*mask.shape, 3), np.uint8)
        for value, rgb in colours.items():
            picture[mask == value] = rgb[::-1]
        drawn.save(path, picture)

    originals = ("701_StillsRaw_full", "LabeledApproved_full")
    coloured = drawn.indexed(tmp_path / "b", *originals, values, save_colours, ending="_L.png", suffix=".png")
    first, second = (open_dataset("camvid", root) for root in (indices, coloured))
    for one, other in zip(first.samples, second.samples, strict=True):
        assert np.array_equal(first.load(one)[1], second.load(other)[1])
    assert -1 in first.load(first.samples[0])[1][0]


def test_folders_with_classes_colours_arrays_and_unlabelled_values(tmp_path):
    root = drawn.indexed(tmp_path / "mine", "images", "masks", (7, 23, 9), count=1)
    (tmp_path / "map.json").write_text(json.dumps({"classes": ["road", "sky"], "labels": {"7": 0, "23": 1, "9": -1}}))
    found = figures(tmp_path, "folder", root, "--classes", tmp_path / "map.json", "--method", "one-segment")[0]
    assert set(found["iou"]) == {"road", "sky"}
    regions = figures(tmp_path, "folder", root, "--ignore", 9, "--method", "one-segment")[0]
    assert "accuracy" not in regions and regions["covering"] == found["covering"]
    mask = cv2.imread(str(root / "masks/scene0.png"), cv2.IMREAD_UNCHANGED)
    (root / "arrays").mkdir()
    np.save(root / "arrays/scene0.npy", mask.astype(np.int64))
    drawn.save(root / "colours/scene0.png", np.stack([mask, mask * 3, mask * 5], -1) * (mask != 9)[..., None])
    for folder, ignored in (("arrays", 9), ("colours", 0)):
        words = ("--masks", folder, "--ignore", ignored, "--method", "one-segment")
        assert figures(tmp_path, "folder", root, *words)[0]["covering"] == regions["covering"]


def test_masks_in_unusual_files_are_what_is_stored(tmp_path):
    import PIL.Image

    frame, mask = drawn.scene(1)
    truth = np.unique(mask, return_inverse=True)[1].reshape(mask.shape)
    root = tmp_path / "mine"
    for name in ("array", "upper", "four", "binary", "turned"):
        drawn.save(root / f"images/{name}.png", frame)
    drawn.save(root / "masks/upper.png", mask)
    np.save(root / "masks/array.npy", mask - 1)
    (root / "masks/upper.png").rename(root / "masks/upper.PNG")
    drawn.save_grey(root / "masks/four.png", mask, bits=4)
    np.save(root / "masks/binary.npy", mask > 1)
    # A photograph that a viewer turns, and a mask of its pixels as stored.
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    (root / "images/turned.png").unlink()
    PIL.Image.fromarray(frame[..., ::-1]).save(root / "images/turned.jpg", exif=exif, quality=100)
    drawn.save(root / "masks/turned.png", mask)
    data = open_dataset("folder", root)
    found = {sample.name: data.load(sample) for sample in data.samples}
    expected = {"array": truth - 1, "binary": mask > 1} | dict.fromkeys(("upper", "four", "turned"), truth)
    for name, one in expected.items():
        assert np.array_equal(found[name][1][0], one), name
    assert np.abs(found["turned"][0].astype(int) - frame).mean() < 5
    names = [str(value) for value in range(16)]
    (tmp_path / "map.json").write_text(json.dumps({"classes": names, "labels": {name: int(name) for name in names}}))
    (stored,) = read_truths(root / "masks/four.png", read_protocol(tmp_path / "map.json"))
    assert np.array_equal(stored, mask)
    np.savez(tmp_path / "x.npz", mask)
    for content in (b"", (tmp_path / "x.npz").read_bytes()):
        (root / "masks/array.npy").write_bytes(content)
        assert "array.npy: " in run(tmp_path, "folder", root, "--method", "one-segment")[1]


@pytest.mark.parametrize(
    "content",
    [
        {"classes": ["a", "b"]},
        {"classes": "road", "labels": {"0": 0}},
        {"crop": "512"},
        {"crop": 0},
        {"replace_threshold": [1]},
        {"published": [{"miou": 1}]},
    ],
)
def test_class_maps_that_are_none(content, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps(content))
    with pytest.raises(DiffSegError, match=r"not a valid class map"):
        read_protocol(tmp_path / "map.json")
