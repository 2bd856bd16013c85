"""A small model with an adapter whose B is not 0, and questions of three classes that it can learn."""

import numpy as np
import torch

from equipoise.language import adapters
from equipoise.language.tiny import tiny
from equipoise.uncertainty.class_logits import read_prompts

CLASSES = (" one", " two", " three")
WORDS = ("Paris", "Norway", "Oslo", "yes", "no", "maybe", "river", "bends")


def prompts(n=24, seed=0):
    """Texts of two to four words, and the class of each: whether its first word is of the first, second or last third."""
    generator = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(n):
        said = generator.choice(WORDS, int(generator.integers(2, 5)))
        texts.append(" ".join(said))
        labels.append(WORDS.index(said[0]) * 3 // len(WORDS))
    return texts, labels


def bare(seed=0):
    """Two layers, with matrices so large that each token before the last changes what comes next."""
    torch.set_num_threads(1)
    texts = [" ".join((*WORDS, *CLASSES))] * 4
    language_model = tiny(texts, seed=seed, width=32, layers=2, heads=2, vocabulary=400)
    language_model.chat_template = "none"
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in language_model.model.named_parameters():
            if parameter.dim() == 2:
                scale = 0.1 if "embed" in name else 0.4
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return language_model


def adapted(seed=0, targets=("q_proj", "v_proj"), scale=0.3, rank=4):
    """The bare model with an adapter of rank 4 whose B is drawn."""
    language_model = adapters.attach(bare(seed), rank, 2.0 * rank, list(targets), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for own in adapters.adapted_maps(language_model).values():
            _, b = adapters.factors(own)
            b.copy_(scale * torch.randn(b.shape, generator=generator))
    return language_model


def read(language_model, n=24, seed=0):
    texts, labels = prompts(n, seed)
    return read_prompts(language_model, texts, CLASSES), labels


def clone(value):
    """A training state as it is at this moment."""
    if isinstance(value, dict):
        return {name: clone(each) for name, each in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value
