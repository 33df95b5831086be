"""Local response normalization within a channel, as Caffe defines it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _WithinChannelLRN(torch.autograd.Function):
    """The formula of `WithinChannelLRN` with its gradient by hand: fewer and smaller intermediates than autograd keeps.

    With s = 1 + alpha * A(x^2), A being the average over the window, y = x * s^-beta and
    dx = g * s^-beta - 2 * alpha * beta * x * A(g * x * s^(-beta - 1)). A is its own adjoint: it is symmetric and, as
    Caffe counts the padding, divides by the same number everywhere.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float) -> Tensor:
        scale = F.avg_pool2d(x * x, size, 1, size // 2).mul_(alpha).add_(1.0)
        power = _negative_power(scale, beta)
        ctx.save_for_backward(x, scale, power)
        ctx.size, ctx.alpha, ctx.beta = size, alpha, beta
        return x * power

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, scale, power = ctx.saved_tensors
        direct = grad * power
        spread = F.avg_pool2d((direct * x).div_(scale), ctx.size, 1, ctx.size // 2)
        return direct.addcmul_(x, spread, value=-2.0 * ctx.alpha * ctx.beta), None, None, None


def _negative_power(scale: Tensor, beta: float) -> Tensor:
    """Return scale ** -beta; at Caffe's beta of 3/4 by two square roots, which are cheaper than a power."""
    if beta != 0.75:
        return scale.pow(-beta)
    root = scale.rsqrt()
    return root.sqrt().mul_(root)


class WithinChannelLRN(nn.Module):
    """Divide each activation by a power of the mean square around it, channel by channel.

    y = x / (1 + alpha / n^2 * sum of x^2 over the n x n window around it) ^ beta. Outside the image x is 0, and the
    sum is divided by n^2 there too. The arithmetic is done in float32 whatever the input: 1 + alpha * x^2 rounds to 1
    in half precision.

    Args:
        size: The window's side n in pixels, odd.
        alpha: Weight of the mean square, >= 0.
        beta: The power, >= 0.

    Raises:
        ValueError: If an argument is out of range.

    Shapes:
        Input and output are (batch, channels, height, width), of one dtype and memory format.

    Source:
        Caffe, `lrn_layer.cpp`, `norm_region: WITHIN_CHANNEL`; Krizhevsky's cuda-convnet calls it `rnorm`.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size must be odd and >= 1, got {size}")
        if alpha < 0:
            raise ValueError(f"alpha must be >= 0, got {alpha}")
        if beta < 0:
            raise ValueError(f"beta must be >= 0, got {beta}")
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (batch, channels, height, width)."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        out: Tensor = _WithinChannelLRN.apply(wide, self.size, self.alpha, self.beta)  # type: ignore[no-untyped-call]
        return out.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the arguments, for `print(model)`."""
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}"
