"""Ways to encode texts for several epochs, while the encoder is frozen.

Each is called with the numbers of a batch of texts, all of one length. `exact` says whether it runs
the encoder in chunks of 32, as the reference does: its vectors are then bitwise the reference's.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples" / "demo"))

import datasets
import joblib
import numpy as np
import torch
from corpus import sample
from encoder import CANONICAL_LENGTHS, CHUNK, WIDTH, Texts, in_chunks, load_encoder
from torch import Tensor, nn

from tensorkey.torch import CachedLayer

datasets.disable_progress_bars()


class Job:
    """Texts as padded tensors, one table for each length, and the encoder."""

    def __init__(self, rows: int) -> None:
        corpus = sample(rows)
        texts = Texts(corpus.texts)
        self.rows, self.classes = len(texts), corpus.classes
        self.labels = torch.tensor(corpus.labels)
        self.encoder = load_encoder()
        self.members: dict[int, Tensor] = {}
        self.tables: dict[int, tuple[Tensor, Tensor]] = {}
        self.place = torch.empty(self.rows, dtype=torch.int64)
        for length in CANONICAL_LENGTHS:
            numbers = [i for i in range(self.rows) if texts.length(i) == length]
            if numbers:
                self.members[length] = torch.tensor(numbers)
                self.tables[length] = texts.batch(numbers, length)
                self.place[numbers] = torch.arange(len(numbers))

    def batch(self, numbers: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Ids and mask of these texts."""
        ids, mask = self.tables[length]
        place = self.place[numbers]
        return ids[place], mask[place]

    def all_vectors(self) -> Tensor:
        """Vectors of all texts, in chunks of one length."""
        vectors = torch.empty(self.rows, WIDTH)
        for length, (ids, mask) in self.tables.items():
            vectors[self.members[length]] = in_chunks(self.encoder, ids, mask)
        return vectors


class Way:
    """A way to encode: made before the time is measured, made ready within it."""

    name = ""
    exact = True

    def __init__(self, job: Job) -> None:
        self.job = job

    def prepare(self, folder: Path) -> None:
        """Make ready; the folder is empty."""

    def __call__(self, numbers: Tensor, length: int) -> Tensor:
        """Return the vectors of these texts."""
        raise NotImplementedError

    def note(self) -> str:
        """What to say beside the figures."""
        return ""


class Ideal(Way):
    """Everything is encoded once, then indexed: for those who know everything beforehand."""

    name = "encode once, index a tensor"

    def prepare(self, folder: Path) -> None:
        """Encode."""
        self.vectors = self.job.all_vectors()

    def __call__(self, numbers: Tensor, length: int) -> Tensor:
        """Look up."""
        return self.vectors[numbers]


class Cached(Way):
    """The layer wrapped, nothing else changed."""

    name = "CachedLayer"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.layer = CachedLayer(job.encoder)

    def __call__(self, numbers: Tensor, length: int) -> Tensor:
        """Ask."""
        return self.layer(*self.job.batch(numbers, length))

    def note(self) -> str:
        """Count."""
        stats = self.layer.stats
        spent = f"{stats.seconds_spent:.2f} s in the layer, {stats.seconds_cache:.2f} s beside it"
        aside = "".join(f"; {count} x {why}" for why, count in stats.bypasses.items())
        return f"{stats.misses} rows run, {stats.probe_runs} chunks probed; {spent}{aside}"


class Probed(Cached):
    """The same, after it met other rows of each length: what the probe costs is known already."""

    name = "CachedLayer, probed before"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        for length in job.tables:
            ids = torch.randint(1000, 30000, (CHUNK, length))
            self.ask(list(range(-CHUNK, 0)), ids, torch.ones_like(ids))
        self.layer.reset_stats()

    def ask(self, numbers: list[int], ids: Tensor, mask: Tensor) -> Tensor:
        """Ask as later on."""
        return self.layer(ids, mask)


class Keyed(Probed):
    """By the numbers of the texts, of which only those that are missing are read."""

    name = "with_keys, probed before"

    def ask(self, numbers: list[int], ids: Tensor, mask: Tensor) -> Tensor:
        """Ask as later on."""
        return self.layer.with_keys(numbers)(lambda missing: (ids[missing], mask[missing]))

    def __call__(self, numbers: Tensor, length: int) -> Tensor:
        """Ask."""
        return self.layer.with_keys(numbers)(
            lambda missing: self.job.batch(numbers[missing], length)
        )


class Loop(Way):
    """A dict by the number of the text, as one writes it by hand."""

    name = "a dict by number"

    def prepare(self, folder: Path) -> None:
        """Nothing is known."""
        self.known: dict[int, Tensor] = {}

    def __call__(self, numbers: Tensor, length: int) -> Tensor:
        """Encode what is missing, and collect."""
        asked = numbers.tolist()
        missing = [number for number in asked if number not in self.known]
        if missing:
            batch = self.job.batch(torch.tensor(missing), length)
            vectors = in_chunks(self.job.encoder, *batch)
            self.known.update(zip(missing, vectors, strict=True))
        return torch.stack([self.known[number] for number in asked])


def encode_arrays(ids: np.ndarray, mask: np.ndarray, encoder: nn.Module) -> np.ndarray:
    """What joblib remembers: it takes no torch tensors, and is told to forget the encoder."""
    return encoder(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()


class JoblibRows(Way):
    """A file for each row, which is encoded alone: other batches find it again."""

    name = "joblib.Memory, row by row"
    exact = False

    def prepare(self, folder: Path) -> None:
        """Open the directory."""
        self.encode = joblib.Memory(folder, verbose=0).cache(encode_arrays, ignore=["encoder"])

    def __call__(self, numbers: Tensor, length: int) -> Tensor:
        """Ask for one row after the other."""
        ids, mask = (tensor.numpy() for tensor in self.job.batch(numbers, length))
        rows = [
            self.encode(ids[i : i + 1], mask[i : i + 1], self.job.encoder) for i in range(len(ids))
        ]
        return torch.from_numpy(np.concatenate(rows))


class JoblibBatches(JoblibRows):
    """A file for each batch: none comes twice when rows are shuffled."""

    name = "joblib.Memory, by batch"

    def __call__(self, numbers: Tensor, length: int) -> Tensor:
        """Ask for the batch."""
        ids, mask = (tensor.numpy() for tensor in self.job.batch(numbers, length))
        return torch.from_numpy(self.encode(ids, mask, self.job.encoder))


def map_chunk(rows: dict[str, list], encoder: nn.Module) -> dict[str, np.ndarray]:
    """What datasets maps over."""
    with torch.no_grad():
        vectors = in_chunks(encoder, torch.tensor(rows["ids"]), torch.tensor(rows["mask"]))
    return {"vector": vectors.numpy()}


class Mapped(Way):
    """Everything is mapped once, into a file named by a fingerprint of data, function and layer."""

    name = "datasets.map"

    def prepare(self, folder: Path) -> None:
        """Map; and once more, which finds the files."""
        for length, (ids, mask) in self.job.tables.items():
            rows = {"ids": ids.tolist(), "mask": mask.tolist()}
            datasets.Dataset.from_dict(rows).save_to_disk(folder / str(length))
        self.folder = folder
        self.datasets = self._map()

    def _map(self) -> dict[int, datasets.Dataset]:
        options = {"batched": True, "batch_size": CHUNK, "remove_columns": ["ids", "mask"]}
        return {
            length: datasets.load_from_disk(self.folder / str(length))
            .map(map_chunk, fn_kwargs={"encoder": self.job.encoder}, **options)
            .with_format("torch")
            for length in self.job.tables
        }

    def __call__(self, numbers: Tensor, length: int) -> Tensor:
        """Read the file."""
        return self.datasets[length][self.job.place[numbers].tolist()]["vector"]

    def note(self) -> str:
        """Map once more, as a second run of the program would."""
        start = time.perf_counter()
        again = self._map()
        seconds = time.perf_counter() - start
        found = all(again[n].cache_files == self.datasets[n].cache_files for n in again)
        return f"{seconds:.2f} s to {'find its files' if found else 'map it all'} once more"


class Bare(Way):
    """No cache."""

    name = "no cache"
    exact = False

    def __call__(self, numbers: Tensor, length: int) -> Tensor:
        """Encode."""
        return self.job.encoder(*self.job.batch(numbers, length))
