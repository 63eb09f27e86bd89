"""Loads U-Net, VAE encoder and the prompt's embedding, in the target precision."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.model.checkpoint import AGAIN
from export.model.families import Config, Family, TextPart, check_frame_size, frame_stride, native_size
from export.model.source import ModelSource, find_model, first_line, read_config
from export.model.words import Places, PromptWords, place_words
from runtime.errors import DiffSegError

if TYPE_CHECKING:
    import torch

PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(slots=True)
class LoadedModel:
    """The modules that an export needs, in evaluation mode, without the VAE's decoder.

    `prompt_embedding`: float32 [1, tokens, channels]; `pooled_embedding`: float32 [1, channels], None for a family
    without one. `schedule`: the scheduler's configuration, None if the model has none. `source`, `revision`: of the
    model, for the sidecar. `vae_source`: name of the VAE that replaced the model's own, None for its own. `words`: of
    the second pass, None for no words.
    """

    unet: Any
    vae: Any
    prompt_embedding: "torch.Tensor"
    pooled_embedding: "torch.Tensor | None"
    schedule: Config | None
    family: Family
    source: str
    revision: str | None
    vae_source: str | None = None
    words: PromptWords | None = None

    @property
    def stride(self) -> int:
        """Pixels by which a frame's height and width must be divisible."""
        return frame_stride(self.unet.config, self.vae.config)

    @property
    def native_size(self) -> int:
        """Side in pixels of the frames that the model was trained on."""
        return native_size(self.unet.config, self.vae.config)


def load_model(
    model: str,
    prompt: str = "",
    precision: str = "fp32",
    storage: str | None = None,
    revision: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    vae: str | None = None,
    config: str | None = None,
    words: Sequence[str] = (),
) -> LoadedModel:
    """Load `model`, a diffusers folder, hub id or checkpoint file, in the target precision.

    `precision`: fp32, fp16 or bf16, the type of the weights. `storage`: a precision to which they are rounded first,
    so that a compact engine stores them exactly. `size`: (height, width) of the frames, None for no check of the size.
    `vae`: another VAE, folder or hub id. `config`: folder or hub id with a checkpoint file's configuration and
    tokenizer. `words`: of the second pass, as `runtime.engine.fields.words` takes them.

    Raises DiffSegError, before any weight is loaded, when there is no such model, it is incomplete, its family is not
    supported or the size does not fit.
    """
    source = find_model(model, revision, vae=vae, config=config)
    if size is not None:
        check_frame_size(*size, frame_stride(source.unet, source.vae))
    import torch

    dtype = getattr(torch, PRECISIONS[precision])
    quiet_libraries()
    prompt_embedding, pooled_embedding, prompt_words = _embed_prompts(source, prompt, tuple(words))
    unet = _load_unet(source, dtype)
    encoder = _load_vae(source, dtype)
    for module in (unet, encoder):
        module.eval().requires_grad_(False)
        if storage not in (None, precision):
            for parameter in module.parameters():
                parameter.copy_(parameter.to(getattr(torch, PRECISIONS[str(storage)])))
    return LoadedModel(
        unet=unet,
        vae=encoder,
        prompt_embedding=prompt_embedding,
        pooled_embedding=pooled_embedding,
        schedule=_read_schedule(source),
        family=source.family,
        source=source.name,
        revision=source.revision,
        vae_source=source.vae_name,
        words=prompt_words,
    )


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and notices off stderr; their errors are reported by this program."""
    import logging

    import diffusers
    import transformers

    # Tracing warns four times that torchvision is absent, which nothing here needs.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _load_unet(source: ModelSource, dtype: "torch.dtype") -> Any:
    from diffusers import UNet2DConditionModel

    if source.checkpoint is not None:
        return _from_checkpoint(UNet2DConditionModel, source, "unet", dtype)
    return _from_folder("diffusers", "UNet2DConditionModel", source.location, "unet", source.revision, dtype)


def _load_vae(source: ModelSource, dtype: "torch.dtype") -> Any:
    import diffusers
    import torch

    upcast = source.vae.get("force_upcast", source.vae_class == "AutoencoderKL")
    if source.family.upcast_vae and upcast and dtype == torch.float16:
        dtype = torch.float32  # its activations exceed the range of float16
    if source.checkpoint is not None and source.vae_name is None:
        vae = _from_checkpoint(diffusers.AutoencoderKL, source, "vae", dtype)
    else:
        revision = source.revision if source.vae_name is None else None
        vae = _from_folder("diffusers", source.vae_class, *source.vae_location, revision, dtype)
    vae.decoder = None
    return vae


def _from_folder(
    library: str, name: str, location: str, part: str | None, revision: str | None, dtype: "torch.dtype"
) -> Any:
    """Load one component of a folder or hub repository, also where its weights exist as float16 files only."""
    cls = getattr(importlib.import_module(library), name)

    def load(**options: Any) -> Any:
        subfolder = {"subfolder": part} if part else {}
        return cls.from_pretrained(
            location,
            revision=revision,
            torch_dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,  # nothing is unpickled
            **subfolder,
            **options,
        )

    def load_either() -> Any:
        try:
            return load()
        except OSError:
            try:
                return load(variant="fp16")
            except Exception:
                pass
            raise

    where = f"{part or 'weights'} of {location}"
    model, info = _attempt(load_either, where)
    missing = sorted(info["missing_keys"])
    if missing:
        raise DiffSegError(f"cannot load {where}: {len(missing)} tensors are missing, first {missing[0]}; {AGAIN}")
    return model


def _from_checkpoint(cls: Any, source: ModelSource, part: str, dtype: "torch.dtype") -> Any:
    """Load one component of an original checkpoint file, converted by diffusers."""
    path, where = str(source.checkpoint), f"{part} of {source.checkpoint} with the configuration of {source.location}"
    model = _attempt(
        lambda: cls.from_single_file(path, config=source.location, subfolder=part, torch_dtype=dtype), where
    )
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if missing:
        raise DiffSegError(
            f"cannot load {where}: {len(missing)} tensors are missing, first {missing[0]}; expected a configuration "
            "of the same shape, pass its folder as --config"
        )
    return model


def _attempt(load: Callable[[], Any], where: str) -> Any:
    """Call `load` and turn any error of the libraries into one line that says where it happened."""
    try:
        return load()
    except Exception as error:
        raise DiffSegError(
            f"cannot load {where} ({first_line(error)}); expected complete weights that match their configuration; "
            f"{AGAIN}"
        ) from None


def _embed_prompts(
    source: ModelSource, prompt: str, words: tuple[str, ...]
) -> "tuple[torch.Tensor, torch.Tensor | None, PromptWords | None]":
    """The prompt's embedding, as the family's pipeline computes it, and the pooled embedding; those of the words.

    All are float32. The text encoders are loaded one after the other and freed on return.
    """
    import torch

    states: list[list[torch.Tensor]] = []  # of each prompt, by each encoder
    pooled: list[torch.Tensor | None] = []
    places: Places = ()
    whole = None
    for text in source.family.text:
        tokenizer = _load_tokenizer(source, text)
        if source.checkpoint is None:
            name = source.index[text.encoder][1]
            encoder = _from_folder(
                "transformers", name, source.location, text.encoder, source.revision, torch.float32
            ).eval()
        else:
            whole = whole or _load_checkpoint_text(source)
            encoder = getattr(whole, text.encoder).eval()
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        found = len(tokenizer(prompt).input_ids)
        if found > length:
            raise DiffSegError(
                f"--prompt has {found - 2} tokens, the {text.encoder} of this model takes {length - 2}; shorten it"
            )
        prompts, placed = place_words(words, tokenizer, length) if words else ([], ())
        if places and placed != places:
            raise DiffSegError("--words: the model's two tokenizers split these words in different ways; reword them")
        places = placed
        states, pooled = states or [[] for _ in (prompt, *prompts)], []
        for known, each in zip(states, (prompt, *prompts), strict=True):
            tokens = tokenizer(each, padding="max_length", max_length=length, return_tensors="pt")
            with torch.no_grad():
                output = encoder(tokens.input_ids, output_hidden_states=text.hidden is not None)
            known.append(output.last_hidden_state if text.hidden is None else output.hidden_states[text.hidden])
            pooled.append(getattr(output, "text_embeds", None))
    embedding, *others = (torch.cat(known, dim=-1).float() for known in states)
    if not source.family.addition:
        pooled = []
    of_all = [one.float() for one in pooled if one is not None]
    found_words = None
    if words:
        found_words = PromptWords(words, places, torch.cat(others), torch.cat(of_all[1:]) if of_all else None)
    return embedding, of_all[0] if of_all else None, found_words


def _load_tokenizer(source: ModelSource, text: TextPart) -> Any:
    from transformers import CLIPTokenizer

    where = f"{text.tokenizer} of {source.location}"
    folder = Path(source.location) / text.tokenizer
    # Without files, transformers would make an empty tokenizer.
    if Path(source.location).is_dir() and not any(
        (folder / name).is_file() for name in ("vocab.json", "tokenizer.json")
    ):
        raise DiffSegError(
            f"{folder} has no tokenizer (expected vocab.json and merges.txt, or tokenizer.json); {AGAIN}"
        )
    return _attempt(
        lambda: CLIPTokenizer.from_pretrained(source.location, subfolder=text.tokenizer, revision=source.revision),
        where,
    )


def _load_checkpoint_text(source: ModelSource) -> Any:
    """A pipeline that contains only the text encoders of an original checkpoint file, in float32."""
    import diffusers
    import torch

    cls = getattr(diffusers, source.family.pipelines[0])
    options: dict[str, Any] = {"unet": None, "vae": None, "safety_checker": None, "torch_dtype": torch.float32}
    return _attempt(
        lambda: cls.from_single_file(str(source.checkpoint), config=source.location, **options),
        f"text encoder of {source.checkpoint} with the configuration of {source.location}",
    )


def _read_schedule(source: ModelSource) -> Config | None:
    if not (source.index.get("scheduler") or [None])[0]:
        return None
    return read_config(source.location, "scheduler/scheduler_config.json", source.revision)
