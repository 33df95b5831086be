"""The network of Smith's table against Caffe's definitions, written out pixel by pixel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lr_lightning.training.models import WithinChannelLRN, smith_cnn


def caffe_pool(x: Tensor, kind: str, kernel: int = 3, stride: int = 2, pad: int = 0) -> Tensor:
    """Caffe's pooling layer: size rounded up; an average divides by the window cut at the padded edge."""
    _, _, height, width = x.shape
    rows, cols = (-((kernel - 2 * pad - side) // stride) + 1 for side in (height, width))
    if pad:
        rows -= (rows - 1) * stride >= height + pad
        cols -= (cols - 1) * stride >= width + pad
    lines = []
    for row in range(rows):
        line = []
        for col in range(cols):
            top, left = row * stride - pad, col * stride - pad
            bottom, right = min(top + kernel, height + pad), min(left + kernel, width + pad)
            area = (bottom - top) * (right - left)
            window = x[:, :, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
            line.append(window.amax((2, 3)) if kind == "max" else window.sum((2, 3)) / area)
        lines.append(torch.stack(line, dim=-1))
    return torch.stack(lines, dim=-2)


def caffe_lrn(x: Tensor, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> Tensor:
    """Caffe's WITHIN_CHANNEL normalization: split, square, average pool, power, product."""
    return x * (1 + alpha * caffe_pool(x**2, "ave", size, 1, (size - 1) // 2)) ** -beta


@pytest.mark.parametrize("side", [(8, 8), (9, 12), (32, 32)])
def test_network_and_its_gradient_equal_the_literal_reference(side: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = smith_cnn(3, 10, side).double()
    for param in net.parameters():
        torch.nn.init.normal_(param, std=0.1)  # large enough for the normalization to matter
    images = 100 * torch.randn(2, 3, *side, dtype=torch.float64)

    x = caffe_lrn(F.relu(caffe_pool(F.conv2d(images, net.conv1.weight, net.conv1.bias, padding=2), "max")))
    x = caffe_lrn(caffe_pool(F.relu(F.conv2d(x, net.conv2.weight, net.conv2.bias, padding=2)), "ave"))
    x = caffe_pool(F.relu(F.conv2d(x, net.conv3.weight, net.conv3.bias, padding=2)), "ave")
    expected = F.linear(x.flatten(1), net.fc.weight, net.fc.bias)

    actual = net(images)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    params = list(net.parameters())
    for ours, reference in zip(
        torch.autograd.grad(actual.square().sum(), params),
        torch.autograd.grad(expected.square().sum(), params),
        strict=True,
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("size", "alpha", "beta"), [(3, 5e-5, 0.75), (3, 0.5, 0.75), (5, 0.5, 0.4), (1, 0.5, 0.75)])
def test_lrn_equals_the_literal_reference(size: int, alpha: float, beta: float) -> None:
    torch.manual_seed(0)
    x = 10 * torch.randn(2, 3, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(
        WithinChannelLRN(size, alpha, beta)(x), caffe_lrn(x, size, alpha, beta), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(("size", "alpha", "beta"), [(3, 0.5, 0.75), (5, 0.5, 0.4)])
def test_lrn_gradient_equals_finite_differences(size: int, alpha: float, beta: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(WithinChannelLRN(size, alpha, beta), (x,))


def test_lrn_in_bfloat16_computes_in_float32() -> None:
    torch.manual_seed(0)
    x = 10 * torch.randn(2, 3, 5, 5).to(torch.bfloat16)
    lrn = WithinChannelLRN()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = lrn(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, lrn(x.float()).to(torch.bfloat16))


def test_lrn_keeps_channels_last() -> None:
    x = torch.randn(2, 3, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = WithinChannelLRN()(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 2}, "size must be odd and >= 1, got 2"),
        ({"alpha": -1.0}, "alpha must be >= 0, got -1.0"),
        ({"beta": -1.0}, "beta must be >= 0, got -1.0"),
    ],
)
def test_lrn_refuses_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WithinChannelLRN(**arguments)


def test_initial_weights_are_caffes() -> None:
    torch.manual_seed(0)
    net = smith_cnn(3, 10, (32, 32))
    assert net.conv1.weight.std().item() == pytest.approx(1e-4, rel=0.1)
    for layer in (net.conv2, net.conv3, net.fc):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
    for layer in (net.conv1, net.conv2, net.conv3, net.fc):
        assert not layer.bias.any()


def test_input_scale_multiplies_the_input() -> None:
    torch.manual_seed(0)
    scaled, plain = smith_cnn(1, 10, (8, 8), input_scale=64.0), smith_cnn(1, 10, (8, 8))
    plain.load_state_dict(scaled.state_dict())
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(scaled(images), plain(64.0 * images))


def test_too_small_an_image_names_the_bound() -> None:
    with pytest.raises(ValueError, match=r"image_size must be \(height, width\), each >= 8, got \(32, 7\)"):
        smith_cnn(3, 10, (32, 7))
