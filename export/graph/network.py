"""Frame → pyramid as one torch module: VAE encoder, one U-Net pass, self-attention maps averaged per resolution."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from export.graph.attention import ExposedSelfAttention, MapCollector, expose_attention, grid_of
from export.graph.conditioning import added_conditions, fixed_noise, fold_timestep, noise_constants
from export.graph.words import WordsPass
from export.model.families import BLOCKS, vae_stride
from runtime.engine.inputs import DEFAULT_INPUT, FrameInput
from runtime.engine.spec import Level

if TYPE_CHECKING:
    from export.model.load import LoadedModel


def black_frames(frame_input: FrameInput, height: int, width: int, batch: int = 1) -> Tensor:
    """Black frames of [height, width] as the graph takes them."""
    shape: Any = frame_input.shape(batch, height, width)
    return torch.zeros(shape, dtype=getattr(torch, frame_input.type))


class UNetPass(nn.Module):
    """One pass of the U-Net on a frame's latent: what every network of an engine begins with.

    Takes the model's modules and rewrites them in place: do not use the model afterwards.
    """

    noise: Tensor | None

    def __init__(
        self,
        model: "LoadedModel",
        timestep: int,
        *,
        size: tuple[int, int] | None = None,
        noise_seed: int | None = None,
        frame_input: FrameInput = DEFAULT_INPUT,
    ) -> None:
        """Take the arguments of `FrameToPyramid`. A subclass rewrites the attention layers."""
        super().__init__()
        self.frame_input = frame_input
        height, width = size or (model.native_size, model.native_size)
        self.timestep, self.noise_seed = timestep, noise_seed
        self.latent_scaling = float(model.vae.config.scaling_factor)
        # The encoder's output is multiplied by this: the scaling, times the latent's share if noise is added.
        self.latent_factor = self.latent_scaling
        self.latent_channels = int(model.unet.config.in_channels)
        self.dtype: torch.dtype = model.unet.dtype
        self.encoder_dtype: torch.dtype = model.vae.dtype
        self.encoder: nn.Module = model.vae.encoder
        self.quant_conv: nn.Module | None = getattr(model.vae, "quant_conv", None)
        self.unet: nn.Module = model.unet
        noise = None
        if noise_seed is not None:
            stride = vae_stride(model.vae.config)
            noise = fixed_noise(noise_seed, self.latent_channels, height // stride, width // stride)
            share, noise = noise_constants(model, timestep, noise)
            self.latent_factor *= share
        self.register_buffer("noise", noise)
        with torch.no_grad():
            fold_timestep(self.unet, timestep, added_conditions(model, height, width))
        if self.encoder_dtype != torch.float32:
            rewrite_encoder_attention(self.encoder)

    def run(self, frame: Tensor) -> Tensor:
        """Run frames, in the layout of `frame_input`, through the U-Net; what is wanted of it is kept by its layers.

        Returns the latent that the U-Net got, [B, C, h, w].
        """
        # Cast first: TensorRT accepts uint8 only at the graph's edge.
        pixels = frame if self.frame_input.planar else frame.float().flip(-1).permute(0, 3, 1, 2)
        if self.frame_input.brightest != 255:
            pixels = pixels * (255 / self.frame_input.brightest)  # in float32 exactly the pixel of 8 bits
        image = pixels / 127.5 - 1.0
        latent = self.encoder(image.to(self.encoder_dtype))
        if self.quant_conv is not None:
            latent = self.quant_conv(latent)
        # An AutoencoderKL gives mean and log-variance; the latent is the mean. An AutoencoderTiny gives the latent.
        latent = latent[:, : self.latent_channels] * self.latent_factor
        if self.noise is not None:
            latent = latent + self.noise.to(latent.dtype)
        latent = latent.to(self.dtype)
        self.unet(latent, 0, encoder_hidden_states=None)
        return latent


class FrameToPyramid(UNetPass):
    """DiffSeg's network (paper section 3.2): frames, in the layout of `frame_input` → attention maps, finest first.

    Each map is float32 [B, n, n], mean over heads and over the layers of its resolution; rows sum to 1. If the model
    has words, their maps follow (`export.graph.words`), one float32 [B, words, h, w] per resolution.
    Takes the model's modules and rewrites them in place: do not use the model afterwards.
    """

    def __init__(
        self,
        model: "LoadedModel",
        timestep: int,
        blocks: Sequence[str] = BLOCKS,
        *,
        size: tuple[int, int] | None = None,
        noise_seed: int | None = None,
        target: str = "gpu",
        frame_input: FrameInput = DEFAULT_INPUT,
    ) -> None:
        """`blocks`: of down, mid and up, those whose maps are averaged.

        `size`: (height, width) of the frames, the model's own if None; it is a constant of the graph where the U-Net
        takes it (Stable Diffusion XL) or noise is added. `noise_seed`: of that noise, None for no noise. `target`: gpu
        or cpu, for which the attention is written. `frame_input`: how frames are given. Raises DiffSegError for layers
        that cannot be rewritten.
        """
        # Before the U-Net is rewritten, whose weights the words' pass shares.
        native = (model.native_size, model.native_size)
        words = None if model.words is None else WordsPass(model, timestep, blocks, size or native, target)
        super().__init__(model, timestep, size=size, noise_seed=noise_seed, frame_input=frame_input)
        self.words = words
        self.collector = MapCollector(blocks)
        expose_attention(self.unet, model.prompt_embedding, self.collector, target)

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        """frame: of `frame_input` → one float32 [B, n, n] per resolution, finest first; then the words' maps."""
        latent = self.run(frame)
        maps = self.collector.take()
        # A sum, not a stack: at 64×64 every copy of a map is 64 MB.
        pyramid = tuple(sum(maps[n][1:], maps[n][0]) / len(maps[n]) for n in sorted(maps, reverse=True))
        return pyramid if self.words is None else (*pyramid, *self.words(latent))


class EncoderAttention(nn.Module):
    """Self-attention over the pixels of a VAE's encoder, with a float32 softmax.

    diffusers' own layer has `upcast_softmax`, but it calls PyTorch's fused attention, which exports as a softmax in the
    layer's own precision.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.norm: nn.Module = attention.group_norm
        self.attention = ExposedSelfAttention(attention, None)
        self.divisor: float = attention.rescale_output_factor

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states [B, C, h, w] → [B, C, h, w]."""
        tokens = self.norm(hidden_states).flatten(2).transpose(1, 2)
        found = self.attention(tokens).transpose(1, 2).unflatten(2, hidden_states.shape[2:])
        return (hidden_states + found) / self.divisor


def rewrite_encoder_attention(encoder: nn.Module) -> None:
    """Replace an AutoencoderKL's attention layers, in place; an AutoencoderTiny has none."""
    for block in list(encoder.modules()):
        layers: Any = getattr(block, "attentions", ())
        for index, attention in enumerate(layers):
            if attention is not None:
                layers[index] = EncoderAttention(attention)


def pyramid_levels(network: FrameToPyramid, height: int, width: int) -> tuple[Level, ...]:
    """Grids and numbers of layers, finest first, of the pyramid that `network` gives for a [height, width] frame.

    The network runs on fake tensors, which takes little time and no memory.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network(black_frames(network.frame_input, height, width))
    return tuple(
        Level(*grid_of(n, height, width), layers)
        for n, layers in sorted(network.collector.layers.items(), reverse=True)
    )
