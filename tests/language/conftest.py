import pytest

from chat_models import untaught


@pytest.fixture(scope="session")
def small():
    """Shared by all tests, which must leave it as it is."""
    return untaught(3)


@pytest.fixture
def fresh():
    """The same kind of model, to be changed by a test."""
    return untaught(4)
