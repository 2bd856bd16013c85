"""What methods are compared on: small networks trained on the spot, with and without a Lipschitz penalty, or released ones.

The pictures are smooth random prototypes, one a class, each with its own contrast and noise. The penalty pulls the largest
singular value of every layer down to 1; without it the product of the norms is far above what the network really does.
"""

import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.verification.from_torch import from_module
from equipoise.verification.network import Network, write_network
from equipoise.verification.read import read_network

SIDE, CLASSES, WIDTH = 8, 10, 50
KINDS = ("penalised", "plain")
SHARPNESS = 10.0  # of the softmax of a network whose logits cannot grow
PENALTY = 10.0


@dataclass(frozen=True, eq=False)
class VerificationSetting:
    """networks by what they are; inputs [B, ...] that at least one of them may get wrong, labels [B]."""

    networks: dict[str, Network]
    x: Tensor
    labels: Tensor


def prepare(seed: int, folder: Path) -> int:
    """Train both small networks of a seed into `folder`; returns the optimizer steps."""
    rng = torch.Generator().manual_seed(1000 + seed)
    prototypes = _smooth(CLASSES, rng)
    steps = 0
    for kind in KINDS:
        rng = torch.Generator().manual_seed(2000 + seed)
        steps += 400
        module = _train(prototypes, rng, penalised=kind == "penalised", steps=400)
        write_network(from_module(module, (SIDE * SIDE,), name=kind), folder / f"{kind}.safetensors")
    x, labels = _pictures(prototypes, 400, torch.Generator().manual_seed(3000 + seed))
    np.savez(folder / "pictures.npz", X=x.numpy(), y=labels.numpy())
    return steps


def open_setting(name: str, images: int, prepared: Path | None) -> VerificationSetting:
    """The small networks that were prepared, or a released one with its test images from EQUIPOISE_DATA.

    Raises BadInput when the data is not there.
    """
    if prepared is not None:
        networks = {kind: read_network(prepared / f"{kind}.safetensors") for kind in KINDS}
        with np.load(prepared / "pictures.npz") as stored:
            x, labels = torch.from_numpy(stored["X"]), torch.from_numpy(stored["y"])
        return VerificationSetting(networks, x[:images].double(), labels[:images])
    data = Path(os.environ.get("EQUIPOISE_DATA", "")) / "sdp-crown"
    file = data / f"{name}.safetensors"
    if "EQUIPOISE_DATA" not in os.environ or not file.is_file():
        raise BadInput(
            f"{name} needs the set sdp-crown: let EQUIPOISE_DATA name the folder that holds sdp-crown/{name}.safetensors."
        )
    with np.load(data / f"{name.split('_')[0].removesuffix('10')}-200.npz") as stored:
        x, labels = torch.from_numpy(stored["X"]).permute(0, 3, 1, 2), torch.from_numpy(stored["y"])
    return VerificationSetting(
        {"released": read_network(file, architecture=name)}, x[:images].double(), labels[:images]
    )


def _smooth(count: int, rng: torch.Generator) -> Tensor:
    """Random pictures of low frequencies in [0, 1]: [count, SIDE, SIDE]."""
    at = (torch.arange(SIDE) + 0.5) * math.pi / SIDE
    waves = torch.stack([torch.cos(k * at) for k in range(4)])
    pictures = torch.einsum("nij,iy,jx->nyx", torch.randn(count, 4, 4, generator=rng), waves, waves)
    low, high = pictures.amin((1, 2), keepdim=True), pictures.amax((1, 2), keepdim=True)
    return (pictures - low) / (high - low)


def _pictures(prototypes: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.randint(len(prototypes), (count,), generator=rng)
    contrast = 0.4 + 0.6 * torch.rand(count, 1, 1, generator=rng)
    noise = 0.25 * torch.randn(count, SIDE, SIDE, generator=rng)
    pictures = 0.5 + contrast * (prototypes[labels] - 0.5) + noise
    return pictures.clamp(0, 1).reshape(count, -1), labels


def _train(prototypes: Tensor, rng: torch.Generator, *, penalised: bool, steps: int) -> nn.Module:
    sizes = (SIDE * SIDE, WIDTH, WIDTH, CLASSES)
    layers = [nn.Linear(n, m) for n, m in itertools.pairwise(sizes)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=rng) / layer.in_features**0.5)
            layer.bias.zero_()
    module = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    adam = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(steps):
        x, labels = _pictures(prototypes, 128, rng)
        logits = module(x)
        loss = F.cross_entropy(logits * (SHARPNESS if penalised else 1.0), labels)
        if penalised:
            norms = torch.stack([torch.linalg.matrix_norm(layer.weight, 2) for layer in layers])
            loss = loss + PENALTY * (norms - 1).clamp(min=0).square().sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return module.eval()
