"""Evaluations run on the embedded engine, again and again."""

import pytest


@pytest.fixture(autouse=True)
def _embedded_stays_open(embedded_stays_open):
    pass
