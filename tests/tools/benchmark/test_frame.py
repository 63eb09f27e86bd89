"""Benchmark of a whole frame: the arithmetic of its report, on made-up times; and one program for real."""

import numpy as np
import pytest
from typer.testing import CliRunner

from runtime.engine.registry import EMBEDDED
from tools.benchmark.__main__ import app
from tools.benchmark.frame import draw, print_frame, summarize
from tools.benchmark.peers import measure_peer


def rounds(*seconds):
    def program(wall, flops):
        return {"wall": wall, "processor": 2 * wall, "merge": 0.1, "load": 1.0, "memory_gb": wall, "flops": flops}

    return [
        {
            "peak": {"fp32": 1e11, "bf16": 4e11},
            "eager": program(eager, 0.0),
            "onnxruntime": program(ort, 2e11),
            "openvino-bf16": program(bf16, 2e11),
        }
        for eager, ort, bf16 in seconds
    ]


def test_report(tmp_path, capsys):
    labels = np.repeat(np.arange(4), 100).reshape(20, 20)
    for name in ("eager", "onnxruntime", "openvino-bf16"):
        np.save(tmp_path / f"{name}.npy", labels if name != "openvino-bf16" else np.where(labels == 3, 2, labels))
    chosen = ["eager", "onnxruntime", "openvino-bf16"]
    report = summarize(rounds((20, 5, 1), (22, 4, 1), (50, 5, 2)), chosen, 2, tmp_path)
    ours = report["programs"]["openvino-bf16"]
    assert report["clock"] == "wall" and ours["seconds"] == 1 and ours["spread"] == [1, 2]
    assert ours["ratio"] == 22  # of 20, 22 and 25, each within its round
    assert ours["over_floor"] == pytest.approx(2.0) and ours["peak_memory_gb"] == 2 and ours["agreement"] == 0.75
    assert report["programs"]["onnxruntime"]["over_floor"] == pytest.approx(2.5)
    assert report["programs"]["eager"]["over_floor"] is None and report["programs"]["eager"]["ratio"] == 1
    assert summarize(rounds((20, 5, 1)), chosen, 1, tmp_path)["programs"]["onnxruntime"]["seconds"] == 10
    print_frame(report)
    assert "bf16 400 GFLOP/s" in capsys.readouterr().out
    draw(report, tmp_path / "times.png")
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")


def test_one_program(tmp_path):
    found = measure_peer("onnxruntime", "", str(EMBEDDED), 256, 1, str(tmp_path / "labels.npy"))
    assert np.load(tmp_path / "labels.npy").shape == (256, 256)
    assert found["flops"] > 1e9 and 0 < found["merge"] < found["wall"] and found["memory_gb"] > 0.1


def test_unknown_program():
    done = CliRunner().invoke(app, ["frame", "--peers", "onnxruntime,abacus"])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert "expected some of eager" in done.stderr and "found abacus" in done.stderr
