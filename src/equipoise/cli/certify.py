"""`equipoise certify`: certified margins of a network within an l2 ball, and the checker of certificates."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from equipoise.cli.jobs import command
from equipoise.core.errors import BadInput
from equipoise.verification.job import certify

app = App(name="certify", help="Prove what a network does within a radius, and check such proofs.")


app.command(command(certify, "certify"), name="run")


@app.command
def check(
    certificate: Path,
    *,
    network: Annotated[Path, Parameter(alias="-n")],
    architecture: str | None = None,
    input_shape: str | None = None,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Prove certificates anew, with a checker that shares no code with what made them; 1 when one is refused.

    Example: `equipoise certify check equipoise-out/certify/certificates --network equipoise-out/certify/network.safetensors`

    Parameters
    ----------
    certificate
        A certificate, or a folder of them.
    network
        The network that `certify run` wrote beside them, or the file it was made from.
    architecture
        As for `certify run`, where the network's file does not have it.
    input_shape
        As for `certify run`.
    json_output
        Print what was found as JSON.
    """
    from equipoise.verification import check as checker

    files = sorted(certificate.glob("*.npz")) if certificate.is_dir() else [certificate]
    if not files or not files[0].is_file():
        raise BadInput(f"No certificate at {certificate}: expected an .npz file or a folder of them.")
    if not network.is_file():
        raise BadInput(f"No network at {network}: expected the file that `certify run` wrote or read.")
    net = _checkers_network(network, architecture, input_shape)
    found = {}
    for file in files:
        try:
            found[str(file)] = {"accepted": True, "margins": checker.check(file, net).tolist()}
        except checker.Refused as error:
            found[str(file)] = {"accepted": False, "reason": str(error)}
    if json_output:
        print(json.dumps(found, indent=2))
    else:
        for name, each in found.items():
            told = (
                f"accepted, smallest margin {min(each['margins']):.6g}"
                if each["accepted"]
                else f"refused: {each['reason']}"
            )
            print(f"{name}: {told}")
    refused = sum(not each["accepted"] for each in found.values())
    print(f"{len(found) - refused} of {len(found)} accepted", file=sys.stderr)
    return 1 if refused else 0


def _checkers_network(network: Path, architecture: str | None, input_shape: str | None):
    """The network as the checker reads it; a file without description goes through the reader of `certify run` first."""
    from equipoise.verification import check as checker

    try:
        return checker.read_net(network)
    except checker.Refused:
        import tempfile

        from equipoise.verification.network import read_network, write_network

        shape = None if input_shape is None else [int(each) for each in _numbers(input_shape, "--input-shape")]
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "network.safetensors"
            write_network(read_network(network, architecture=architecture, shape=shape), written)
            return checker.read_net(written)


def _numbers(text: str, option: str, count: int | None = None) -> tuple:
    try:
        found = tuple(float(each) for each in text.split(","))
    except ValueError as error:
        raise BadInput(f"{option} is {text!r}, expected numbers between commas.") from error
    if count is not None and len(found) != count:
        raise BadInput(f"{option} is {text!r}, expected {count} numbers between commas.")
    return found
