"""Rows that a model was asked for, which are no answers of another model that has come under its name since."""

from typing import TYPE_CHECKING

from equipoise.core.errors import BadInput
from equipoise.core.rows import Rows
from equipoise.language.features import weights_digest

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

_ALL = "all "


def keep_to(rows: Rows, language_model: "LanguageModel") -> None:
    """Notes the model's weights in a row of their own, {"weights": digest of all}, before the first of what it says.

    Raises BadInput where they are noted already and are others, or were noted in part, as earlier versions did.
    """
    noted = next((row["weights"] for row in rows if "weights" in row), None)
    if noted is not None and not noted.startswith(_ALL):
        raise BadInput(
            "This work was begun by an earlier version, which noted a part of the model's weights: begin anew with --fresh."
        )
    digest = _ALL + weights_digest(language_model.model, numbers=None, rounded=True)
    if noted is None:
        rows.add({"weights": digest})
    elif noted != digest:
        raise BadInput(
            f"{language_model.name} is not the model that this work was begun with: its weights are others now. Give the "
            "same model, or begin anew with --fresh."
        )
