"""One route is chosen when a Segmenter opens, by what the engine gives and where."""

import numpy as np
import pytest
from skimage import data

from runtime import DiffSegError, Segmenter
from runtime.routes import registry
from runtime.routes.graph import GraphRoute
from runtime.routes.host import HostRoute
from runtime.routes.registry import ROUTES, RouteEntry, open_route
from tests.runtime.clips import StandIn

pytestmark = pytest.mark.usefixtures("embedded_stays_open")

CAT = data.chelsea()[..., ::-1].copy()


class Upside(HostRoute):
    """A route that turns the labels upside down."""

    def merge(self, output, **options):
        merged = super().merge(output, **options)
        return merged._replace(raw=merged.raw[::-1].copy())


def test_the_route_follows_from_the_engine():
    assert type(Segmenter.open(device="cpu").stages.route) is HostRoute
    assert type(Segmenter(StandIn()).stages.route) is GraphRoute


def test_a_new_route_is_one_entry_and_one_class(monkeypatch):
    plain = Segmenter(Segmenter.open(device="cpu").engine)
    monkeypatch.setattr(registry, "ROUTES", (RouteEntry("maps", False, __name__, "Upside"), *ROUTES))
    turned = Segmenter(plain.engine)
    assert type(turned.stages.route).__name__ == "Upside"
    raw = plain.stages.merge(plain.stages.network(plain.stages.gather([plain.stages.resize(CAT)]), 1)[0]).raw
    square = np.ascontiguousarray(plain.stages.resize(CAT))
    assert np.array_equal(turned(square).labels, np.unique(raw[::-1], return_inverse=True)[1].reshape(raw.shape))


def test_on_a_gpu_that_cannot_merge_the_host_does_where_the_device_was_left_open(monkeypatch, caplog):
    engine = Segmenter.open(device="cpu").engine
    monkeypatch.setattr(engine, "on_device", True)
    monkeypatch.setattr(engine, "asked", "auto")
    config = Segmenter(Segmenter.open(device="cpu").engine).config

    def refuse(*arguments):
        raise DiffSegError("no library")

    monkeypatch.setattr("runtime.native.load", refuse)
    monkeypatch.setattr("runtime.native.device_number", lambda device: 0)
    assert type(open_route(engine, config)) is HostRoute
    assert "merging on the CPU: no library" in caplog.text
    monkeypatch.setattr(engine, "asked", "cuda")
    with pytest.raises(DiffSegError, match="no library"):
        open_route(engine, config)


def test_a_graph_has_no_maps():
    route = Segmenter(StandIn()).stages.route
    output = route.network(np.zeros((1, 32, 32, 3), np.uint8))[0]
    assert route.merge(output).raw.dtype == np.int32
    for options in ({"details": True}, {"config": route.config}):
        with pytest.raises(DiffSegError, match="gives no maps"):
            route.merge(output, **options)
