"""Implements mcn_jax/models/wide_resnet.py, and one of its layers, in PyTorch, for comparison."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Block(nn.Module):
    """A residual block: twice batch norm, ReLU and a 3x3 convolution.

    The input is pooled, its channels are padded with zeros, and it is added to the result.
    """

    def __init__(self, channels: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.appended = stride, outputs - channels
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(outputs)
        self.conv_1 = nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, C, Y, X] to [N, outputs, Y / stride, X / stride]."""
        y = self.conv_1(F.relu(self.norm_1(x)))
        y = self.conv_2(F.relu(self.norm_2(y)))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        return y + F.pad(x, (0, 0, 0, 0, 0, self.appended))


class WideResNet(nn.Sequential):
    """The whole network: stem, three stages, and head.

    The head is batch norm, ReLU, mean over pixels, dense 512, ReLU, dropout and dense.
    """

    def __init__(self, channels: tuple[int, ...], blocks: int, classes: int):
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, padding=1, bias=False)]
        before = channels[0]
        for stage, width in enumerate(channels[1:]):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(Block(before, width, stride))
                before = width
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 512), nn.ReLU()]
        last = [nn.Dropout(0.5), nn.Linear(512, classes)]
        super().__init__(*layers, nn.BatchNorm2d(before), nn.ReLU(), *head, *last)


class TrainingStep:
    """Training steps on one batch of random images, `steps` of them per call.

    A step is a forward pass, a backward pass and an update by SGD with Nesterov momentum.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        blocks: int,
        batch_size: int,
        dtype: str,
        steps: int = 1,
        classes: int = 10,
    ):
        self.steps = steps
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, dtype)
        layout = {"device": self.device, "memory_format": torch.channels_last}
        self.model = WideResNet(channels, blocks, classes).to(**layout)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        generator = np.random.default_rng(0)
        images = generator.normal(size=(batch_size, 3, 32, 32)).astype(np.float32)
        self.images = torch.from_numpy(images).to(**layout)
        self.labels = torch.from_numpy(generator.integers(0, classes, batch_size)).to(self.device)

    def __call__(self) -> None:
        """Runs the steps and waits for the device."""
        for _ in range(self.steps):
            self.optimizer.zero_grad(set_to_none=True)
            half = self.dtype != torch.float32
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=half):
                loss = F.cross_entropy(self.model(self.images), self.labels)
            loss.backward()
            self.optimizer.step()
        loss.item()  # waits for the device


class Convolution:
    """A 3x3 convolution of random features in float32, with or without gradients.

    The cotangent is random; the gradients are those of features and filters.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        size: int,
        stride: int,
        batch_size: int,
        gradients: bool,
    ):
        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape).contiguous(memory_format=torch.channels_last)

        torch.manual_seed(0)
        out_size = -(-size // stride)
        self.stride = stride
        self.features = random(batch_size, channels, size, size).requires_grad_(gradients)
        self.filters = random(outputs, channels, 3, 3).requires_grad_(gradients)
        self.cotangent = random(batch_size, outputs, out_size, out_size)

    def __call__(self) -> None:
        """Computes the output, and the gradients if they were asked for."""
        self.features.grad = self.filters.grad = None
        output = F.conv2d(self.features, self.filters, stride=self.stride, padding=1)
        if output.requires_grad:
            output.backward(self.cotangent)
