import pytest
import torch

from equipoise.language.tiny import tiny

TEXTS = [
    "The capital of France is Paris.",
    "What is the capital of Norway? Oslo",
    "Where was Mulum Kunwick born? In the town of Veskole, where the river bends twice.",
    "yes no maybe one two three four five six seven",
]


def untaught(seed: int):
    """Two layers, with matrices so large that each token before the last changes what comes next."""
    torch.set_num_threads(1)
    language_model = tiny(TEXTS, seed=seed, width=32, layers=2, heads=2, vocabulary=300)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in language_model.model.named_parameters():
            if parameter.dim() == 2:
                scale = 0.1 if "embed" in name else 0.4
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return language_model


@pytest.fixture(scope="session")
def small():
    """Shared by all tests, which must leave it as it is."""
    return untaught(3)


@pytest.fixture
def fresh():
    """The same kind of model, to be changed by a test."""
    return untaught(4)
