"""Engines stay open from test to test: to open one takes as long as to run it on several frames."""

from functools import cache

import pytest

from runtime.engine import registry

open_once = cache(registry.open_engine)


@pytest.fixture(autouse=True)
def engines_stay_open(monkeypatch):
    monkeypatch.setattr(registry, "open_engine", open_once)
