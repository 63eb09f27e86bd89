from tools.benchmark.identities import FRAME_BY_FRAME, TEMPORAL
from tools.benchmark.video import missed


def test_what_falls_short_is_named():
    plain = {"kept": 0.8, "covering": 0.7, "segments": 5.0}
    good = {"kept": 0.96, "covering": 0.71, "segments": 5.5}
    assert missed({"scenes": {FRAME_BY_FRAME: plain, TEMPORAL: good}}) == []
    bad = missed({"scenes": {FRAME_BY_FRAME: plain, TEMPORAL: {"kept": 0.9, "covering": 0.6, "segments": 3.0}}})
    assert ["0.900" in bad[0], "covering" in bad[1], "3.0 segments" in bad[2]] == [True] * 3
    assert len(missed({"clips": {FRAME_BY_FRAME: {"kept": 0.8}, TEMPORAL: {"kept": 0.89}}})) == 1
