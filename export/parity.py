"""An engine compared with PyTorch: the same frames run through both."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.check.maps import Check, Reference, random_frame
from export.heads.registry import find_head, load_head
from runtime.engine.registry import open_engine
from runtime.engine.spec import EngineSpec, sidecar_path
from runtime.errors import DiffSegError
from runtime.files import read_small_text

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_engine(path: Path, model: str, *, vae: str | None = None, config: str | None = None) -> list[Check]:
    """Run random frames through the engine and through the unchanged `model`, and compare as the engine's head does.

    Timestep, prompt and size are the engine's own; `vae` and `config` are those of the export. PyTorch runs first and
    is freed before the engine is loaded, so that the two do not need memory at the same time.
    Raises DiffSegError when one of them cannot be loaded, or the engine's precision cannot be checked here.
    """
    from export.check.eager import eager_features, eager_pyramid
    from export.check.words import eager_words
    from export.model.load import load_model

    sidecar = sidecar_path(path)
    described = sidecar.exists()
    spec = EngineSpec.from_json(read_small_text(sidecar), str(sidecar)) if described else open_engine(path, "cpu").spec
    if spec.precision == "int8":
        raise DiffSegError(
            f"{path} is an int8 engine, which is compared on photographs and not with PyTorch; expected fp32, fp16 or "
            "bf16: 'python -m export quantize' judges int8 when it makes it"
        )
    check_installed_for(spec.precision)
    frames = np.stack([random_frame(spec.height, spec.width, seed) for seed in range(spec.batch or 1)])

    def eager(precision: str) -> tuple[list["NDArray[np.float32]"], list["NDArray[np.float32]"]]:
        try:
            loaded = load_model(
                model,
                spec.prompt,
                precision,
                storage=spec.storage,
                revision=spec.revision,
                vae=vae or spec.vae,
                config=config,
                words=spec.words,
            )
        except DiffSegError as error:
            if spec.vae is None or vae is not None:
                raise
            raise DiffSegError(
                f"this engine has the VAE {spec.vae!r}; pass its folder or id by --vae ({error})"
            ) from None
        if find_head(spec.head).reads == "features":
            return eager_features(loaded, frames, spec.timestep, noise_seed=spec.noise_seed), []
        where: tuple[Any, ...] = (loaded, frames, spec.timestep, spec.blocks)
        words = eager_words(*where, noise_seed=spec.noise_seed) if spec.words else []
        return eager_pyramid(*where, noise_seed=spec.noise_seed), words

    maps, words = eager("fp32")
    half, half_words = (None, []) if spec.precision == "fp32" else eager("bf16")
    reference = Reference(frames, maps, half, words, half_words)
    # OpenVINO in "fp32" keeps the graph's own types: its default would compute softmax and maps in bfloat16, too.
    start = partial(open_engine, device="cpu", backend="onnxruntime")
    if spec.precision == "bf16":
        start = partial(open_engine, device="cpu", backend="openvino", precision="fp32", cache="")
    return load_head(spec.head).compare(path, start, reference)


def check_installed_for(precision: str) -> None:
    """Raise DiffSegError when no backend that is installed can check an engine of this precision.

    ONNX Runtime does not run bfloat16 on a CPU. In float32 and float16 it is accurate on every CPU.
    """
    if precision == "bf16" and importlib.util.find_spec("openvino") is None:
        raise DiffSegError(
            "--precision bf16: engines in bfloat16 are checked with the package openvino, which is not installed; "
            "pip install 'diffseg[openvino]', or choose --precision fp16"
        )
