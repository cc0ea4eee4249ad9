"""diffcli: domain-generalised semantic segmentation on a frozen text-to-image diffusion model."""

__version__ = "0.1.0"
