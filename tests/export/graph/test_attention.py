"""Attention rewritten for export: what the rewriting must not change, and what it is for."""

import pytest
import torch

from export.graph.attention import attend, shift_logits


def local_attention(seed):
    """Query, key and value [1, 2, 256, 20] of tokens that attend to their like, with logits of some tens."""
    generator = torch.Generator().manual_seed(seed)
    like = torch.randn(1, 2, 16, 20, generator=generator).repeat_interleave(16, dim=2)
    tokens = like + 0.3 * torch.randn(1, 2, 256, 20, generator=generator)
    return 1.6 * tokens, 1.4 * tokens, tokens


def divergence(reference, found):
    """Mean KL divergence of rows."""
    logs = (maps.clamp_min(1e-30).log() for maps in (reference, found))
    return (reference * (next(logs) - next(logs))).sum(-1).mean().item()


def test_shifted_logits_are_the_same_attention():
    query, key, value = (part.double() for part in local_attention(0))
    query, key = query + 0.5, key - 0.25  # neither is centred
    shifted, keys = shift_logits(query, key)
    assert shifted.shape[-1] == keys.shape[-1] == 24
    for found, expected in zip(attend(shifted, keys, value), attend(query, key, value), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # A product that leaves each token's logit with itself at 0 is what makes it exact where it counts.
    itself = (shifted @ keys.transpose(-1, -2)).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(itself, torch.zeros_like(itself), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shifted_logits_survive_half_precision(dtype):
    query, key, value = (part.to(dtype) for part in local_attention(1))
    reference = attend(query.double(), key.double(), value.double())[1].double()
    plain = attend(query, key, value)[1].double()
    shifted = attend(*shift_logits(query, key), value)[1].double()
    assert divergence(reference, shifted) < divergence(reference, plain) / 50
