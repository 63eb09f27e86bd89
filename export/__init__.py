"""Export stage: a Stable Diffusion pipeline's VAE encoder and U-Net, traced into an engine file."""
