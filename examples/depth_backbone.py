"""Another task on the frozen diffusion features: depth from one picture of the miniature world, offline.

    python examples/depth_backbone.py   # a few minutes on one CPU core; --iterations 20 --scenes 8 for a look

DIFFBackbone gives four maps of the embedded model; a head of a few lines makes metres of them. The error is told on
scenes never seen, of the clean domain and of a look never seen, beside that of every pixel's median depth in training.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from diffcli import DIFFBackbone
from diffcli.core.model import to_model_range
from diffcli.data.miniworld import render, render_depth

SIZE = (128, 256)
FARTHEST = 100.0  # metres; what is farther, and the sky, is not scored


class DepthHead(nn.Module):
    """Four maps to the logarithm of depth: each projected, brought to the finest one's size, summed, convolved."""

    def __init__(self, in_channels: tuple[int, ...], width: int = 64) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in in_channels)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 1, 1)
        nn.init.constant_(self.out.bias, 2.5)  # 12 m

    def forward(self, maps: list[Tensor]) -> Tensor:
        levels = [layer(x) for layer, x in zip(self.project, maps, strict=True)]
        merged = sum(F.interpolate(x, maps[0].shape[-2:], mode="bilinear") for x in levels)
        return F.interpolate(self.out(self.mix(merged.relu()).relu()), SIZE, mode="bilinear")[:, 0]


def scenes(seed: int, indexes: list[int], domain: str) -> tuple[Tensor, Tensor]:
    """B,3,H,W images in [-1,1] and B,H,W depths in metres."""
    images = np.stack([render(seed, index, domain, size=SIZE)[0] for index in indexes])
    depths = np.stack([render_depth(seed, index, size=SIZE) for index in indexes])
    return to_model_range(torch.from_numpy(images)), torch.from_numpy(depths)


def error(predicted: Tensor, depths: Tensor) -> float:
    """Mean of |predicted - true| / true over what is scored."""
    scored = depths < FARTHEST
    return ((predicted - depths).abs() / depths)[scored].mean().item()


def colours(depths: Tensor) -> np.ndarray:
    """H,W metres to H,W,3: near is bright, far is dark."""
    near = 1 - (depths.clamp(2, FARTHEST) / 2).log().numpy()[..., None] / np.log(FARTHEST / 2)
    return (255 * np.concatenate([near, near**2, 0.25 + 0.5 * near * (1 - near)], axis=-1)).astype(np.uint8)


def main() -> None:
    """Train, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="depth.png")
    options = parser.parse_args()
    torch.manual_seed(0)
    backbone = DIFFBackbone.from_source("embedded", schedule="one", channels=(64, 64, 128, 128))
    model = nn.Sequential(backbone, DepthHead(backbone.out_channels)).to(options.device).train()
    images, depths = scenes(0, list(range(options.scenes)), "clean")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, options.iterations)
    for iteration in range(options.iterations):
        chosen = torch.randint(options.scenes, (2,))
        truth, predicted = depths[chosen], model(images[chosen].to(options.device)).cpu()
        loss = F.l1_loss(predicted[truth < FARTHEST], truth[truth < FARTHEST].log())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        if (iteration + 1) % 50 == 0:
            print(f"iteration {iteration + 1}: loss {loss.item():.3f}", flush=True)
    model.eval()
    median, rows = depths.clamp(max=FARTHEST).median(0).values, []
    for domain in ("clean", "photo"):
        unseen, truth = scenes(1, list(range(8)), domain)
        with torch.no_grad():
            predicted = torch.cat([model(one[None].to(options.device)).exp().cpu() for one in unseen])
        trivial = error(median.expand_as(truth), truth)
        print(f"{domain}: relative error {error(predicted, truth):.3f}, of the median map {trivial:.3f}")
        picture = ((unseen[0].movedim(0, -1) + 1) * 127.5).round().byte().numpy()
        rows.append(np.concatenate([picture, colours(truth[0]), colours(predicted[0])], axis=1))
    Image.fromarray(np.concatenate(rows)).save(options.output)
    print(f"picture | true depth | predicted, a row a domain: {options.output}")


if __name__ == "__main__":
    main()
