"""`equipoise certify`: certified margins of a network within an l2 ball, and the checker of certificates."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from equipoise.core.errors import BadInput

if TYPE_CHECKING:
    from equipoise.verification.job import Certification

app = App(name="certify", help="Prove what a network does within a radius, and check such proofs.")


@app.command
def run(
    *,
    network: Annotated[Path, Parameter(alias="-n")],
    inputs: Path,
    radius: float | None = None,
    norm: Literal[2] = 2,
    labels: Path | None = None,
    largest_radius: Annotated[bool, Parameter(negative=())] = False,
    box: str | None = None,
    slopes: Literal["free", "crown"] = "free",
    offset: Literal["ball-box", "theorem"] = "ball-box",
    iterations: int = 300,
    attack_steps: int = 100,
    refine: Annotated[bool, Parameter(negative=())] = False,
    architecture: str | None = None,
    input_shape: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    out: Annotated[Path, Parameter(alias=["--output", "-o"])] = Path("equipoise-out/certify"),
    fresh: Annotated[bool, Parameter(negative=())] = False,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
    quiet: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Certified margins of every input within a radius; writes a certificate each and a report.

    Example: `equipoise certify run --network net.safetensors --architecture "flatten, linear 1, relu, linear 3"
    --input-shape 1,28,28 --inputs images.npz --radius 0.5`

    Parameters
    ----------
    network
        A safetensors file with parameters, one that this command wrote, or .onnx.
    inputs
        .npy, or .npz with arrays X and y; raw inputs, channel first or last.
    radius
        Of the l2 ball around each input, in the units of the raw input; needed unless --largest-radius searches for it.
    norm
        2.
    labels
        .npy with one class an input; else y of the inputs, else what the network says.
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
        nothing on a wide one.
    architecture
        How the parameters are used, in words ("flatten, linear 1, relu, linear 3"), or mnist_mlp, mnist_convsmall,
        cifar10_cnn_a, cifar10_cnn_c, cifar10_convsmall, cifar10_convdeep.
    input_shape
        Of one input, such as 1,28,28; not needed where the network's file has it.
    limit
        Only the first so many inputs.
    seed
        Of the attack's starts.
    out
        The folder to write; the same settings resume it.
    fresh
        Set aside what is in the folder and start anew.
    json_output
        Print the rows as JSON.
    quiet
        No progress.
    """
    from equipoise.core.progress import quiet as silenced
    from equipoise.verification.job import certify

    with silenced(quiet):
        done = certify(
            network,
            inputs,
            radius,
            labels=labels,
            norm=norm,
            largest_radius=largest_radius,
            box=None if box is None else _numbers(box, "--box", 2),
            slopes=slopes,
            offset=offset,
            iterations=iterations,
            attack_steps=attack_steps,
            refine=refine,
            architecture=architecture,
            input_shape=None if input_shape is None else [int(each) for each in _numbers(input_shape, "--input-shape")],
            limit=limit,
            seed=seed,
            out=out,
            fresh=fresh,
        )
    _print(done, json_output)
    return 0


@app.command
def check(
    certificate: Path,
    *,
    network: Annotated[Path, Parameter(alias="-n")],
    inputs: Path | None = None,
    architecture: str | None = None,
    input_shape: str | None = None,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Prove certificates anew, with a checker that shares no code with what made them; 1 when one is refused.

    Example: `equipoise certify check certified --network certified/network.safetensors --inputs images.npz`

    Parameters
    ----------
    certificate
        A certificate, a folder of them, or the folder that `certify run` wrote; there they are compared with its rows.
    network
        The network that `certify run` wrote beside them, or the file it was made from.
    inputs
        The inputs of `certify run`: each certificate has to be about the one whose index is its name.
    architecture
        As for `certify run`. The network is then read as that does; without, the checker reads the file itself.
    input_shape
        As for `certify run`.
    json_output
        Print what was found as JSON.
    """
    from equipoise.verification.check_files import Refused
    from equipoise.verification.check_folder import check_folder, read_inputs

    net = _checkers_network(network, architecture, input_shape)
    try:
        found = check_folder(certificate, net, None if inputs is None else read_inputs(inputs, net))
    except Refused as error:
        raise BadInput(str(error)) from error
    if json_output:
        print(json.dumps({name: each.plain() for name, each in found.items()}, indent=2))
    else:
        for name, each in found.items():
            print(f"{name if name.isprintable() else ascii(name)}: {each}")
    accepted = sum(each.accepted for each in found.values())
    print(f"{accepted} of {len(found)} accepted", file=sys.stderr)
    return 0 if accepted == len(found) else 1


def _checkers_network(network: Path, architecture: str | None, input_shape: str | None):
    """The network as the checker reads it; a file without description goes through the reader of `certify run` first."""
    import tempfile

    from equipoise.verification.check_files import Refused, Undescribed, read_net

    if not network.is_file():
        raise BadInput(f"No network at {network}: expected the file that `certify run` wrote or read.")
    if architecture is not None and network.suffix.lower() == ".onnx":
        raise BadInput(f"{network} says itself how its parameters are used: leave --architecture out.")
    try:
        shape = None if input_shape is None else tuple(int(each) for each in input_shape.split(","))
    except ValueError as error:
        raise BadInput(f"--input-shape is {input_shape!r}, expected whole numbers between commas.") from error
    try:
        try:
            if architecture is not None:
                raise Undescribed("its parameters are used as --architecture says")
            net = read_net(network)
        except Undescribed:
            from equipoise.verification.network import read_network, write_network

            with tempfile.TemporaryDirectory() as folder:
                written = Path(folder) / "network.safetensors"
                write_network(read_network(network, architecture=architecture, shape=shape), written)
                net = read_net(written)
            print("The network is as the reader of `certify run` understands it.", file=sys.stderr)
    except Refused as error:
        raise BadInput(f"The network {network} is refused: {error}.") from error
    if shape not in (None, net.shape):
        raise BadInput(f"--input-shape is {input_shape}, and an input of {network} has the shape {net.shape}.")
    return net


def _numbers(text: str, option: str, count: int | None = None) -> tuple:
    try:
        found = tuple(float(each) for each in text.split(","))
    except ValueError as error:
        raise BadInput(f"{option} is {text!r}, expected numbers between commas.") from error
    if count is not None and len(found) != count:
        raise BadInput(f"{option} is {text!r}, expected {count} numbers between commas.")
    return found


def _print(done: "Certification", as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        rows = [asdict(row) for row in done.rows]
        print(json.dumps({"network": done.network, "rows": rows, "seconds": done.seconds, "folder": str(done.folder)}))
        return
    counts = {name: done.count(name) for name in ("certified", "refuted", "undecided", "wrong")}
    print(", ".join(f"{n} {name}" for name, n in counts.items()), f"of {len(done.rows)} inputs", file=sys.stderr)
    print(f"Report: {done.folder}/report.html", file=sys.stderr)
    print(done.folder)
