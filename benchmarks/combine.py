"""Time of the gradient rules on the parameter shapes of SmolLM2-135M, against `torch.add` and against TorchJD.

    python benchmarks/combine.py                      # 135 M parameters, about 4 GB of memory
    python benchmarks/combine.py --parameters 1e6     # the same shapes, narrower

One process, all candidates in turn, the minimum of the repeats: `torch.add(f, r, out=g)` reads and writes every coordinate
once, so its time is the floor. TorchJD wants the gradients as one matrix; both with and without making it are shown. Peak
memory is what a call holds at most beyond its two inputs, in copies of a gradient.
"""

import argparse
import math
import os
import time
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own starts and stops otherwise

import torch
from torch import Tensor

from equipoise.unlearning import blur, gradient_sum, pcgrad, sago


def shapes(parameters: float) -> list[tuple[int, ...]]:
    """The 272 tensors of SmolLM2-135M (tied embedding), every width scaled so that about `parameters` remain."""
    scale = math.sqrt(min(parameters / 134_515_008, 1.0))

    def width(size: int) -> int:
        return max(int(size * scale), 1)

    hidden, intermediate, keys = width(576), width(1536), width(192)
    attention = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden)]
    feed_forward = [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
    block = [*attention, *feed_forward, (hidden,), (hidden,)]
    return [(width(49152), hidden), *(block * 30), (hidden,)]


def peak_bytes(call: Callable[[], object]) -> int:
    """Largest number of bytes that the call held at once, from the allocator's events."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=134_515_008, help="about how many (default: 135 M)")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--layout",
        choices=["buffer", "tensors"],
        default="buffer",
        help="gradients as views of one buffer, as sharded and distributed training keeps them, or one by one",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)

    sizes = [math.prod(shape) for shape in shapes(arguments.parameters)]

    def draw() -> list[Tensor]:
        if arguments.layout == "tensors":
            return [torch.randn(shape, generator=generator) for shape in shapes(arguments.parameters)]
        parts = torch.randn(sum(sizes), generator=generator).split(sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes(arguments.parameters), strict=True)]

    forget, retain, out = draw(), draw(), draw()
    copy = sum(f.numel() * f.element_size() for f in forget)

    def floor() -> None:
        if arguments.layout == "buffer":
            torch.add(whole(forget), whole(retain), out=whole(out))
            return
        for f, r, g in zip(forget, retain, out, strict=True):
            torch.add(f, r, out=g)

    def whole(parts: list[Tensor]) -> Tensor:
        return parts[0].as_strided((sum(sizes),), (1,))

    # "in place" writes over the forget gradient, as training does; it is tried on a copy, so that the others see the same.
    own = draw()
    candidates: dict[str, Callable[[], object]] = {
        "torch.add(f, r, out=g)": floor,
        "sum": lambda: gradient_sum.combine(forget, retain, out=out),
        "SAGO": lambda: sago.combine(forget, retain, out=out),
        "SAGO in place": lambda: sago.combine(own, retain, out=own),
        "SAGO compiled": lambda: sago.combine(forget, retain, out=out, compiled=True),
        "SAGO compiled, in place": lambda: sago.combine(own, retain, out=own, compiled=True),
        "SAGO prefer retain": lambda: sago.combine_prefer_retain(forget, retain, out=out),
        "SAGO, weights 1 and 0.1": lambda: sago.combine(forget, retain, out=out, retain_weight=0.1),
        "PCGrad per tensor": lambda: pcgrad.combine(forget, retain, out=out),
        "PCGrad global": lambda: pcgrad.combine_global(forget, retain, out=out),
        "BLUR": lambda: blur.combine(forget, retain, out=out),
    }
    try:
        from torchjd.aggregation import PCGrad
    except ImportError:
        print("torchjd is not installed: no peer to compare with")
    else:

        def matrix() -> Tensor:
            return torch.stack([torch.cat([t.reshape(-1) for t in side]) for side in (forget, retain)])

        ready = matrix()
        candidates |= {
            "TorchJD PCGrad": lambda: PCGrad()(matrix()),
            "TorchJD PCGrad, matrix at hand": lambda: PCGrad()(ready),
        }
    peaks = {name: peak_bytes(call) / copy for name, call in candidates.items()}  # also the warm-up and the compilation
    best = dict.fromkeys(candidates, math.inf)
    for _ in range(arguments.repeats):
        for name, call in candidates.items():
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
    numbers = sum(f.numel() for f in forget)
    print(
        f"{numbers / 1e6:.1f} M parameters in {len(forget)} tensors ({arguments.layout}), {arguments.threads} threads, "
        f"torch {torch.__version__}"
    )
    print(f"{'':32}{'ms':>9}{'x floor':>9}{'peak, gradient copies':>23}")
    floor_time = next(iter(best.values()))
    for name, seconds in best.items():
        print(f"{name:32}{seconds * 1e3:9.1f}{seconds / floor_time:9.2f}{peaks[name]:23.2f}")


if __name__ == "__main__":
    main()
