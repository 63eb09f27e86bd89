"""The export: traces the VAE encoder and U-Net of a Stable Diffusion model into an engine file."""
