"""CVAT's own driver and loader take the function, and what it decodes are the segments."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from skimage import data

from runtime import DiffSegError, Segmenter
from tests.runtime.outputs.test_outlines import fill

pytest.importorskip("cvat_sdk")
driver = pytest.importorskip("cvat_sdk.auto_annotation.driver")

CAT = np.ascontiguousarray(data.chelsea()[::2, ::2])  # RGB
FILE = Path(__file__).parents[3] / "runtime" / "hosts" / "cvat.py"


def load(**parameters):
    """As `cvat-cli task auto-annotate --function-file FILE -p NAME=TYPE:VALUE` does."""
    common = pytest.importorskip("cvat_cli._internal.common")
    return common.FunctionLoader(None, FILE, parameters).load()


def annotate(monkeypatch, function, label="segment", **options):
    """The shapes that CVAT's driver would upload for a task of one picture."""
    sample = SimpleNamespace(
        frame_name="cat.png", frame_index=7, media=SimpleNamespace(load_image=lambda: Image.fromarray(CAT))
    )
    labels = [SimpleNamespace(name=label, id=33, type="any", attributes=[], sublabels=[])]
    dataset = SimpleNamespace(labels=labels, samples=[sample])
    monkeypatch.setattr(driver, "TaskDataset", lambda *arguments, **more: dataset)
    uploaded = []
    api = SimpleNamespace(
        partial_update_annotations=lambda action, task, patched_labeled_data_request: uploaded.append(
            patched_labeled_data_request
        )
    )
    client = SimpleNamespace(logger=logging.getLogger("test"), tasks=SimpleNamespace(api=api))
    driver.annotate_task(client, 5, function, **options)
    (request,) = uploaded
    assert not request.tags and all(shape.frame == 7 and shape.label_id == 33 for shape in request.shapes)
    assert all(shape.source == "auto" for shape in request.shapes)
    return request.shapes


@pytest.mark.slow
def test_masks_are_the_segments(monkeypatch):
    from cvat_sdk.masks import decode_mask

    shapes = annotate(monkeypatch, load(threshold=0.6))
    labels = Segmenter.open(thresholds=0.6)(np.ascontiguousarray(CAT[..., ::-1])).labels
    height, width = labels.shape
    assert len(shapes) == labels.max() + 1 > 1 and {shape.type.value for shape in shapes} == {"mask"}
    for index, shape in enumerate(shapes):
        assert np.array_equal(decode_mask(shape.points, image_width=width, image_height=height), labels == index)


@pytest.mark.slow
def test_polygons_where_cvat_wants_them(monkeypatch):
    shapes = annotate(monkeypatch, load(label="thing"), "thing", conv_mask_to_poly=True)
    labels = Segmenter.open()(np.ascontiguousarray(CAT[..., ::-1])).labels
    covered = np.zeros(labels.shape, int)
    for shape in shapes:
        assert shape.type.value == "polygon"
        drawn = fill([np.array(shape.points).reshape(-1, 2)], labels.shape)
        assert len(np.unique(labels[drawn])) == 1
        covered += drawn
    assert (covered == 1).all()


def test_what_is_wrong_is_said(monkeypatch):
    with pytest.raises(DiffSegError, match="no engine"):
        load(engine="none.onnx")
    with pytest.raises(driver.BadFunctionError, match="'segment' is not in dataset"):
        annotate(monkeypatch, load(), "cat")
