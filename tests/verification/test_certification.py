"""What a result and a plan of a certification say of themselves, whole: sentences, tables, defaults."""

import math

import pytest

from equipoise.core.errors import BadInput
from equipoise.core.serialize import deserialize, serialize
from equipoise.verification.result import Certification, CertificationPlan, CertifiedRow, Faithfulness

ROWS = (
    CertifiedRow(0, 1, 1, "certified", 0.5, (0.25, 0.125), (0.5, 0.375)),
    CertifiedRow(1, 2, 2, "certified", 0.5, (0.125, 0.25), (0.5, 0.5)),
    CertifiedRow(2, 0, 0, "refuted", 0.12345, (-0.5, -1.0), (-0.25, 0.0)),
    CertifiedRow(3, 0, 2, "wrong", 0.5),
)


def certification(**others):
    words = {"rows": ROWS, "network": "small <net>", "shape": (1, 4, 4), "labels": "given", "seconds": 1.5}
    return Certification(**(words | others))


def test_counts_headline_and_summary():
    done = certification(radius=0.5)
    assert [done.count(name) for name in ("certified", "refuted", "undecided", "wrong")] == [2, 1, 0, 1]
    said = "2 of 4 inputs keep their class for every point within 0.5 (l2); labels: given."
    assert done.headline() == said
    assert tuple(done.summary()) == ("2 certified, 1 refuted, 0 undecided, 1 wrong of 4 inputs", said)
    with pytest.raises(BadInput, match=r"verdict is 'certifed'\. Did you mean 'certified'"):
        done.count("certifed")


@pytest.mark.parametrize(
    ("words", "within"),
    [
        ({"radius": 0.123456789}, "within 0.123457 (l2)"),
        ({}, "within its own radius"),
        ({"largest": True}, "up to the largest radius certified"),
        ({"largest": True, "radius": 0.5}, "up to the largest radius certified"),
    ],
)
def test_within_what(words, within):
    assert certification(**words).headline() == (
        f"2 of 4 inputs keep their class for every point {within}; labels: given."
    )


def test_the_table_of_a_notebook():
    rows = (
        "<tr><td>0</td><td>1</td><td>certified</td><td>0.5</td><td>0.125</td></tr>"
        "<tr><td>1</td><td>2</td><td>certified</td><td>0.5</td><td>0.125</td></tr>"
        "<tr><td>2</td><td>0</td><td>refuted</td><td>0.1235</td><td>-1</td></tr>"
        "<tr><td>3</td><td>0</td><td>wrong</td><td>0.5</td><td>nan</td></tr>"
    )
    assert certification()._repr_html_() == (
        "<p>small &lt;net&gt;</p><table><thead><tr><th>input</th><th>label</th><th>verdict</th><th>radius</th>"
        f"<th>smallest margin</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def test_what_is_not_given_and_what_comes_back_from_json():
    plain = certification()
    assert (plain.radius, plain.largest, plain.accepted, plain.faithful, plain.notes, plain.folder) == (
        *(None, False, 0, None, ()),
        None,
    )
    assert ROWS[3].margins == ROWS[3].attacked == () and math.isnan(ROWS[3].margin) and ROWS[0].margin == 0.125
    full = certification(radius=0.5, accepted=3, notes=("a",), faithful=Faithfulness("torch", "2", "float64", 5, 0.0))
    assert deserialize(Certification, serialize(full)) == full
    with pytest.raises(BadInput, match="verdict is 'refused'"):
        CertifiedRow(0, 1, 1, "refused", 0.5)


def test_how_the_network_was_compared():
    none = Faithfulness(None)
    assert none == Faithfulness(None, None, None, 0, None, None, None)
    assert str(none) == "The network was given as it is: there is no original to compare it with."
    assert str(Faithfulness("torch", "2.9", "float32", 15, 1.25e-7, 3.5e-8, 0.5)) == (
        "The network gives what torch 2.9 gives for the original in float32 at 15 points: largest difference 1.2e-07, "
        "3.5e-08 of the outputs."
    )


def test_the_plan_in_lines():
    assert tuple(CertificationPlan("net", (1, 4, 4), 6, 5, "given", 8).summary()) == (
        "net: 6 inputs of shape (1, 4, 4); labels: given",
        "5 have their label and would be bounded, 8 at a time; the others count as wrong",
    )
