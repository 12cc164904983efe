"""Write the encoder that the server serves: token ids (n, 32) to 384 floats, as TorchScript.

python examples/server/make_encoder.py encoder.pt
"""

import sys

import torch
from torch import nn


class Encoder(nn.Module):
    """Embeds tokens, mixes them twice, and takes the mean of those that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4096, 384, padding_idx=0)
        layer = nn.TransformerEncoderLayer(384, 6, 768, dropout=0.0, batch_first=True)
        self.mix = nn.ModuleList(
            [layer, nn.TransformerEncoderLayer(384, 6, 768, 0.0, batch_first=True)]
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Encode a batch."""
        x = self.embed(ids)
        for layer in self.mix:
            x = layer(x)
        present = (ids != 0).to(x.dtype).unsqueeze(-1)
        return (x * present).sum(1) / present.sum(1).clamp(min=1.0)


if __name__ == "__main__":
    torch.manual_seed(0)
    encoder = Encoder().eval().requires_grad_(False)
    torch.jit.script(encoder).save(sys.argv[1])
