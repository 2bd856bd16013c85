"""Causal language models: loading, adapters, encoding, scoring, generation, hidden states.

Names are imported on first use, so that `import equipoise.language` loads no torch. A function with the name of its
module is imported from there: `from equipoise.language.encode import encode`, likewise `generate` and `tiny`.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.language.adapters import attach as attach
    from equipoise.language.adapters import detach as detach
    from equipoise.language.adapters import export as export
    from equipoise.language.adapters import merge as merge
    from equipoise.language.encode import IGNORE as IGNORE
    from equipoise.language.encode import Example as Example
    from equipoise.language.encode import collate as collate
    from equipoise.language.encode import notes as notes
    from equipoise.language.model import LanguageModel as LanguageModel
    from equipoise.language.model import load as load
    from equipoise.language.model import wrap as wrap
    from equipoise.language.rehearsal import rehearse as rehearse
    from equipoise.language.score import Choices as Choices
    from equipoise.language.score import log_likelihoods as log_likelihoods
    from equipoise.language.score import multiple_choice as multiple_choice
    from equipoise.language.score import perplexity as perplexity
    from equipoise.language.score import text_loss as text_loss
    from equipoise.language.score import token_log_likelihoods as token_log_likelihoods
    from equipoise.language.states import editing as editing
    from equipoise.language.states import places as places
    from equipoise.language.states import recording as recording
    from equipoise.language.tiny import teach as teach
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
