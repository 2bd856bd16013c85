"""Equipoise: change a model after pre-training, and weigh what the change cost.

Methods live in their domains (`equipoise.unlearning`), the scales in `equipoise.study`, the declared comparisons in
`equipoise.studies`. Importing this package loads nothing; its packages are imported on first use.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise import chat as chat
    from equipoise import data as data
    from equipoise import judging as judging
    from equipoise import language as language
    from equipoise import studies as studies
    from equipoise import study as study
    from equipoise import tasks as tasks
    from equipoise import training as training
    from equipoise import unlearning as unlearning
    from equipoise import verification as verification
    from equipoise.core.version import __version__ as __version__
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
