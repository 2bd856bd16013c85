"""Time per specification of alpha-CROWN and SDP-CROWN on a 784-100-100-10 network, against auto_LiRPA's alpha-CROWN.

    pip install --target peer --no-deps auto_LiRPA onnx appdirs packaging pyyaml sortedcontainers ml_dtypes protobuf
    PYTHONPATH=peer python benchmarks/certify.py            # 20 inputs, 9 specifications each, 50 iterations

One process, all candidates in turn, the minimum of the repeats. Same network, inputs, l2 radius, iterations, rate and decay;
no early stop on either side, intermediate bounds fixed from one CROWN pass on both. With EQUIPOISE_DATA the network is the
paper's mnist_mlp and its images, else one with orthogonal layers and random inputs. auto_LiRPA 0.3, the newest on PyPI,
was written for older torch and numpy; `peer` puts back the three names that it imports from them.
"""

import argparse
import importlib.util
import math
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.verification.bounds import Search, geometry
from equipoise.verification.certificate import certified_margins, specifications
from equipoise.verification.from_torch import from_module


def problem(count: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A torch module, inputs [count, 784] and the classes it gives them."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, 100), nn.Linear(100, 100), nn.Linear(100, 10)]
    x = torch.rand(count, 784)
    data = Path(os.environ.get("EQUIPOISE_DATA", "nowhere")) / "sdp-crown"
    if data.is_dir():
        from safetensors.torch import load_file

        stored = load_file(data / "mnist_mlp.safetensors")
        for layer, name in zip(layers, ("1", "3", "5"), strict=True):
            layer.load_state_dict({key: stored[f"{name}.{key}"] for key in ("weight", "bias")})
        with np.load(data / "mnist-200.npz") as images:
            x = torch.from_numpy(images["X"]).flatten(1)[:count]
    else:
        for layer in layers:
            nn.init.orthogonal_(layer.weight)
    module = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()
    return module, x, module(x).argmax(1)


def peer(module: nn.Module, x: Tensor, labels: Tensor, radius: float, iterations: int) -> Callable[[], Tensor]:
    """auto_LiRPA's alpha-CROWN bounds [B, 9], without the time that it takes to read the module."""
    import torch.onnx.symbolic_helper as symbolic_helper

    shim: Any = types.ModuleType("numpy.lib.arraysetops")
    shim.isin = np.isin
    sys.modules.setdefault("numpy.lib.arraysetops", shim)
    vars(symbolic_helper).setdefault("_set_opset_version", lambda version: None)
    node: Any = torch._C.Node
    node.__getitem__ = lambda self, key: getattr(self, self.kindOf(key))(key)

    from auto_LiRPA import BoundedModule, BoundedTensor  # pyright: ignore[reportMissingImports]
    from auto_LiRPA.perturbations import PerturbationLpNorm  # pyright: ignore[reportMissingImports]

    options = {
        "sparse_features_alpha": False,  # its sparse slopes fail on batches
        "sparse_spec_alpha": False,
        "optimize_bound_args": {
            "iteration": iterations,
            "lr_alpha": 0.5,
            "lr_decay": 0.98,
            "fix_intermediate_layer_bounds": True,
            "early_stop_patience": 10**6,
        },
    }
    bounded = BoundedModule(module, x[:1], bound_opts=options, verbose=False)
    ball = BoundedTensor(x, PerturbationLpNorm(norm=2, eps=radius))
    rows = specifications(labels, 10).float()

    def bounds() -> Tensor:
        lower, _ = bounded.compute_bounds(x=(ball,), C=rows, method="CROWN-Optimized", bound_upper=False)
        return lower.detach()

    return bounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20)
    parser.add_argument("--radius", type=float, default=0.5)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    module, x, labels = problem(arguments.inputs)
    network = from_module(module, (784,), name="mlp")
    shape, radii = geometry(network), torch.full((len(x),), arguments.radius, dtype=torch.float64)
    search = Search(iterations=arguments.iterations, patience=10**6)

    def ours(**words: Any) -> Tensor:
        found = certified_margins(network, x, radii, labels, shape=shape, search=search, **words)
        return torch.cat([each.margins for each in found])

    candidates: dict[str, Any] = {
        "alpha-CROWN": lambda: ours(method="alpha-crown", slopes="crown"),
        "SDP-CROWN, as published": lambda: ours(slopes="crown", offset="theorem"),
        "SDP-CROWN, free slopes": ours,
    }
    if importlib.util.find_spec("auto_LiRPA") is None:
        print("auto_LiRPA is not installed: no peer to compare with")
    else:
        candidates["auto_LiRPA alpha-CROWN"] = peer(module, x, labels, arguments.radius, arguments.iterations)
    best, bounds = dict.fromkeys(candidates, math.inf), {}
    for _ in range(arguments.repeats):
        for name, call in candidates.items():
            began = time.perf_counter()
            bounds[name] = call()
            best[name] = min(best[name], time.perf_counter() - began)
    specs, reference = 9 * len(x), best.get("auto_LiRPA alpha-CROWN", math.nan)
    print(
        f"{specs} specifications, {arguments.iterations} iterations, radius {arguments.radius}, torch {torch.__version__}"
    )
    print(f"{'':28}{'ms a specification':>20}{'times faster':>14}{'mean bound':>12}")
    for name, seconds in best.items():
        print(f"{name:28}{seconds / specs * 1e3:20.3f}{reference / seconds:14.2f}{bounds[name].mean().item():12.5f}")


if __name__ == "__main__":
    main()
