"""What verification methods are compared on, written out once more: pictures, training, files, released networks."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.verification import setting
from equipoise.verification.setting import open_setting, prepare


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_a_prototype_is_a_sum_of_four_waves_a_side_between_zero_and_one():
    found, drawn = setting._smooth(3, generator(5)), torch.randn(3, 4, 4, generator=generator(5))
    assert found.shape == (3, 8, 8)
    for picture, weights in zip(found, drawn, strict=True):
        raw = torch.tensor(
            [
                [
                    sum(
                        weights[i, j].item()
                        * math.cos(i * (y + 0.5) * math.pi / 8)
                        * math.cos(j * (x + 0.5) * math.pi / 8)
                        for i in range(4)
                        for j in range(4)
                    )
                    for x in range(8)
                ]
                for y in range(8)
            ]
        )
        assert_close(picture, (raw - raw.min()) / (raw.max() - raw.min()), atol=1e-5, rtol=0)
        assert picture.min() == 0 and picture.max() == 1


def test_a_picture_is_a_prototype_with_less_contrast_and_noise():
    prototypes, rng = torch.rand(4, 8, 8, generator=generator(1)), generator(2)
    x, labels = setting._pictures(prototypes, 50, generator(2))
    assert torch.equal(labels, torch.randint(4, (50,), generator=rng)) and x.shape == (50, 64)
    contrast = 0.4 + 0.6 * torch.rand(50, 1, 1, generator=rng)
    whole = 0.5 + contrast * (prototypes[labels] - 0.5) + 0.25 * torch.randn(50, 8, 8, generator=rng)
    assert torch.equal(x, whole.clamp(0, 1).flatten(1))
    assert x.min() == 0 and x.max() == 1 and labels.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("penalised", [False, True])
def test_a_step_of_training_goes_down_the_loss_that_is_stated(penalised):
    prototypes = setting._smooth(10, generator(0))
    rng = generator(3)
    start = setting._train(prototypes, rng, penalised=penalised, steps=0)
    sizes = [(50, 64), (50, 50), (10, 50)]
    linear = [layer for layer in start if hasattr(layer, "weight")]
    again = generator(3)
    for layer, (m, n) in zip(linear, sizes, strict=True):
        assert torch.equal(layer.weight, torch.randn(m, n, generator=again) / n**0.5) and not layer.bias.any()
    x, labels = setting._pictures(prototypes, 128, again)
    loss = torch.nn.functional.cross_entropy(start(x) * (10 if penalised else 1), labels)
    if penalised:
        for layer in linear:
            loss = loss + 10 * max(torch.linalg.svdvals(layer.weight)[0] - 1, 0) ** 2
    loss.backward()
    after = setting._train(prototypes, generator(3), penalised=penalised, steps=1)
    assert not after.training
    for before, its in zip(start.parameters(), after.parameters(), strict=True):
        moving = (
            before.grad.abs() > 1e-5
        )  # Adam's first step is of the learning rate's length wherever there is a slope
        assert moving.any()
        assert_close((its - before)[moving], -3e-3 * before.grad[moving].sign(), atol=1e-5, rtol=0)


def test_what_a_seed_prepares(monkeypatch, tmp_path):
    whole, seen = setting._train, []

    def train(prototypes, rng, *, penalised, steps):
        seen.append((prototypes, rng.initial_seed(), penalised, steps))
        return whole(prototypes, rng, penalised=penalised, steps=0)

    monkeypatch.setattr(setting, "_train", train)
    assert prepare(7, tmp_path) == 800
    prototypes = setting._smooth(10, generator(1007))
    assert [each[1:] for each in seen] == [(2007, True, 400), (2007, False, 400)]
    assert all(torch.equal(each[0], prototypes) for each in seen)
    names = ["penalised.safetensors", "pictures.npz", "plain.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    found = open_setting("small", 30, tmp_path)
    x, labels = setting._pictures(prototypes, 400, generator(3007))
    assert list(found.networks) == ["penalised", "plain"] and found.networks["plain"].shape == (64,)
    assert torch.equal(found.x, x[:30].double()) and torch.equal(found.labels, labels[:30])
    assert len(open_setting("small", 1000, tmp_path).x) == 400
    module = whole(prototypes, generator(2007), penalised=True, steps=0)
    assert_close(found.networks["plain"](found.x), module.double()(found.x))


@pytest.mark.parametrize(
    ("name", "file", "shape"),
    [("mnist_mlp", "mnist-200.npz", (28, 28, 1)), ("cifar10_convsmall", "cifar-200.npz", (32, 32, 3))],
)
def test_a_released_network_comes_with_its_pictures(monkeypatch, tmp_path, name, file, shape):
    folder = tmp_path / "sdp-crown"
    folder.mkdir()
    rng = generator(0)

    def weights(**sizes):
        its = {f"{key[1:]}.weight": torch.randn(*size, generator=rng) for key, size in sizes.items()}
        return its | {f"{key[1:]}.bias": torch.randn(size[0], generator=rng) for key, size in sizes.items()}

    if name == "mnist_mlp":
        tensors = weights(_1=(4, 784), _3=(4, 4), _5=(10, 4))
    else:
        tensors = weights(_0=(2, 3, 3, 3), _2=(2, 2, 3, 3), _5=(4, 98), _7=(10, 4))
    save_file(tensors, folder / f"{name}.safetensors")
    pictures, labels = np.random.default_rng(0).random((6, *shape), dtype=np.float32), np.arange(6)
    np.savez(folder / file, X=pictures, y=labels)
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    found = open_setting(name, 4, None)
    assert list(found.networks) == ["released"] and found.labels.tolist() == [0, 1, 2, 3]
    assert found.x.dtype == torch.float64 and found.networks["released"].outputs == 10
    assert torch.equal(found.x, torch.from_numpy(pictures[:4]).permute(0, 3, 1, 2).double())
    with pytest.raises(BadInput) as error:
        open_setting("mnist_convsmall", 4, None)
    assert str(error.value) == (
        "mnist_convsmall needs the set sdp-crown: let EQUIPOISE_DATA name the folder that holds "
        "sdp-crown/mnist_convsmall.safetensors."
    )
