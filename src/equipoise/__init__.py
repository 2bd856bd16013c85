"""Equipoise: change a model after pre-training, and weigh what the change cost.

Methods live in their domains (`equipoise.unlearning`), the scales in `equipoise.study`, the declared comparisons in
`equipoise.studies`. Importing this package loads nothing heavy.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("equipoise")
except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
    __version__ = "0.0.0+source"
