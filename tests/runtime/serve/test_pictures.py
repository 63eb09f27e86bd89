"""Pictures whose attention is kept: as the Segmenter's, without the network, for a while, and for their owner alone."""

import base64
import json

import cv2
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.runtime.serve.conftest import Bright, decoded, picture, served

SCENE = (ROOT / "tools" / "pictures" / "scene.png").read_bytes()


@pytest.fixture(scope="module")
def kept(tiny):
    status, found = tiny.json("POST", "/pictures", SCENE)
    assert status == 201 and found["size"] == [384, 512] == found["view"]
    return found["picture"]


def test_thresholds_are_those_of_a_kept_frame(tiny, kept):
    attended = tiny.segmenter.attend(cv2.imdecode(np.frombuffer(SCENE, np.uint8), 1))
    for query, threshold in (("", None), ("&threshold=0.3", 0.3), ("&threshold=0.9,0.8,0.7", (0.9, 0.8, 0.7))):
        status, headers, body = tiny.ask("GET", f"/pictures/{kept}?format=labels{query}")
        wanted = attended.result(threshold)
        assert status == 200 and np.array_equal(decoded(body), wanted.labels)
        assert headers["x-segments"] == str(wanted.count)
    passes = tiny.metric('diffseg_stage_seconds_count{stage="network"}')
    status, _, body = tiny.ask("GET", f"/pictures/{kept}?threshold=0.4")
    assert status == 200 and decoded(body).shape == (384, 512, 3)
    assert tiny.metric('diffseg_stage_seconds_count{stage="network"}') == passes
    assert tiny.ask("GET", f"/pictures/{kept}?format=labels&refine=snap&threshold=auto")[0] == 200


@pytest.mark.parametrize("query", ["refine=kmeans,snap&threshold=0.4", "refine=ncut"])
def test_options_of_a_kept_frame_are_those_of_a_picture(tiny, kept, query):
    _, _, wanted = tiny.ask("POST", f"/segment?{query}", SCENE)
    status, _, body = tiny.ask("GET", f"/pictures/{kept}?format=labels&{query}")
    assert status == 200 and np.array_equal(decoded(body), decoded(wanted))
    assert not np.array_equal(decoded(body), decoded(tiny.ask("GET", f"/pictures/{kept}?format=labels")[2]))


def test_a_click_gives_outline_area_and_heat(tiny, kept):
    attended = tiny.segmenter.attend(cv2.imdecode(np.frombuffer(SCENE, np.uint8), 1))
    wanted = attended.at(240, 180)
    status, found = tiny.json("GET", f"/pictures/{kept}/at?x=240&y=180")
    assert status == 200 and found["index"] == wanted.index and found["area"] == wanted.mask.sum()
    drawn = np.zeros(wanted.mask.shape, np.uint8)
    for piece in found["outline"]:
        rings = [(np.array(ring) * (512, 384)).round().astype(np.int32) for ring in piece]
        cv2.fillPoly(drawn, rings, 1)
    assert (drawn != wanted.mask).mean() < 0.02
    heat = decoded(base64.b64decode(found["heat"]))
    assert heat.max() == 255 and max(heat.shape) == 128
    inside = cv2.resize(wanted.mask.astype(np.uint8), heat.shape[::-1]) > 0
    assert heat[inside].mean() > 2 * heat[~inside].mean()


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("?threshold=-1", 400, "threshold: expected"),
        ("?format=x", 400, "format: expected"),
        ("?x=1", 400, "parameters: expected"),
        ("/at?x=900&y=1", 400, "expected a pixel"),
        ("/at?x=nan&y=1", 400, "expected a pixel"),
        ("/at?x=a&y=1", 400, "x: expected"),
        ("/at?x=1,2&y=1", 400, "x: expected a number of pixels, found '1,2'"),
        ("?min_area=1,2", 400, "min_area: expected"),
        ("/at?x=1&y=1&threshold=0", 400, "threshold: expected"),
    ],
)
def test_bad_requests_are_one_line(tiny, kept, path, status, text):
    found, answer = tiny.json("GET", f"/pictures/{kept}{path}")
    assert found == status and text in answer["error"] and "\n" not in answer["error"]


def test_pictures_are_forgotten():
    with served(Bright(), most_kept=2) as service:
        names = [service.json("POST", "/pictures", picture(n))[1]["picture"] for n in range(3)]
        assert len(set(names)) == 3
        assert [service.ask("GET", f"/pictures/{name}")[0] for name in names] == [404, 200, 200]
        assert service.ask("DELETE", f"/pictures/{names[1]}")[0] == 204
        assert service.json("DELETE", f"/pictures/{names[1]}") == (
            404,
            {"error": "this picture is not kept, or no more; send it again"},
        )
        assert service.metric("diffseg_pictures_kept") == 1


def test_an_engine_that_gives_labels_has_thresholds_but_no_attention(service):
    found = service.json("POST", "/pictures", picture(3))[1]["picture"]
    assert decoded(service.ask("GET", f"/pictures/{found}?format=labels")[2]).sum() == 13 * 40
    assert service.ask("GET", f"/pictures/{found}?threshold=1.9")[1]["x-segments"] == "1"
    status, answer = service.json("GET", f"/pictures/{found}/at?x=1&y=1")
    assert status == 400 and "gives no maps" in answer["error"]
    assert json.loads(service.ask("GET", "/engine")[2])["attention"] is False


def test_large_pictures_have_a_smaller_view(service):
    found = service.json("POST", "/pictures", picture(size=(60, 2048)))[1]
    assert (found["size"], found["view"]) == ([60, 2048], [30, 1024])
    assert decoded(service.ask("GET", f"/pictures/{found['picture']}")[2]).shape == (30, 1024, 3)
    assert decoded(service.ask("GET", f"/pictures/{found['picture']}?format=labels")[2]).shape == (60, 2048)
