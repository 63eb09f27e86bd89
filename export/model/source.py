"""Where a model comes from: a diffusers folder, an id on the model hub, or a single checkpoint file.

Reads configuration and file headers only, without torch: a bad model is refused before its weights load.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.model.checkpoint import AGAIN, read_header, recognise
from export.model.families import Config, Family, check_unet, check_vae, family_of
from runtime.errors import DiffSegError

VaeLocation = tuple[str, str | None]  # folder or hub id, and the part of it
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model whose configuration has been read and can be exported.

    `location`: folder or hub id, as diffusers' from_pretrained takes it. `checkpoint`: the file with the weights, if
    there is one; `location` then gives only configuration and tokenizer. `index`: the model_index.json. `unet`, `vae`:
    the components' configurations. `vae_location`: where the VAE comes from, "vae" in `location` unless it was
    replaced. `name`: for the sidecar. `vae_name`: of the replacement, None for the model's own VAE.
    """

    location: str
    revision: str | None
    checkpoint: Path | None
    index: Config
    family: Family
    unet: Config
    vae: Config
    vae_class: str
    vae_location: VaeLocation
    name: str
    vae_name: str | None


def find_model(
    model: str, revision: str | None = None, *, vae: str | None = None, config: str | None = None
) -> ModelSource:
    """Read the configuration of `model`: a diffusers folder, a hub id, or an original checkpoint `.safetensors`.

    `revision`: of the hub's repository. `vae`: folder or hub id of another VAE. `config`: for a checkpoint file, the
    diffusers folder or hub id with its configuration and tokenizer; by default the hub id of its family.

    Raises DiffSegError when there is no such model, it is incomplete, or its family is not supported.
    """
    path = Path(model).expanduser()
    checkpoint = path if path.is_file() else None
    if checkpoint is None and config is not None:
        raise DiffSegError(
            f"--config goes with a checkpoint file; {model} has its own configuration, leave the option out"
        )
    layout = None
    if checkpoint is None:
        location = _locate(model)
    else:
        layout = recognise(checkpoint)
        location = _locate(config or str(layout.config))
        revision = None
    try:
        index = read_config(location, "model_index.json", revision)
    except DiffSegError as error:
        if checkpoint is None or config is not None:
            raise
        raise DiffSegError(
            f"{model} contains no configuration, and {error}; or pass a diffusers folder of the same family as --config"
        ) from None
    family = family_of(model, index)
    if layout is not None and layout.family != family.name:
        raise DiffSegError(
            f"{model} is {layout.name}, and the configuration of {location} is of {family.name}; pass one of the "
            f"same family as --config, such as {layout.config}"
        )
    unet = read_config(location, "unet/config.json", revision)
    vae_class, vae_location, vae_config = _find_vae(vae) if vae else _own_vae(location, index, revision)
    check_vae(vae or model, vae_class, vae_config)
    check_unet(model, family, unet, vae_config)
    weights = ("unet", "vae", *(text.encoder for text in family.text))
    if checkpoint is None and Path(location).is_dir():
        for part in weights:
            if vae is None or part != "vae":
                check_weight_files(Path(location) / part)
    if vae is not None and Path(vae_location[0]).is_dir():
        check_weight_files(Path(vae_location[0]) / (vae_location[1] or ""))
    name = checkpoint.name if checkpoint else _name(location)
    return ModelSource(
        location, revision, checkpoint, index, family, unet, vae_config, vae_class, vae_location, name,
        None if vae is None else _name(vae),
    )  # fmt: skip


def _name(location: str) -> str:
    path = Path(location).expanduser()
    return path.resolve().name if path.exists() else location


def _locate(model: str) -> str:
    """The folder as diffusers takes it, or the hub id."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder)
    if not _HUB_ID.fullmatch(model):
        raise DiffSegError(f"no folder or file {model}, and not a hub id either (expected owner/name); check the name")
    return model


def _own_vae(location: str, index: Config, revision: str | None) -> tuple[str, VaeLocation, Config]:
    """Class, place and configuration of a pipeline's own VAE."""
    kind = str((index.get("vae") or [None, None])[1])
    return kind, (location, "vae"), read_config(location, "vae/config.json", revision)


def _find_vae(vae: str) -> tuple[str, VaeLocation, Config]:
    """Class, place and configuration of a VAE, given by the folder or hub id of a VAE or of a whole pipeline."""
    location = _locate(vae)
    try:
        config = read_config(location, "config.json", None)
        return str(config.get("_class_name")), (location, None), config
    except _NoSuchFile:
        return _own_vae(location, read_config(location, "model_index.json", None), None)


class _NoSuchFile(DiffSegError):
    """A model lacks a file."""


def read_config(location: str, name: str, revision: str | None) -> dict[str, Any]:
    """Read a JSON file of a diffusers folder or hub repository. Raises DiffSegError if it is absent or broken."""
    folder = Path(location)
    path = folder / name if folder.is_dir() else _download(location, name, revision)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _NoSuchFile(
            f"{location} has no {name}; expected a diffusers pipeline folder (model_index.json, unet/, vae/, "
            f"text_encoder/, tokenizer/); if it was one, {AGAIN}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DiffSegError(f"{path} is not JSON ({error}); {AGAIN}") from None
    if not isinstance(found, dict):
        raise DiffSegError(f"{path} contains a {type(found).__name__}; expected a JSON object; {AGAIN}")
    return found


def _download(model: str, name: str, revision: str | None) -> Path:
    """Download a small file of a hub repository, or take it from the local cache."""
    import logging

    from huggingface_hub import errors, hf_hub_download

    # Its log lines about retries would surround our one line.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except Exception as error:
        raise hub_error(error, errors, model, name, revision) from None


def hub_error(error: Exception, errors: Any, model: str, name: str, revision: str | None) -> DiffSegError:
    """The error that tells the user what a failed download means. `errors`: the module huggingface_hub.errors."""
    local = "or pass a local folder"
    if isinstance(error, errors.GatedRepoError):
        return DiffSegError(
            f"{model} is gated: accept its licence on its page at the hub, log in with 'hf auth login', {local}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return DiffSegError(
            f"the hub has no model {model} (or it is private): check the name (owner/name), log in with 'hf auth "
            f"login' if it is private, {local}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DiffSegError(f"{model} has no revision {revision!r}; check its branches and tags on the hub")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return _NoSuchFile(f"{model} has no {name}; expected a diffusers pipeline (model_index.json, unet/, vae/)")
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError)):
        return DiffSegError(
            f"no folder {model} here, and the model hub cannot be reached to get {name} ({first_line(error)}): check "
            f"the name and the network, {local}"
        )
    return DiffSegError(
        f"cannot get {name} of {model} from the model hub: {first_line(error)}; check the name, {local}"
    )


def check_weight_files(folder: Path) -> None:
    """Check by names and headers that no weights of a component are missing. Raises DiffSegError if some are."""
    shards = [name for index in folder.glob("*.index*.json") for name in _shards(index)]
    missing = [name for name in dict.fromkeys(shards) if not (folder / name).is_file()]
    if missing:
        raise DiffSegError(
            f"{folder} lacks {len(missing)} of {len(set(shards))} shards of its weights, first {missing[0]}; {AGAIN}"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files and any(folder.glob("*.bin")):
        raise DiffSegError(
            f"{folder} has its weights as pickle (.bin), which may contain code; expected .safetensors: download a "
            "revision that has them, or convert the model"
        )
    if not files:
        raise DiffSegError(f"{folder} has no weights (expected a .safetensors file); {AGAIN}")
    for file in files:
        read_header(file)


def _shards(index: Path) -> list[str]:
    found = read_config(str(index.parent), index.name, None)
    return list(found.get("weight_map", {}).values())


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type if the text is empty."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
