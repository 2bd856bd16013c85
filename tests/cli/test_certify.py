"""`equipoise certify`: run and check on files, and what they say of a wrong request."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from equipoise.cli import main
from equipoise.verification.check_files import Refused

SHORT = ["certify", "run", "--inputs", "x.npy", "--iterations", "3", "--attack-steps", "3", "--out", "out", "--quiet"]
RUN = [*SHORT, "--radius", "0.01"]
WORDS = ["--network", "net.safetensors", "--architecture", "linear a, relu, linear b", "--input-shape", "4"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = torch.Generator().manual_seed(0)
    save_file(
        {"a.weight": torch.randn(5, 4, generator=rng), "b.weight": torch.randn(3, 5, generator=rng)}, "net.safetensors"
    )
    np.save("x.npy", torch.rand(2, 4, generator=rng).numpy())
    return tmp_path


def test_run_and_check(here, capsys):
    assert main([*RUN, *WORDS, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["verdict"] for row in rows] == ["certified", "certified"] and rows[0]["radius"] == 0.01
    written = ["--network", "out/network.safetensors"]
    assert main(["certify", "check", "out/certificates", *written, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["margins"] for each in found.values()] == [row["margins"] for row in rows]
    assert main(["certify", "check", "out/certificates/00001.npz", *WORDS]) == 0  # the file it was made from
    assert "accepted, smallest margin" in capsys.readouterr().out
    (here / "net.bin").write_bytes((here / "net.safetensors").read_bytes())  # named otherwise, the same file
    assert main(["certify", "check", "out/certificates/00001.npz", "--network", "net.bin", *WORDS[2:]]) == 0
    capsys.readouterr()
    with np.load("out/certificates/00001.npz") as stored:
        np.savez("out/certificates/00001.npz", **{**stored, "radius": np.array(0.5)})
    assert main(["certify", "check", "out/certificates", *written]) == 1
    said = capsys.readouterr()
    assert "00001.npz: refused: " in said.out and "1 of 2 accepted" in said.err


def test_a_search_for_the_largest_radius_needs_none(here, capsys):
    assert main([*SHORT, *WORDS, "--largest-radius", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all(row["verdict"] == "certified" and row["radius"] > 0 for row in rows)
    assert json.loads((here / "out" / "run.json").read_text())["radius"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*RUN, "--network", "net.safetensors"], "does not say how its parameters are used"),
        ([*RUN, "--network", "nte.safetensors"], "Did you mean 'net.safetensors'"),
        ([*RUN, *WORDS, "--box", "0"], "expected 2 values"),
        ([*SHORT, *WORDS], "give --radius"),
        ([*SHORT, *WORDS, "--radius", "-1"], "above 0"),
        (["certify", "check", "none.npz", *WORDS], "No certificate at none.npz"),
        (["certify", "check", "x.npy", "--network", "none"], "No network at none"),
    ],
)
def test_wrong_requests(here, capsys, arguments, message):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (here / "out").exists() and not (here / "out.partial").exists()


def checked(*words):
    return main(["certify", "check", "out/certificates", *words])


def test_what_check_says_and_of_what(here, capsys):
    assert main([*RUN, *WORDS]) == 0
    capsys.readouterr()
    net = ["--network", "out/network.safetensors"]
    assert checked(*net) == checked("-n", *net[1:], "--inputs", "x.npy", "--input-shape", "4") == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert said.err == "2 of 2 accepted\n" * 2 and lines[:2] == lines[2:]
    names = [f"out/certificates/0000{number}.npz" for number in (0, 1)]
    assert [line.partition(":")[0] for line in lines[:2]] == names
    assert checked(*WORDS, "--json") == 0
    said = capsys.readouterr()
    assert said.err == "The network is as the reader of `certify run` understands it.\n2 of 2 accepted\n"
    found = json.loads(said.out)
    assert list(found) == names and all(each["accepted"] for each in found.values())
    for name, line in zip(found, lines, strict=False):
        assert line == f"{name}: accepted, smallest margin {min(found[name]['margins']):.6g}"
    np.save("y.npy", np.load("x.npy")[::-1])
    assert checked(*net, "--inputs", "y.npy") == 1
    assert capsys.readouterr().err == "0 of 2 accepted\n"
    (here / "out" / "certificates" / "\x1b[2J.npz").write_bytes(b"x")
    assert checked(*net) == 1
    said = capsys.readouterr()
    assert "'out/certificates/\\x1b[2J.npz': refused: " in said.out and "\x1b" not in said.out
    assert said.err == "2 of 3 accepted\n"


def test_what_is_no_network_to_check_with(here, monkeypatch, capsys):
    assert main([*RUN, *WORDS]) == 0
    (here / "net.ONNX").write_bytes(b"x")
    net = "out/network.safetensors"
    requests = {
        ("gone",): "No network at gone: expected the file that `certify run` wrote or read.",
        (".",): "No network at .: expected the file that `certify run` wrote or read.",
        ("net.ONNX", "--architecture", "linear a"):
            "net.ONNX says itself how its parameters are used: leave --architecture out.",
        (net, "--input-shape", "4,x"): "--input-shape is '4,x', expected whole numbers between commas.",
        (net, "--input-shape", "2,2"): f"--input-shape is 2,2, and an input of {net} has the shape (4,).",
    }  # fmt: skip
    for words, said in requests.items():
        capsys.readouterr()
        assert checked("--network", *words) == 2
        assert capsys.readouterr().err == f"equipoise: {said}\n"

    def refused(path):
        raise Refused("it is odd")

    monkeypatch.setattr("equipoise.verification.check_files.read_net", refused)
    assert checked("--network", net) == 2
    assert capsys.readouterr().err == f"equipoise: The network {net} is refused: it is odd.\n"
