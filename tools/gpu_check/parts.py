"""The parts of the check, in order of worth: what a short time on somebody's GPU is spent on first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A part: a function of a `Bench` that gives figures, and in "missed" what is wrong, and runs in its own process.

    Attributes:
        name: for `--only` and the report.
        function: "module:function".
        minutes: how long it usually takes, for `--minutes`. It is ended after three times as long, and a minute.
        arguments: further ones for the function.
    """

    name: str
    function: str
    minutes: float
    arguments: tuple[str, ...] = ()

    @property
    def limit(self) -> float:
        """Seconds after which it is ended."""
        return 180 * self.minutes + 60


_HERE = "tools.gpu_check"
_KERNELS = ("tests/runtime/native/test_native.py", "tests/runtime/native/test_native_parts.py")
PARTS = (
    Part("machine", f"{_HERE}.kernels:machine", 0.1),
    Part("vectors", f"{_HERE}.kernels:vectors", 0.5),
    Part("sanitizer", f"{_HERE}.kernels:sanitizer", 1.5),
    Part("sass", f"{_HERE}.kernels:sass", 0.1),
    Part("timing", f"{_HERE}.kernels:timing", 1.5),
    Part("arrays", f"{_HERE}.network:arrays", 0.3),
    Part("capture", f"{_HERE}.kernels:capture", 0.1),
    Part("network", f"{_HERE}.network:network", 0.5),
    Part("tests of the kernels", f"{_HERE}.suites:tests", 3, _KERNELS),
    Part("tests of captures", f"{_HERE}.suites:tests", 1, ("tests/runtime/native/test_native_gpu.py",)),
    Part("onnxruntime", f"{_HERE}.plans:tiny_onnxruntime", 0.5),
    Part("tensorrt", f"{_HERE}.plans:tiny_plan", 1, ("tensorrt",)),
    Part("tensorrt_rtx", f"{_HERE}.plans:tiny_plan", 0.5, ("tensorrt_rtx",)),
    Part("tensorrt, full size", f"{_HERE}.plans:full_size", 8, ("tensorrt",)),
    Part("tensorrt_rtx, full size", f"{_HERE}.plans:full_size", 3, ("tensorrt_rtx",)),
    Part("tests of plans", f"{_HERE}.suites:tests", 4, ("tests/runtime/engine/plans/test_plans_gpu.py",)),
    Part("labels head", f"{_HERE}.segmenters:labels_head", 1),
    Part("thresholds auto", f"{_HERE}.segmenters:auto", 0.5),
    Part("second GPU", f"{_HERE}.segmenters:second_gpu", 0.5),
    Part("video", f"{_HERE}.segmenters:video", 0.5),
    Part("memory", f"{_HERE}.segmenters:memory", 1),
)
