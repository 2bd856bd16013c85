"""Streams of random numbers follow from their words, and each word counts."""

import numpy as np
import torch

from equipoise.core.streams import torch_seed, torch_stream


def test_a_seed_is_the_upper_63_bits_of_the_words_first_number():
    for words in ((0,), (1, 2), (2, 1), (7, 3, 5), (2**40, 0)):
        (drawn,) = np.random.SeedSequence(words).generate_state(1, np.uint64).tolist()
        assert torch_seed(*words) == drawn // 2 < 2**63
        stream = torch_stream(*words)
        assert (stream.initial_seed(), stream.device) == (drawn // 2, torch.device("cpu"))
    assert len({torch_seed(*words) for words in ((0,), (1,), (0, 1), (1, 2), (2, 1))}) == 5
