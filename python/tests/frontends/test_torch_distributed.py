"""Two ranks of DistributedDataParallel over one directory: a head on a frozen, cached encoder."""

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this PyTorch has no gloo",
)

PROGRAM = """
import json, sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tensorkey.torch import CachedLayer

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
)

def model(cached):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32)).requires_grad_(False).eval()
    if cached:
        encoder = CachedLayer(encoder, disk=f"{folder}/activations", chunk=1, bypass="never")
    head = nn.Linear(32, 4)
    return encoder, DistributedDataParallel(nn.Sequential(encoder, head))

x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
y = torch.randint(0, 4, (64,), generator=torch.Generator().manual_seed(2))

def train(cached):
    encoder, network = model(cached)
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.5)
    gradients, hits = [], []
    for epoch in range(3):
        shard = slice((rank + epoch) % 2, None, 2)  # each rank gets what the other had
        for rows, labels in zip(x[shard].split(16), y[shard].split(16)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(rows), labels).backward()
            optimizer.step()
            gradients.append([p.grad.clone() for p in network.parameters() if p.requires_grad])
        if cached:
            hits.append(encoder.stats.hits)
            assert encoder.cache.flush()
        distributed.barrier()
    names = list(network.state_dict())
    return gradients, hits, names, encoder.stats.bypasses if cached else None

plain, cached = train(False), train(True)
apart = max(
    float((one - other).abs().max())
    for ones, others in zip(plain[0], cached[0], strict=True)
    for one, other in zip(ones, others, strict=True)
)
print(json.dumps({"apart": apart, "hits": cached[1], "bypasses": cached[3],
                  "names": plain[2] == cached[2]}))
distributed.destroy_process_group()
"""


def test_ranks_share_what_they_compute_and_gradients_are_the_same(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, messages) in zip(ranks, ends, strict=True):
        assert rank.returncode == 0, messages
    for answer in (json.loads(output.splitlines()[-1]) for output, _ in ends):
        assert answer["apart"] < 1e-6
        assert answer["names"]
        assert answer["bypasses"] == {}
        assert answer["hits"] == [0, 32, 64]  # what the other wrote, then its own
