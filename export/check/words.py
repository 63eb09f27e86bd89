"""The words' maps that PyTorch computes with an unchanged diffusers model, and an engine's compared with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from export.check.eager import run_model
from export.check.maps import BOUND, HALF_BOUND, HALF_PRECISION, ROW_SUM_BOUND, OutputCheck, mean_divergence
from export.model.families import BLOCKS
from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.check.maps import Reference
    from export.model.load import LoadedModel
    from runtime.engine.spec import EngineSpec


HALF_SUM_BOUND = 1e-2  # relative error of a map's sum that half precision may have


def eager_words(
    model: LoadedModel,
    frame: NDArray[np.uint8],
    timestep: int,
    blocks: Sequence[str] = BLOCKS,
    *,
    noise_seed: int | None = None,
) -> list[NDArray[np.float32]]:
    """Maps of the model's words in frames uint8 [B, H, W, 3] BGR, finest first: float32 [B, words, h, w] each.

    Nothing is replaced in the model: a hook before each cross-attention computes softmax(Q·Kᵀ/√d) of what the layer is
    given. Prompts run one after the other. Other arguments are those of `export.check.eager.eager_maps`.
    """
    words = model.words
    assert words is not None
    found: dict[int, list[list[Tensor]]] = {}  # tokens of the picture → for each word, its maps in every layer
    given: list[tuple[Any, Tensor, Tensor]] = []

    def keep(layer: Any, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        given.append((layer, inputs[0], named["encoder_hidden_states"]))

    layers = [
        layer for name, layer in model.unet.named_modules() if name.endswith(".attn2") and name.split("_")[0] in blocks
    ]
    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        for prompt, embedding in enumerate(words.embeddings):
            pooled = None if words.pooled is None else words.pooled[prompt, None]
            run_model(model, frame, timestep, noise_seed, embedding[None], pooled)
            for layer, hidden, states in given:
                maps = _cross_attention(layer, hidden, states)
                by_word = found.setdefault(maps.shape[1], [[] for _ in words.words])
                for word, (where, tokens) in enumerate(words.places):
                    if where == prompt:
                        by_word[word].append(torch.stack([maps[..., token] for token in tokens]).mean(dim=0))
            given.clear()
    finally:
        for hook in hooks:
            hook.remove()
    height, width = frame.shape[1:3]
    result = []
    for n in sorted(found, reverse=True):
        whole = torch.stack([torch.stack(maps).mean(dim=0) for maps in found[n]], dim=1)
        rows = round(math.sqrt(n * height / width))
        result.append(whole.unflatten(-1, (rows, n // rows)).cpu().numpy())
    return result


def _cross_attention(layer: Any, hidden: Tensor, states: Tensor) -> Tensor:
    """float32 [B, n, tokens]: the mean over heads of the probabilities with which `hidden` attends to `states`."""
    with torch.no_grad():
        query, key = layer.to_q(hidden), layer.to_k(states)
        depth = query.shape[-1] // layer.heads
        heads = [
            torch.einsum("bnd,btd->bnt", query[..., part], key[..., part]).float() / math.sqrt(depth)
            for part in (slice(start, start + depth) for start in range(0, query.shape[-1], depth))
        ]
        return torch.stack([logits.softmax(dim=-1) for logits in heads]).mean(dim=0)


def compare_words(spec: EngineSpec, found: Sequence[NDArray[Any]], reference: Reference) -> list[OutputCheck]:
    """Compare an engine's words' maps [B, words, h, w] with PyTorch's, level by level.

    The divergence is that of maps that sum to 1; their sums are compared, too. Raises DiffSegError when the shapes
    differ.
    """
    shapes = ([m.shape for m in found], [m.shape for m in reference.words])
    if shapes[0] != shapes[1]:
        raise DiffSegError(f"the engine gives words' maps of shapes {shapes[0]}, PyTorch {shapes[1]}; export it again")
    bounds = [(BOUND, ROW_SUM_BOUND)] * len(reference.words)
    if reference.half_words:
        factor = HALF_PRECISION[spec.precision]
        # A divergence grows with the square of an error, a sum's error with the error itself.
        bounds = [
            (
                max(HALF_BOUND, factor * mean_divergence(_rows(half), _rows(whole))),
                max(HALF_SUM_BOUND, factor**0.5 * _sum_error(half, whole)),
            )
            for half, whole in zip(reference.half_words, reference.words, strict=True)
        ]
    return [
        _compare(name, ours, theirs, *bound)
        for name, ours, theirs, bound in zip(spec.word_outputs, found, reference.words, bounds, strict=True)
    ]


def _sum_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest relative error of a map's sum."""
    sums = found.sum(axis=(-1, -2), dtype=np.float64) / expected.sum(axis=(-1, -2), dtype=np.float64)
    return float(np.abs(sums - 1).max())


def _rows(maps: NDArray[Any]) -> NDArray[np.float64]:
    """float64 [B, words, n], each row divided by its sum."""
    rows = maps.reshape(*maps.shape[:2], -1).astype(np.float64)
    return np.asarray(rows / rows.sum(axis=-1, keepdims=True))


def _compare(
    name: str, found: NDArray[Any], expected: NDArray[np.float32], bound: float, sum_bound: float
) -> OutputCheck:
    difference = np.abs(found.astype(np.float32) - expected)
    finite = bool(np.isfinite(found).all())
    return OutputCheck(
        name,
        float(difference.max()),
        float(difference.mean()),
        mean_divergence(_rows(found), _rows(expected)) if finite else math.nan,
        _sum_error(found, expected),
        finite,
        bound,
        sum_bound,
    )
