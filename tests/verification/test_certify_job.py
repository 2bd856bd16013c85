"""The job end to end on a network made on the spot: rows, resuming, the largest radius, what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.progress import share
from equipoise.verification import Normalize, certify, certifying, check, from_module, write_network

WORDS = {"iterations": 6, "attack_steps": 12}


@pytest.fixture(scope="module")
def network():
    """Nearly 1-Lipschitz, on pictures of 4 x 4 with values in [0, 1]."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 3)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    module = nn.Sequential(Normalize([0.5], [0.5]), nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    return from_module(module.double(), (1, 4, 4), name="small")


@pytest.fixture
def files(tmp_path, network):
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = network(x).argmax(1)
    labels[2] = (labels[2] + 1) % 3
    np.savez(tmp_path / "x.npz", X=x.permute(0, 2, 3, 1).numpy(), y=labels.numpy())  # the channel last
    write_network(network, tmp_path / "net.safetensors")
    return tmp_path


def rows(done):
    return {row.index: (row.verdict, row.margins) for row in done.rows}


def test_the_job(files, network):
    done = certify(files / "net.safetensors", files / "x.npz", 0.05, out=files / "out", **WORDS)
    assert done.count("wrong") == 1 and done.rows[2].verdict == "wrong" and math.isnan(done.rows[2].margin)
    assert done.count("certified") >= 1
    net = check.read_net(files / "out" / "network.safetensors")
    stored = sorted((files / "out" / "certificates").iterdir())
    assert [int(file.stem) for file in stored] == [0, 1, 3, 4, 5]
    for file in stored:
        row = done.rows[int(file.stem)]
        assert tuple(check.check(file, net)) == row.margins
        assert all(low <= high for low, high in zip(row.margins, row.attacked, strict=True))
    page = (files / "out" / "report.html").read_text(encoding="utf-8")
    assert "5 of 5" in page and "equipoise certify run" in page
    again = certify(files / "net.safetensors", files / "x.npz", 0.05, out=files / "out", **WORDS)
    assert again.rows == done.rows  # found done
    assert rows(
        certify(network, np.load(files / "x.npz")["X"], 0.05, labels=np.load(files / "x.npz")["y"], **WORDS)
    ) == rows(done)


def test_a_folder_holds_the_inputs_and_labels_that_it_was_begun_with(files, network):
    x, labels = (np.load(files / "x.npz")[name] for name in "Xy")
    given = {"out": files / "out", "limit": 2, **WORDS}
    done = certify(network, x, 0.05, labels=labels, **given)
    assert rows(certify(network, x.copy(), 0.05, labels=labels.copy(), **given)) == rows(done)
    for others, named in (((x + 0.01, labels), "inputs"), ((x, labels[::-1].copy()), "labels")):
        with pytest.raises(BadInput, match=f"begun with another content of {named}"):
            certify(network, others[0], 0.05, labels=others[1], **given)
    (files / "out").rename(files / "out.partial")  # as after a kill
    (files / "out.partial" / "manifest.json").unlink()
    with pytest.raises(BadInput, match="begun with another content of inputs"):
        certify(network, torch.from_numpy(x) + 0.01, 0.05, labels=labels, **given)


def test_a_large_radius_is_refuted_with_a_point_that_shows_it(files, network):
    done = certify(files / "net.safetensors", files / "x.npz", 2.0, out=files / "out", box=(0.0, 1.0), **WORDS)
    assert done.count("certified") == 0 and done.count("refuted") >= 3
    for file in (files / "out" / "counterexamples").iterdir():
        with np.load(file) as found:
            point, start, other = torch.from_numpy(found["point"]), found["input"], int(found["class"])
        label = done.rows[int(file.stem)].label
        outputs = network(point[None])[0]
        assert outputs[other] > outputs[label] and other != label
        assert np.linalg.norm(point.numpy() - start) <= 2.0 and point.min() >= 0 and point.max() <= 1


def test_the_largest_radius_is_certified_and_more_is_not(files):
    words = {"iterations": 30, "attack_steps": 0, "limit": 4}
    one = certify(files / "net.safetensors", files / "x.npz", largest_radius=True, out=files / "out", **words)
    found = [row for row in one.rows if row.verdict != "wrong"]
    assert {row.verdict for row in found} == {"certified"} and all(row.radius > 0 for row in found)
    radii = [max(row.radius, 1e-3) for row in one.rows]
    within = certify(files / "net.safetensors", files / "x.npz", radii, **words)
    assert all(row.verdict in ("certified", "wrong") for row in within.rows)
    beyond = certify(files / "net.safetensors", files / "x.npz", [1.15 * radius for radius in radii], **words)
    assert beyond.count("certified") == 0


def test_a_job_killed_within_a_block_gives_the_same_bytes(files, monkeypatch):
    monkeypatch.setattr(certifying, "batch_size", lambda network: 4)
    monkeypatch.setattr("equipoise.verification.certificate.batch_size", lambda network: 4)
    whole = certify(files / "net.safetensors", files / "x.npz", 0.05, out=files / "whole", **WORDS)
    calls, real = [], certifying.Rows.add

    def dies(rows, row):
        calls.append(row["index"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(rows, row)

    with monkeypatch.context() as patched:
        patched.setattr(certifying.Rows, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            certify(files / "net.safetensors", files / "x.npz", 0.05, out=files / "out", **WORDS)
    stored = files / "out.partial" / "rows.jsonl"
    assert [json.loads(line)["index"] for line in stored.read_text().splitlines()] == [2, 0]
    with stored.open("a") as file:
        file.write('{"index": 3, "lab')  # cut short by a power failure
    done = certify(files / "net.safetensors", files / "x.npz", 0.05, out=files / "out", **WORDS)
    assert done.rows == whole.rows
    for name in sorted(path.name for path in (files / "whole" / "certificates").iterdir()):
        certificate = files / "out" / "certificates" / name
        assert certificate.read_bytes() == (files / "whole" / "certificates" / name).read_bytes()


def test_the_bar_counts_rows_and_goes_on_from_those_that_are_stored(files, monkeypatch):
    shares, real = [], certifying.Rows.add
    monkeypatch.setattr(certifying.Rows, "add", lambda rows, row: (shares.append(share()), real(rows, row)))
    rows = certify(files / "net.safetensors", files / "x.npz", 0.05, out=files / "out", **WORDS).rows
    assert shares == [pytest.approx(number / len(rows)) for number in range(len(rows))]
    shares.clear()
    (files / "out" / "certificates" / "00003.npz").write_bytes(b"")
    certify(files / "net.safetensors", files / "x.npz", 0.05, out=files / "out", **WORDS)
    assert shares == [pytest.approx(1 - 1 / len(rows))]


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_row_does_not_depend_on_its_company(network, kind):
    if kind == "convolution":
        torch.manual_seed(1)
        layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten()]
        network = from_module(nn.Sequential(*layers, nn.Linear(4, 3)).double(), (1, 4, 4), name="conv")
    x = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    words = {"iterations": 40, "attack_steps": 6, "radius": 0.3}
    together = certify(network, x, **words).rows
    backwards = certify(network, x.flip(0), **words).rows
    assert certify(network, x, limit=3, **words).rows == together[:3]
    for row in together[::4]:  # the first, one in the middle of a block, and one that is filled up
        alone = certify(network, x[row.index : row.index + 1], **words).rows[0]
        reversed_ = backwards[len(x) - 1 - row.index]
        assert row.margins == alone.margins == reversed_.margins
        # The attack's start is drawn by seed and place, so only the first input has the same one alone.
        assert row.index or row.attacked == alone.attacked


def test_damage_is_named_and_only_the_damaged_rows_are_made_again(files, monkeypatch):
    first = certify(files / "net.safetensors", files / "x.npz", 0.05, out=files / "out", **WORDS)
    victim = files / "out" / "certificates" / "00003.npz"
    good = victim.read_bytes()
    victim.write_bytes(b"")
    lines = (files / "out" / "rows.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"radius": 0.05', b'"radius": 0.06')
    (files / "out" / "rows.jsonl").write_bytes(b"".join(lines))
    added, real = [], certifying.Rows.add
    monkeypatch.setattr(certifying.Rows, "add", lambda rows, row: (added.append(row["index"]), real(rows, row)))
    again = certify(files / "net.safetensors", files / "x.npz", 0.05, out=files / "out", **WORDS)
    assert again.rows == first.rows and victim.read_bytes() == good
    assert sorted(added) == sorted({3, json.loads(lines[1])["index"]})
    assert "certificates/00003.npz" in again.notes[-1] and "rows.jsonl" in again.notes[-1]
    assert (files / "out" / "damaged" / "1" / "certificates" / "00003.npz").read_bytes() == b""
    assert (files / "out" / "rows.jsonl.damaged-1").read_bytes() == b"".join(lines)


def test_what_the_checker_refuses_gets_no_name(files, monkeypatch):
    real = certifying.contents

    def optimistic(*arguments):
        for content in real(*arguments):
            yield content | {"margins": content["margins"] + 1e-3}

    monkeypatch.setattr(certifying, "contents", optimistic)
    with pytest.raises(WorkFailed, match="checker refuses"):
        certify(files / "net.safetensors", files / "x.npz", 0.05, out=files / "out", **WORDS)
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"radius": 0.0}, "above 0"),
        ({"radius": None}, "give --radius"),
        ({"radius": [0.1, 0.2]}, "2 radii for 6 inputs"),
        ({"labels": [0, 1, 2, 3, 0, 0]}, "one from 0 an input"),
        ({"labels": [0, 1, 2], "limit": 3}, "3 labels for 6 inputs"),
        ({"labels": [0, 1, 2] * 6, "limit": 3}, "18 labels for 6 inputs"),
        ({"labels": np.eye(3, dtype=int)[[0, 1, 2, 0, 1, 2]], "limit": 3}, r"shape \(6, 3\).*argmax"),
        ({"labels": np.eye(6, dtype=int)}, r"shape \(6, 6\)"),
        ({"inputs": "nothing.npz"}, "cannot be read"),
        ({"inputs": np.zeros((2, 5))}, "takes"),
        ({"inputs": np.full((2, 16), np.nan)}, "finite"),
        ({"box": (0.4, 0.6)}, "outside the box"),
    ],
)
def test_wrong_requests(files, words, message):
    asked = {"inputs": files / "x.npz", "radius": 0.1, **WORDS, **words}
    with pytest.raises(BadInput, match=message):
        certify(files / "net.safetensors", asked.pop("inputs"), asked.pop("radius"), out=files / "out", **asked)
    assert not (files / "out.partial").exists()
