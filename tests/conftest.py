"""Shared by all tests."""

import gc
import signal

import pytest
from hypothesis import settings

# What thousands of tests import stays: a collector that looks through it again and again takes a quarter of collecting.
gc.disable()

# A machine with other work takes longer than Hypothesis allows one example; and every run draws others.
settings.register_profile("house", deadline=None, max_examples=40)
settings.load_profile("house")


def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def as_in_a_terminal():
    """SIGINT interrupts, here and in what is started from here: in a shell's background job it would be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
