import pytest
import torch

from equipoise.language.tiny import tiny


@pytest.fixture(scope="session")
def tiny_model():
    """An untaught small model that knows the digits; shared, so a test must leave it as it is."""
    torch.set_num_threads(1)
    model = tiny(
        ["the red cat blue 1 2 answer question which is better ?"], seed=3, width=32, layers=2, heads=2, context=1024
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model
