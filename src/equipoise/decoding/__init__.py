"""What steers a model while it writes.

Names are imported on first use, so that the command line stays light.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.decoding.alphaone import AlphaOne as AlphaOne
    from equipoise.decoding.alphaone import schedule as schedule
    from equipoise.decoding.answer_grammar import AnswerGrammar as AnswerGrammar
    from equipoise.decoding.job import think as think
    from equipoise.decoding.result import ThinkRun as ThinkRun
    from equipoise.decoding.thinking import Tags as Tags
    from equipoise.decoding.thinking import ThinkingControl as ThinkingControl
    from equipoise.decoding.thinking import write_thoughts as write_thoughts
    from equipoise.decoding.thinking_rivals import BudgetForcing as BudgetForcing
    from equipoise.decoding.thinking_rivals import HardCap as HardCap
    from equipoise.decoding.thinking_rivals import Plain as Plain
    from equipoise.decoding.thinking_rivals import RandomWaits as RandomWaits
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
