"""A cache by structure, in a PyTorch module: the usual code, why it fails, where it is right.

A key made of shape and dtype says nothing of the values: around sin it is wrong for nearly every
input. Around something that depends on shape and dtype alone, such as a positional encoding, it is
just what one wants.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import tensorkey as tk


class SimpleCacheModule(nn.Module):
    """The usual code."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Sin of x, or of the first tensor that had its shape."""
        key = str(x.shape) + str(x.dtype)
        if key not in self.cache:
            self.cache[key] = torch.sin(x)
        return self.cache[key]


class PositionalEncoding(nn.Module):
    """The right place for it: the encoding depends on the structure of x and on nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.encodings = tk.TensorKeyDict(by="structure")
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        """Add the encoding of Vaswani et al. (2017), section 3.5, to x of (length, width)."""
        if x not in self.encodings:
            self.runs += 1
            self.encodings[x] = self.encoding(x)
        return x + self.encodings[x]

    @staticmethod
    def encoding(x: Tensor) -> Tensor:
        """Sines and cosines of growing wavelength, in the dtype of x and on its device."""
        length, width = x.shape
        position = torch.arange(length, device=x.device).unsqueeze(1)
        rate = 10000 ** (-torch.arange(0, width, 2, device=x.device) / width)
        return torch.cat([(position * rate).sin(), (position * rate).cos()], 1).to(x.dtype)


def main() -> None:
    """Count wrong answers of both."""
    torch.manual_seed(0)
    inputs = [torch.randn(8) for _ in range(1000)]
    usual = SimpleCacheModule()
    wrong = sum(not torch.equal(usual(x), torch.sin(x)) for x in inputs)
    print(f"usual: {wrong} of {len(inputs)} answers are wrong")
    assert wrong == 999

    right = PositionalEncoding()
    batches = [torch.randn(16, 32, dtype=dtype) for dtype in (torch.float32, torch.float64)] * 50
    batches.append(torch.randn(7, 32))
    for x in batches:
        assert torch.equal(right(x), x + PositionalEncoding.encoding(x))
    assert right.runs == 3
    print(f"right: {len(batches)} calls, {right.runs} encodings computed, no answer wrong")


if __name__ == "__main__":
    main()
