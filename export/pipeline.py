"""Loading what is exported: U-Net, VAE and the prompt's embedding of a diffusers folder or hub id."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    import torch

# Pipelines whose U-Net, VAE and single CLIP text encoder are loaded as they are (families as data).
SUPPORTED_PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
)
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(slots=True)
class Pipeline:
    """The modules an export needs, in evaluation mode. `prompt_embedding`: [1, tokens, channels]."""

    unet: Any
    vae: Any
    prompt_embedding: "torch.Tensor"
    source: str
    revision: str | None

    @property
    def stride(self) -> int:
        """Pixels by which a frame's height and width must be divisible: the VAE's stride times the U-Net's."""
        levels = len(self.unet.config.down_block_types)
        vae_blocks = getattr(self.vae.config, "block_out_channels", None) or self.vae.config.encoder_block_out_channels
        return 2 ** (len(vae_blocks) - 1) * 2 ** (levels - 1)

    @property
    def native_size(self) -> int:
        """Side in pixels of the frames the model was trained on."""
        sample = self.unet.config.sample_size
        side = max(sample) if isinstance(sample, (list, tuple)) else int(sample)
        return side * self.stride // 2 ** (len(self.unet.config.down_block_types) - 1)


def load_pipeline(
    model: str, prompt: str = "", precision: str = "fp32", storage: str = "fp32", revision: str | None = None
) -> Pipeline:
    """Load `model`, a diffusers folder or hub id, in the target precision.

    `storage` rounds the weights to what that precision can hold: what a compact engine stores is then exact.

    Raises DiffSegError when there is no such model, it is incomplete, or its family is not supported (found out
    before any weight is loaded).
    """
    import torch

    dtype = getattr(torch, PRECISIONS[precision])
    source, index = _read_index(model, revision)
    found = index.get("_class_name")
    if found not in SUPPORTED_PIPELINES:
        raise DiffSegError(
            f"{model} is a {found}; supported: Stable Diffusion 1.x and 2.x ({', '.join(SUPPORTED_PIPELINES)})"
        )
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        if not (index.get(part) or [None])[0]:
            raise DiffSegError(f"{model} has no {part} in its model_index.json; expected a whole diffusers pipeline")
    quiet_libraries()
    embedding = _embed_prompt(source, prompt, revision)
    unet = _load(source, "diffusers", index["unet"][1], "unet", revision, torch_dtype=dtype)
    vae = _load(source, "diffusers", index["vae"][1], "vae", revision, torch_dtype=dtype)
    vae.decoder = None
    for module in (unet, vae):
        module.eval().requires_grad_(False)
        if storage != precision:
            for parameter in module.parameters():
                parameter.copy_(parameter.to(getattr(torch, PRECISIONS[storage])))
    return Pipeline(unet, vae, embedding.to(dtype), Path(source).name if Path(source).is_dir() else model, revision)


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and notices off stderr: errors reach people through us."""
    import logging

    import diffusers
    import transformers

    # Tracing says four times that torchvision is absent, which nothing here needs.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _read_index(model: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The source to load from and its model_index.json: only this small file is read or downloaded."""
    folder = Path(model).expanduser()
    if folder.exists():
        path = folder / "model_index.json"
        if not path.is_file():
            raise DiffSegError(
                f"{model} holds no model_index.json; expected a diffusers pipeline folder "
                "(model_index.json, unet/, vae/, text_encoder/, tokenizer/)"
            )
        try:
            return str(folder), json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DiffSegError(f"{path} is not JSON ({error}); download the model again") from None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise DiffSegError(f"no folder {model}, and it is no hub id either (expected owner/name)")
    from diffusers import DiffusionPipeline

    try:
        config = DiffusionPipeline.load_config(model, revision=revision)
    except Exception as error:
        raise DiffSegError(
            f"cannot get {model} from the model hub: {_first_line(error)}; check the name, the network, and for a "
            "gated model accept its licence there and log in with 'hf auth login', or pass a local folder"
        ) from None
    return model, dict(config)


def _load(source: str, library: str, name: str, part: str, revision: str | None, **options: Any) -> Any:
    """One component by its class name. Every failure of the libraries becomes one line naming the part."""
    import importlib

    cls = getattr(importlib.import_module(library), name, None)
    if cls is None:
        raise DiffSegError(f"{source}: {part} is a {name}, which this {library} does not know; upgrade {library}")
    try:
        return cls.from_pretrained(source, subfolder=part, revision=revision, **options)
    except Exception as error:
        raise DiffSegError(
            f"cannot load {part} of {source} ({_first_line(error)}); the folder may be half downloaded: "
            "expected its config and weights, download it again"
        ) from None


def _embed_prompt(source: str, prompt: str, revision: str | None) -> "torch.Tensor":
    """The prompt's embedding as the pipeline computes it: [1, tokens, channels], float32."""
    import torch

    tokenizer = _load(source, "transformers", "CLIPTokenizer", "tokenizer", revision)
    encoder = _load(source, "transformers", "CLIPTextModel", "text_encoder", revision).eval()
    length = encoder.config.max_position_embeddings
    tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids).last_hidden_state.float()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
