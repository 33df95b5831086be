"""Every model: sizes it takes, parameters it has, gradients that flow, memory formats it is equal in."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lr_lightning.training import models
from lr_lightning.training.models import BasicBlock

BUILDERS = [getattr(models, name) for name in models.__all__]
SIZES = [(1, (8, 8)), (1, (28, 28)), (3, (32, 32)), (3, (64, 64)), (3, (17, 24))]

all_models = pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
Build = Callable[..., nn.Module]


def count(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


@all_models
@pytest.mark.parametrize(("channels", "size"), SIZES)
def test_takes_every_image_size(build: Build, channels: int, size: tuple[int, int]) -> None:
    net = build(channels, 7, size)
    assert net(torch.randn(2, channels, *size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (models.small_cnn, 57_130),
        (models.smith_cnn, 89_578),
        (models.resnet9, 6_573_120),
        (models.resnet20, 269_722),
        (models.resnet56, 853_018),
        (models.wrn16_4, 2_748_890),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_parameter_count(build: Build, parameters: int) -> None:
    net = build(3, 10, (32, 32))
    assert count(net) == parameters
    assert f"{parameters:,}" in (build.__doc__ or "") + (type(net).__doc__ or "")


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (models.resnet20, 20),
        (models.resnet56, 56),
        (models.resnet9, 9),
        (models.wrn16_4, 16 + 1),  # the paper counts the shortcuts' convolutions and leaves out the linear layer
        (models.smith_cnn, 4),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_depth_is_what_the_name_says(build: Build, layers: int) -> None:
    weighted = [m for m in build(3, 10, (32, 32)).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == layers


@all_models
def test_same_seed_gives_the_same_weights(build: Build) -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(build(1, 10, (8, 8)))
    for first, second in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(first, second)


@all_models
def test_overfits_one_batch(build: Build) -> None:
    torch.manual_seed(0)
    net = build(1, 3, (8, 8))
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(40):
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(param.grad is not None for param in net.parameters())
        optimizer.step()
        if loss.item() < 0.1:
            return
    pytest.fail(f"loss {loss.item():.3f} after 40 steps")


@all_models
def test_channels_last_computes_the_same(build: Build) -> None:
    torch.manual_seed(0)
    net = build(3, 10, (16, 16)).double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=memory_format)
        net.zero_grad()
        out = net(images.contiguous(memory_format=memory_format))
        out.square().sum().backward()
        results.append([out.detach(), *(param.grad.clone() for param in net.parameters())])
    for contiguous, channels_last in zip(*results, strict=True):
        torch.testing.assert_close(contiguous, channels_last, rtol=1e-9, atol=1e-12)


@all_models
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, (32, 32)), "in_channels must be a whole number >= 1, got 0"),
        ((3, 1, (32, 32)), "num_classes must be a whole number >= 2, got 1"),
        ((3, 10, (32, 0)), r"image_size must be \(height, width\), each >= \d+, got \(32, 0\)"),
    ],
)
def test_refuses_impossible_shapes(build: Build, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(*arguments)


@pytest.mark.parametrize(
    ("build", "option", "message"),
    [
        (models.small_cnn, {"width": 0}, "width must be a whole number >= 1, got 0"),
        (models.small_cnn, {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        (models.wrn16_4, {"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        (models.resnet9, {"head_scale": 0.0}, "head_scale must be > 0, got 0.0"),
        (models.smith_cnn, {"input_scale": -1.0}, "input_scale must be > 0, got -1.0"),
    ],
)
def test_refuses_options_out_of_range(build: Build, option: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(3, 10, (32, 32), **option)


@pytest.mark.parametrize("build", [models.small_cnn, models.wrn16_4], ids=lambda build: build.__name__)
def test_dropout_acts_in_training_only(build: Build) -> None:
    net = build(1, 10, (8, 8), dropout=0.5)
    images = torch.randn(4, 1, 8, 8)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


def test_small_cnn_width_sets_the_channels() -> None:
    convs = [m for m in models.small_cnn(1, 10, (8, 8), width=5).modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [5, 10, 10]


def test_resnet9_scales_its_logits() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 1, 8, 8)
    net = models.resnet9(1, 10, (8, 8)).eval()
    whole = models.resnet9(1, 10, (8, 8), head_scale=1.0).eval()
    whole.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(images), whole(images) / 8)


def test_basic_block_shortcut_takes_every_second_pixel_and_pads_with_zeros() -> None:
    block = BasicBlock(4, 8, stride=2)
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 4, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()
