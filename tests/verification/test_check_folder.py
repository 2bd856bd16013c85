"""Certificates together: what is said of every file, with reading and proving replaced by what a test writes down."""

import json
from pathlib import Path

import numpy as np
import pytest

from equipoise.verification import check_folder as module
from equipoise.verification.check_files import Net, Refused, read_certificate
from equipoise.verification.check_folder import CheckedCertificate, check_folder, read_inputs

NET = Net((2,), [2], [], "")
ROW = {"label": 1, "radius": 0.5, "margins": [0.25, 0.5], "verdict": "certified"}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A folder as a job leaves it: three certificates and the row of a wrong input; and what is in the certificates."""
    contents = {
        name: {
            "label": np.array(1),
            "radius": np.array(0.5),
            "input": np.array([float(place), 1.0]),
            "proved": [0.25, 0.5],
        }
        for place, name in enumerate(("00000", "00001", "00003"))
    }
    folder = tmp_path / "job"
    (folder / "certificates").mkdir(parents=True)
    for name in contents:
        (folder / "certificates" / f"{name}.npz").touch()

    def read(file, net):
        assert net is NET
        if file.stem not in contents:
            raise Refused("it cannot be read")
        return contents[file.stem]

    def prove(content, net):
        assert net is NET
        return np.array(content["proved"])

    monkeypatch.setattr(module, "read_certificate", read)
    monkeypatch.setattr(module, "prove", prove)
    rows([{"index": n, **ROW, **({"verdict": "wrong", "margins": []} if n == 2 else {})} for n in range(4)], folder)
    return folder, contents


def rows(lines, folder):
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def line(index, **others):
    return {"index": index, **ROW, **others}


WRONG = line(2, verdict="wrong", margins=[])


def told(found):
    return {Path(path).name: each.reason for path, each in found.items()}


def test_what_was_found_of_one_in_words_and_as_json():
    good, bad = CheckedCertificate((0.5, 0.25, 1.0)), CheckedCertificate(reason="it is damaged")
    assert good.accepted and str(good) == "accepted, smallest margin 0.25"
    assert good.plain() == {"accepted": True, "margins": (0.5, 0.25, 1.0)}
    assert not bad.accepted and str(bad) == "refused: it is damaged"
    assert bad.plain() == {"accepted": False, "reason": "it is damaged"}
    assert CheckedCertificate() == CheckedCertificate((), None) and str(CheckedCertificate((1 / 3,))).endswith(
        "0.333333"
    )


def test_all_is_well_wherever_it_is_looked_at_from(job, tmp_path):
    folder, contents = job
    names = [f"{name}.npz" for name in contents]
    for where in (folder, str(folder), folder / "certificates"):
        found = check_folder(where, NET)
        assert told(found) == dict.fromkeys(names)
        assert all(each.margins == (0.25, 0.5) for each in found.values())
        assert list(found) == [str(folder / "certificates" / name) for name in names]
    one = check_folder(folder / "certificates" / names[2], NET)
    assert list(one) == [str(folder / "certificates" / names[2])]  # what else is missing is not its matter
    (folder / "certificates" / names[0]).unlink()
    assert told(check_folder(folder / "certificates" / names[2], NET)) == {names[2]: None}


def test_where_there_is_nothing_to_check(job, tmp_path):
    with pytest.raises(Refused) as error:
        check_folder(tmp_path / "nowhere", NET)
    assert str(error.value) == f"No certificate at {tmp_path / 'nowhere'}: expected an .npz file or a folder of them."
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused) as error:
        check_folder(tmp_path / "empty", NET)
    assert str(error.value) == f"No certificate in {tmp_path / 'empty'}: expected .npz files."
    folder, _ = job
    for file in (folder / "certificates").iterdir():
        file.unlink()
    missing = "it is missing, and its row says certified"
    assert told(check_folder(folder, NET)) == dict.fromkeys(("00000.npz", "00001.npz", "00003.npz"), missing)
    with pytest.raises(Refused, match=r"cannot be read: .*\.$"):
        check_folder("x" * 5000, NET)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": 0}, "its label 1 is not that of its row, 0"),
        ({"radius": 0.75}, "its radius 0.5 is not that of its row, 0.75"),
        ({"margins": [0.25, 0.75]}, "its margins [0.25, 0.5] is not that of its row, [0.25, 0.75]"),
        ({"verdict": "wrong"}, "its row says wrong, and its smallest margin is 0.25"),
        ({"verdict": "undecided"}, "its row says undecided, and its smallest margin is 0.25"),
        ({"verdict": "refuted"}, "its row says refuted, and its smallest margin is 0.25"),
    ],
)
def test_a_certificate_agrees_with_its_row(job, change, said):
    folder, _ = job
    rows([line(0), line(1, **change), WRONG, line(3)], folder)
    assert told(check_folder(folder, NET)) == {"00000.npz": None, "00001.npz": said, "00003.npz": None}


@pytest.mark.parametrize(("least", "verdict"), [(1e-9, "certified"), (0.0, "undecided"), (-0.5, "refuted")])
def test_a_margin_of_zero_certifies_nothing(job, least, verdict):
    folder, contents = job
    contents["00001"]["proved"] = [least, 0.5]
    for said in ("certified", "undecided", "refuted"):
        rows([line(0), line(1, margins=[least, 0.5], verdict=said), WRONG, line(3)], folder)
        right = (said == "certified") == (verdict == "certified")
        reason = None if right else f"its row says {said}, and its smallest margin is {least:.6g}"
        assert told(check_folder(folder, NET))["00001.npz"] == reason


def test_names_are_indices(job):
    folder, contents = job
    certificates = folder / "certificates"
    for number, name in enumerate(("1", "000001", "-0001", "0001x", "1234567890", "٠٠٠٠١", "99999")):
        contents[name] = contents["00001"] | {"input": np.array([9.0, number])}
        (certificates / f"{name}.npz").touch()
    no = "its name is not the index of an input, as 00003.npz is"
    found = told(check_folder(folder, NET))
    assert {name: found[f"{name}.npz"] for name in contents if name not in ("00000", "00001", "00003", "99999")} == {
        **dict.fromkeys(("1", "000001", "-0001", "0001x", "1234567890", "٠٠٠٠١"), no)
    }
    assert found["99999.npz"] == "no row of rows.jsonl is about input 99999"
    (folder / "rows.jsonl").unlink()
    assert set(told(check_folder(certificates, NET)).values()) == {None}  # nothing to be the index of
    assert told(check_folder(certificates, NET, np.zeros((4, 2))))["1.npz"] == no


def test_without_inputs_no_two_are_about_one(job):
    folder, contents = job
    contents["00001"]["input"], contents["00003"]["input"] = np.array([0.0, 1.0]), np.array([-0.0, 1.0])
    twice = "it is about the same input as 00000.npz; if that stands twice in the inputs, show them: --inputs"
    assert told(check_folder(folder, NET)) == {"00000.npz": None, "00001.npz": twice, "00003.npz": twice}


def test_with_inputs_each_is_about_its_own(job):
    folder, contents = job
    inputs = np.array([[0.0, 1.0], [1.0, 1.0], [7.0, 7.0], [2.0, 1.0]])
    assert set(told(check_folder(folder, NET, inputs)).values()) == {None}
    contents["00003"]["input"] = np.array([1.0, 1.0])
    assert told(check_folder(folder, NET, inputs))["00003.npz"] == "it is not about input 3, but about input 1"
    contents["00003"]["input"] = np.array([1.0, 5.0])
    assert told(check_folder(folder, NET, inputs))["00003.npz"] == "it is not about input 3, but about none of them"
    assert told(check_folder(folder, NET, inputs[:3]))["00003.npz"] == "there are 3 inputs, and none of index 3"
    contents["00000"]["input"] = contents["00001"]["input"]
    same = np.array([[1.0, 1.0]] * 4)
    assert told(check_folder(folder, NET, same)) == {
        "00000.npz": None,
        "00001.npz": None,
        "00003.npz": "it is not about input 3, but about none of them",
    }


ODD = "it has not index, label, verdict, radius and margins"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", ODD),
        ('"row"', ODD),
        *((json.dumps(line(1) | {name: value}), ODD) for name, value in (
            ("index", -1), ("index", 1.0), ("index", True), ("index", None), ("label", -1), ("label", "1"),
            ("verdict", "right"), ("verdict", None), ("margins", None), ("margins", {}), ("margins", [True]),
            ("margins", ["0.5"]), ("radius", None), ("radius", "0.5"), ("radius", True),
        )),
        *((json.dumps({key: its for key, its in line(1).items() if key != name}), ODD) for name in line(1)),
        (json.dumps({"row": [], **line(1)}), ODD),
        (json.dumps(line(0, radius=0.75)), "input 0 has another row before it"),
        ('{"index": 1, "index": 1}', "it is no JSON ('a name stands twice')"),
    ],
)  # fmt: skip
def test_rows_that_are_none(job, text, reason):
    folder, _ = job
    rows([line(0), line(1), WRONG, line(3)], folder)
    with (folder / "rows.jsonl").open("a") as file:
        file.write(text + "\n")
    found = told(check_folder(folder, NET))
    assert found == {"rows.jsonl:5": reason, "00000.npz": None, "00001.npz": None, "00003.npz": None}


def test_rows_as_whole_numbers_twice_and_wrapped(job):
    folder, contents = job
    contents["00001"] |= {"radius": np.array(2.0), "proved": [1.0, 2.0]}
    wrapped = {"index": 1, "row": line(1, radius=2, margins=[1, 2]), "seconds": 3}
    rows([line(0), line(0), wrapped, wrapped, WRONG, line(3)], folder)
    assert set(told(check_folder(folder, NET)).values()) == {None}


def test_rows_that_are_missing(job):
    folder, _ = job
    rows([line(0), line(3)], folder)
    found = told(check_folder(folder, NET))
    assert found == {
        "rows.jsonl": "it has no row of input 1",
        "00000.npz": None,
        "00001.npz": "no row of rows.jsonl is about input 1",
        "00003.npz": None,
    }
    rows([line(0), line(1), line(2, verdict="refuted"), line(3)], folder)
    assert told(check_folder(folder, NET))["00002.npz"] == "it is missing, and its row says refuted"
    (folder / "rows.jsonl").unlink()
    (folder / "rows.jsonl").mkdir()  # no file at all
    assert "no row" in told(check_folder(folder, NET))["00000.npz"]


def test_rows_beside_a_folder_of_another_name_are_not_read(job, tmp_path):
    folder, _ = job
    (folder / "certificates").rename(folder / "others")
    rows([], folder)
    assert set(told(check_folder(folder / "others", NET)).values()) == {None}
    (folder / "rows.jsonl").unlink()
    with pytest.raises(Refused, match="No certificate in"):
        check_folder(folder, NET)


# --- inputs ---------------------------------------------------------------------------------------------------------


def test_inputs_that_cannot_be_read(tmp_path):
    expected = "expected .npy, or .npz with an array X"
    net = Net((2, 3, 4), [24], [], "")
    with pytest.raises(Refused) as error:
        read_inputs(tmp_path / "x.npy", net)
    assert str(error.value) == f"No inputs at {tmp_path / 'x.npy'}: {expected}."
    np.savez(tmp_path / "x.npz", a=np.zeros((1, 24)))
    with pytest.raises(Refused) as error:
        read_inputs(tmp_path / "x.npz", net)
    assert str(error.value) == f"{tmp_path / 'x.npz'} has no array named X, x, inputs, images, array: {expected}."
    for array, said in (
        (np.zeros((2, 25)), "An input in {} has the shape (25,), and the network takes (2, 3, 4)."),
        (np.zeros((2, 4, 6)), "An input in {} has the shape (4, 6), and the network takes (2, 3, 4)."),
        (np.zeros((2, 3, 2, 4)), "An input in {} has the shape (3, 2, 4), and the network takes (2, 3, 4)."),
        (np.zeros(24), "The inputs in {} are float64 of shape (24,): expected finite numbers [B, ...]."),
        (np.full((1, 24), np.inf), "The inputs in {} are float64 of shape (1, 24): expected finite numbers [B, ...]."),
        (
            np.zeros((1, 24), complex),
            "The inputs in {} are complex128 of shape (1, 24): expected finite numbers [B, ...].",
        ),
    ):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(Refused) as error:
            read_inputs(tmp_path / "x.npy", net)
        assert str(error.value) == said.format(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("takes", "shape"),
    [
        ((4,), (3,)),
        ((2, 3), (3, 2)),
        ((4, 1, 1), (1, 2)),
        ((1, 3, 2), (3, 1, 2)),
        ((6,), (2, 2)),
        ((4, 2, 3), (2, 3, 3)),
        ((2, 2, 3), (2, 3, 4)),
    ],
)
def test_numbers_in_another_order_are_no_inputs(tmp_path, takes, shape):
    """Only channels of pictures are turned, and only what is flat on one side is read with another shape."""
    np.save(tmp_path / "x.npy", np.zeros((2, *shape)))
    with pytest.raises(Refused) as error:
        read_inputs(tmp_path / "x.npy", Net(takes, [int(np.prod(takes))], [], ""))
    assert str(error.value) == f"An input in {tmp_path / 'x.npy'} has the shape {shape}, and the network takes {takes}."


@pytest.mark.parametrize("kind", ["f4", "f8", "i2", "u1", "b1"])
def test_numbers_of_all_kinds_are_inputs(tmp_path, kind):
    array = (np.arange(5 * 24).reshape(5, 2, 3, 4) % 7).astype(kind)
    np.save(tmp_path / "x.npy", array)
    for net, expected in (
        (Net((2, 3, 4), [24], [], ""), array),
        (Net((24,), [24], [], ""), array),
        (Net((4, 2, 3), [24], [], ""), array.transpose(0, 3, 1, 2)),  # channels last
    ):
        found = read_inputs(str(tmp_path / "x.npy"), net)
        assert found.dtype == np.float64 and np.array_equal(found, expected.reshape(5, 24).astype(float))
    np.save(tmp_path / "x.npy", array.reshape(5, 24))
    assert np.array_equal(read_inputs(tmp_path / "x.npy", Net((2, 3, 4), [24], [], "")), array.reshape(5, 24))


def test_of_several_arrays_the_first_of_the_names_is_read(tmp_path):
    names = ("array", "images", "inputs", "x", "X")
    for count in range(1, 6):
        np.savez(tmp_path / "x.npz", **{name: np.full((1, 2), place) for place, name in enumerate(names[:count])})
        assert read_inputs(tmp_path / "x.npz", NET).tolist() == [[count - 1.0] * 2]


def test_an_archive_of_nothing_is_read_to_its_end(tmp_path):
    """Shorter than what is looked at: it is refused for what it lacks."""
    (tmp_path / "short.npz").write_bytes(bytes(20) + b"PK\5\6" + bytes(18))
    with pytest.raises(Refused) as refused:
        read_certificate(tmp_path / "short.npz", None)
    assert "its end" not in str(refused.value)
