"""The job: for every input of a file, the margins that hold within a radius, a counter-example, or the largest radius."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.verification.result import Certification

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor, nn

    from equipoise.verification.network import Network

    NetworkLike = str | Path | nn.Module | Network
    Inputs = str | Path | np.ndarray | Tensor
    Labels = str | Path | Sequence[int] | np.ndarray | Tensor
    Radius = float | Sequence[float] | np.ndarray | Tensor
else:  # what a command line can give
    NetworkLike = Inputs = Labels = Path
    Radius = float


@job("certify run", Certification)
def certify(
    network: Annotated[NetworkLike, Setting(alias=("-n",), objects=True)],
    inputs: Annotated[Inputs, Setting(objects=True)],
    radius: Annotated[Radius | None, Setting(objects=True)] = None,
    *,
    labels: Annotated[Labels | None, Setting(objects=True)] = None,
    norm: Literal[2] = 2,
    largest_radius: bool = False,
    box: tuple[float, float] | None = None,
    slopes: Literal["free", "crown"] = "free",
    offset: Literal["ball-box", "theorem"] = "ball-box",
    iterations: Annotated[int, Field(ge=1)] = 300,
    attack_steps: Annotated[int, Field(ge=0)] = 100,
    refine: bool = False,
    architecture: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    limit: Annotated[int, Field(ge=1)] | None = None,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Request:
    """Certified margins of every input within a radius; writes a certificate each and a report.

    Example: `equipoise certify run --network net.safetensors --architecture "flatten, linear 1, relu, linear 3"
    --input-shape 1,28,28 --inputs images.npz --radius 0.5`

    Parameters
    ----------
    network
        A safetensors file with parameters, one that this command wrote, or .onnx; in Python also a torch module.
    inputs
        .npy, or .npz with arrays X and y; raw inputs, channel first or last; in Python also an array [B, ...].
    radius
        Of the l2 ball around each input, in the units of the raw input; needed unless --largest-radius searches for it. In
        Python also one an input.
    labels
        .npy with one class an input; else y of the inputs, else what the network says.
    norm
        2.
    largest_radius
        Search for the largest certified radius of each input instead; --radius is not used then.
    box
        Limits of every number of an input, such as 0,1: the claim is then about ball and box.
    slopes
        free, or crown: the paper's choice.
    offset
        ball-box, or theorem: the paper's constant.
    iterations
        Steps of the search for slopes.
    attack_steps
        Steps of the search for a counter-example.
    refine
        Try a semidefinite relaxation on the inputs that are neither certified nor attacked: seconds each on a small network,
        nothing on a wide one. It takes no part in the search for the largest radius.
    architecture
        How the parameters are used, in words ("flatten, linear 1, relu, linear 3"), or mnist_mlp, mnist_convsmall,
        cifar10_cnn_a, cifar10_cnn_c, cifar10_convsmall, cifar10_convdeep.
    input_shape
        Of one input, such as 1,28,28; not needed where the network's file has it.
    limit
        Only the first so many inputs.
    seed
        Of the attack's starts.
    """
    from equipoise.verification.certifying import Certifying

    return Certifying.read(
        network,
        inputs,
        radius,
        labels=labels,
        largest=largest_radius,
        box=box,
        slopes=slopes,
        offset=offset,
        iterations=iterations,
        attack_steps=attack_steps,
        refine=refine,
        architecture=architecture,
        shape=input_shape,
        limit=limit,
        seed=seed,
    )
