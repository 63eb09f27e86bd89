import numpy as np

from tools.evaluate import classical
from tools.evaluate.metrics import contingency, covering


def test_classical_methods_find_two_colours():
    frame = np.full((64, 64, 3), 40, np.uint8)
    frame[:, 32:] = (60, 180, 200)
    truth = np.repeat((np.arange(64) >= 32).astype(np.int32)[None], 64, 0)
    known = {"kmeans-lab": 0.4, "felzenszwalb": 0.9, "mean-shift": 0.9, "slic-merged": 0.9, "one-segment": 0.5}
    for method, least in known.items():
        table = contingency(truth, classical.METHODS[method](frame))
        assert covering(table) >= least, method
    assert covering(contingency(truth, classical.kmeans_lab(frame, 2))) == 1.0
    assert np.array_equal(classical.kmeans_lab(frame), classical.kmeans_lab(frame))
