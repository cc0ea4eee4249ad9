"""A checksum of tensors, by which a flipped bit in a file is found."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def checksum_tensors(tensors: Mapping[str, Tensor], *, text: str = "") -> str:
    """SHA-256 of `text` and of every tensor's name, dtype, shape and bytes, whatever the order of the names."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
