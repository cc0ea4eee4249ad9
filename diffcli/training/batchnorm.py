"""BatchNorm over the images of all processes: what one process would compute on all of them.

torch.nn.SyncBatchNorm refuses tensors on the CPU, and processes on CPUs (over gloo) are supported and tested here. One
layer for every device keeps their numbers the same, so this one stays ours; it runs wherever torch.distributed does.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def synchronise_batchnorm(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside `module` by one over all processes: the same parameters, buffers and names."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(module, name, SynchronisedBatchNorm2d.of(child))
        else:
            synchronise_batchnorm(child)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose mean and variance, in training, are those of the batches of all processes together.

    Every process has to call it as often as the others. Gradients of weight and bias are this process's share; data-
    parallel training averages them as those of every other parameter.
    """

    @classmethod
    def of(cls, layer: nn.BatchNorm2d) -> "SynchronisedBatchNorm2d":
        """The layer as a synchronised one; it shares the parameters and buffers."""
        new = cls(layer.num_features, eps=layer.eps, momentum=layer.momentum, affine=layer.affine)
        new._parameters, new._buffers = layer._parameters, layer._buffers
        return new.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """B,C,h,w -> B,C,h,w in the input's precision; statistics are float32."""
        if not self.training:
            return super().forward(input)
        mean, variance, count = _statistics(input)
        self._track(mean, variance, count)
        output: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, mean, variance, count, self.eps
        )
        return output

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics; their variance is the unbiased one, as in BatchNorm2d."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), self.momentum)


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,) and biased variance (C,) of B,C,h,w maps over all processes, and the number of values a channel ().

    From each process's mean and variance, never from a sum of squares: that would lose digits.
    """
    variance, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
    local = torch.cat([mean, variance, mean.new_tensor([x.numel() / x.shape[1]])])
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, local)
    every = torch.stack(gathered)
    means, variances = every[:, :-1].chunk(2, dim=1)
    count = every[:, -1].sum()
    weights = every[:, -1:] / count
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean) ** 2)).sum(0), count


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, differentiated through mean and variance."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        gradient = gradients[0].float()

        def channels(values: Tensor) -> Tensor:
            return values[:, None, None]

        normalised = (x.float() - channels(mean)) * channels(scale)
        bias_gradient, weight_gradient = gradient.sum((0, 2, 3)), (gradient * normalised).sum((0, 2, 3))
        sums = torch.stack([bias_gradient, weight_gradient])
        dist.all_reduce(sums)
        through_mean, through_variance = sums / count
        moved = gradient - channels(through_mean) - normalised * channels(through_variance)
        x_gradient = (moved * channels(scale * weight.float())).to(x.dtype)
        return x_gradient, weight_gradient.to(weight.dtype), bias_gradient.to(weight.dtype), *[None] * 4
