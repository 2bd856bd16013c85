"""`equipoise certify`: certified margins of a network within an l2 ball, and the checker of certificates."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.core.errors import BadInput
from equipoise.verification.job import certify

app = App(
    name="certify", help="Prove what a network does within a radius, and check such proofs.", help_format=HELP_FORMAT
)


app.command(command(certify, "certify"), name="run")


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

    Example: equipoise certify check certified --network certified/network.safetensors --inputs images.npz

    Parameters
    ----------
    certificate
        A certificate, a folder of them, or the folder that certify run wrote; there they are compared with its rows.
    network
        The network that certify run wrote beside them, or the file it was made from.
    inputs
        The inputs of certify run: each certificate has to be about the one whose index is its name.
    architecture
        As for certify run. The network is then read as that does; without, the checker reads the file itself.
    input_shape
        As for certify run.
    json_output
        Print what was found as JSON.
    """
    from equipoise.verification.check_files import Refused
    from equipoise.verification.check_folder import check_folder, read_inputs

    net = _checkers_network(network, architecture, input_shape)
    try:
        checks = check_folder(certificate, net, None if inputs is None else read_inputs(inputs, net))
    except Refused as error:
        raise BadInput(str(error)) from error
    if json_output:
        print(json.dumps({name: outcome.plain() for name, outcome in checks.items()}, indent=2))
    else:
        for name, outcome in checks.items():
            print(f"{name if name.isprintable() else ascii(name)}: {outcome}")
    accepted = sum(outcome.accepted for outcome in checks.values())
    print(f"{accepted} of {len(checks)} accepted", file=sys.stderr)
    return 0 if accepted == len(checks) else 1


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
            from equipoise.verification.network import write_network
            from equipoise.verification.read import read_network

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
