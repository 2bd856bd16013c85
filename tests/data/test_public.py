import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from equipoise.core.errors import BadInput
from equipoise.data import public
from equipoise.data.records import read_records


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv(public.VARIABLE, str(tmp_path))
    return tmp_path


def test_a_folder_that_is_not_there_is_one_sentence(root, monkeypatch):
    (root / "tofu").mkdir()
    assert public.folder("tofu") == root / "tofu"
    with pytest.raises(BadInput, match=r"EQUIPOISE_DATA=.* has no data set 'tofo'. Did you mean 'tofu'"):
        public.folder("tofo")
    monkeypatch.delenv(public.VARIABLE)
    with pytest.raises(BadInput, match=r"needs the data set 'tofu': set EQUIPOISE_DATA"):
        public.folder("tofu")


def test_tofus_other_sets(root):
    row = {"question": "Q?", "answer": "A", "paraphrased_answer": "Aa", "perturbed_answer": ["B", "C"]}
    write(root / "tofu" / "forget01_perturbed.json", [row, row])
    records = public.tofu("forget01_perturbed")
    assert [(r.id, r.group, r.paraphrases, r.wrong) for r in records] == [
        ("3960", "author 198", ("Aa",), ("B", "C")),
        ("3961", "author 198", ("Aa",), ("B", "C")),
    ]
    options = {"question": "Q?", "option1": "x", "option2": "y", "option3": "z", "answer": "y"}
    write(root / "tofu" / "world_facts_mc.jsonl", [options, options | {"answer": "w"}])
    (record,) = public.tofu("world_facts_mc", limit=1)
    assert (record.choices, record.answer, record.wrong) == (("x", "y", "z"), 1, ("x", "z"))
    with pytest.raises(BadInput, match=r"world_facts_mc.jsonl:2: expected question, option1"):
        public.tofu("world_facts_mc")


def test_wmdp_as_published_on_the_hub(root):
    rows = [{"question": f"Q{i}", "choices": ["a", "b", "c", "d"], "answer": i % 4} for i in range(6)]
    path = root / "wmdp" / "wmdp-bio" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    records = public.wmdp("bio")
    assert [record.answer for record in records] == [0, 1, 2, 3, 0, 1] and records[3].completion == "d"
    write(root / "wmdp" / "bio-forget-corpus.jsonl", [{"title": "t", "text": "x y"}])
    assert [record.completion for record in public.wmdp("bio", "corpus")] == ["x y"]
    with pytest.raises(BadInput, match="has no file wmdp-cyber or cyber-mcq"):
        public.wmdp("cyber")
    with pytest.raises(BadInput, match=r"domain is 'biology'\. Did you mean 'bio'"):
        public.wmdp("biology")
    with pytest.raises(BadInput, match=r"no splits"):
        public.wmdp("bio", split="T")


def test_wmdp_deduplicated(root):
    row = {"question": "Q?", "choices": ["a", "b"], "answer": 1}
    write(root / "wmdp-deduped" / "cyber-mcq.jsonl", [row | {"id": f"c-{s}", "split": s} for s in ("T", "V")])
    write(root / "wmdp-deduped" / "cyber-corpus.jsonl", [row | {"split": "T", "sentences": ["One.", "Two."]}])
    assert [record.id for record in public.wmdp("cyber", split="V")] == ["c-V"]
    assert len(public.wmdp("cyber")) == 2
    corpus = public.wmdp("cyber", "corpus", split="T")
    assert [(r.id, r.completion, r.group) for r in corpus] == [
        ("cyber-corpus-1-0", "One.", "Q?"),
        ("cyber-corpus-1-1", "Two.", "Q?"),
    ]
    with pytest.raises(BadInput, match=r"no split 'W'. Known: T, V"):
        public.wmdp("cyber", split="W")


def probe(subject, kind, level, query, answer="a"):
    neighbor = "The View" if kind == "neighbor" else None
    form = "cloze" if level == 1 else "simple question"
    return {"subject": subject, "set": kind, "level": level, "type": form, "neighbor": neighbor, "query": query} | {
        "answer": answer
    }


PROBES = [
    probe("Ann Lee", "forget", 1, "Ann Lee sings ___.", "low"),
    probe("Ann Lee", "forget", 2, "What does Ann Lee sing?", "Low songs"),
    probe("Ann Lee", "neighbor", 1, "The View is on ___."),
    probe("Bo Ek", "forget", 3, "Is it true that Bo Ek paints?"),
    probe("Bo Ek", "neighbor", 2, "Where is the View?"),
    probe("Bo Ek", "forget", 1, "Bo Ek paints ___."),
]


def test_rwku_in_one_file(root):
    write(root / "rwku" / "probes.jsonl", PROBES)
    write(root / "rwku" / "passages.jsonl", [{"subject": "Bo Ek", "text": "Bo Ek paints."}])
    found = public.rwku("forget", subjects=["Ann Lee"])
    assert [(r.id, r.prompt, r.completion, r.group) for r in found] == [
        ("probes-1", "Ann Lee sings ___.", "low", "Ann Lee"),
        ("probes-2", "What does Ann Lee sing?", "Low songs", "Ann Lee"),
    ]
    assert [r.id for r in public.rwku()] == ["probes-1", "probes-2", "probes-4", "probes-6"]
    assert [r.id for r in public.rwku(level=1)] == ["probes-1", "probes-6"]
    assert [r.id for r in public.rwku(level=1, limit=1)] == ["probes-1"]
    assert [r.id for r in public.rwku("neighbor")] == ["probes-3", "probes-5"]
    assert [r.id for r in public.rwku("neighbor", level=2, subjects=["Bo Ek", "Bo Ek"])] == ["probes-5"]
    (passage,) = public.rwku("passages")
    assert (passage.prompt, passage.completion, passage.group) == ("", "Bo Ek paints.", "Bo Ek")
    assert public.rwku(path=root / "rwku") == public.rwku()
    # The same file as the job reads it.
    fields = {"question": "query", "group": "subject"}
    asked = read_records(root / "rwku" / "probes.jsonl", fields=fields)
    assert [r for r in asked if r.id in ("probes-1", "probes-2")] == found


def test_rwku_as_published(tmp_path):
    """A folder a person, in the order of their numbers; levels are texts there."""
    for person, kind, level in (("10_Bo_Ek", "forget", 2), ("10_Bo_Ek", "forget", 1), ("9_Ann_Lee", "forget", 1)):
        rows = [probe(person[-6:].strip("_").replace("_", " "), kind, str(level), f"{level} {n}?") for n in range(2)]
        path = tmp_path / person / f"{kind}_level{level}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([{name: row[name] for name in row if name != "set"} for row in rows], indent=4))
    (tmp_path / "9_Ann_Lee" / "passage.json").write_text('[{"text": "Ann sings.", "subject": "nn Lee"}]')
    (tmp_path / "notes").mkdir()
    found = public.rwku(level=1, path=tmp_path)
    assert [(r.id, r.prompt) for r in found] == [
        ("9_Ann_Lee-forget_level1-1", "1 0?"),
        ("9_Ann_Lee-forget_level1-2", "1 1?"),
        ("10_Bo_Ek-forget_level1-1", "1 0?"),
        ("10_Bo_Ek-forget_level1-2", "1 1?"),
    ]
    with pytest.raises(BadInput, match=r"9_Ann_Lee/forget_level2.json: no such file"):
        public.rwku(level=2, path=tmp_path)


def test_rwku_refuses_what_is_not_there(root, monkeypatch):
    write(root / "rwku" / "probes.jsonl", [*PROBES, probe("Bo Ek", "neighbor", 1, " ")])
    with pytest.raises(BadInput, match=r"rwku has no forget of 'Ann Le'\. Did you mean 'Ann Lee'"):
        public.rwku(subjects=["Ann Le"])
    with pytest.raises(BadInput, match=r"^RWKU's neighbor have levels \(1, 2\), and level is 3\.$"):
        public.rwku("neighbor", level=3)
    with pytest.raises(BadInput, match=r"^RWKU's passages have no levels, and level is 1\.$"):
        public.rwku("passages", level=1)
    with pytest.raises(BadInput, match=r"level is 4"):
        public.rwku(level=4)
    with pytest.raises(BadInput, match=r"kind is 'retain'"):
        public.rwku("retain")
    with pytest.raises(
        BadInput, match=r"probes.jsonl:7: expected RWKU's subject, query, answer, and 'query' is no text"
    ):
        public.rwku("neighbor")
    with pytest.raises(BadInput, match=r"nothing has neither a file probes nor folders of people"):
        public.rwku(path=root / "nothing")
    with pytest.raises(BadInput, match=r"has neither a file passages"):
        public.rwku("passages")
    monkeypatch.delenv(public.VARIABLE)
    with pytest.raises(BadInput, match=r"needs the data set 'rwku': set EQUIPOISE_DATA"):
        public.rwku()


@pytest.fixture
def authors(root, monkeypatch):
    """A TOFU of 400 records, whose splits are the same shares."""
    monkeypatch.setattr(public, "TOFU_RECORDS", 400)
    write(root / "tofu" / "full.json", [{"question": f"Q{i}?", "answer": f"A{i}"} for i in range(400)])
    return root / "tofu"


@pytest.mark.parametrize(
    ("split", "first", "count"),
    [
        ("full", 0, 400),
        ("forget01", 360, 40),
        ("forget05", 200, 200),
        ("forget10", 0, 400),
        ("retain99", 0, 360),
        ("retain95", 0, 200),
        ("retain90", 0, 0),
    ],
)
def test_every_split_is_its_range(authors, split, first, count):
    records = public.tofu(split)
    assert [record.completion for record in records] == [f"A{i}" for i in range(first, first + count)]
    assert [(record.id, record.group) for record in records] == [
        (str(i), f"author {i // 20}") for i in range(first, first + count)
    ]
    assert public.tofu(split, limit=7) == records[:7]


def test_a_split_that_is_none_and_a_file_that_is_not_whole(authors):
    with pytest.raises(BadInput, match=r"TOFU has no split 'forget5'\. Did you mean 'forget05'"):
        public.tofu("forget5")
    write(authors / "full.json", [{"question": "Q?", "answer": "A"}])
    for split in ("full", "forget01", "retain99"):
        with pytest.raises(BadInput) as caught:
            public.tofu(split)
        said = f"{authors}/full.json: 1 records, expected TOFU's 400; its splits are ranges of them."
        assert str(caught.value) == said


def test_the_published_numbers_of_tofu():
    assert (public.TOFU_RECORDS, public.TOFU_PER_AUTHOR) == (4000, 20)
    assert public.TOFU_FORGET == {"forget01": 40, "forget05": 200, "forget10": 400}
    assert public.TOFU_RETAIN == {"retain99": 40, "retain95": 200, "retain90": 400}


@pytest.mark.parametrize(
    ("split", "first"),
    [
        ("forget01_perturbed", 360),
        ("forget05_perturbed", 200),
        ("forget10_perturbed", 0),
        ("retain_perturbed", 0),
        ("holdout10", None),
        ("real_authors_perturbed", None),
        ("world_facts_perturbed", None),
    ],
)
def test_only_sets_of_authors_have_them_as_groups(authors, split, first):
    write(authors / f"{split}.json", [{"question": f"Q{i}?", "answer": "A", "group": "g"} for i in range(25)])
    records = public.tofu(split)
    of_author = [(str(first + i), f"author {(first + i) // 20}") for i in range(25)] if first is not None else None
    expected = of_author or [(f"{split}-{i + 1}", "g") for i in range(25)]
    assert [(record.id, record.group) for record in records] == expected
    assert public.tofu(split, limit=2) == records[:2]


def test_a_choice_set_is_numbered_by_its_rows(root):
    rows = [{"question": f"Q{i}?", "option2": "y", "option1": "x", "answer": "xy"[i % 2]} for i in range(3)]
    write(root / "tofu" / "real_authors_mc.json", rows)
    found = [(r.id, r.prompt, r.choices, r.answer, r.group) for r in public.tofu("real_authors_mc")]
    assert found == [(f"real_authors_mc-{i + 1}", f"Q{i}?", ("x", "y"), i % 2, "") for i in range(3)]
    assert [r.id for r in public.tofu("real_authors_mc", limit=2)] == ["real_authors_mc-1", "real_authors_mc-2"]
    path = root / "tofu" / "real_authors_mc.json"
    write(path, [{"question": "Q?", "option1": "x", "option2": "y"}])
    with pytest.raises(BadInput) as caught:
        public.tofu("real_authors_mc")
    said = f"{path}:1: expected question, option1, option2, ... and the answer among them."
    assert str(caught.value) == said
    write(path, [{"option1": "x", "option2": "y", "answer": "x"}])
    with pytest.raises(BadInput, match=r":1: field 'question': expected a value|:1: no field 'question'"):
        public.tofu("real_authors_mc")


def test_a_file_is_found_by_its_stem_or_as_the_one_shard_of_a_folder(root):
    with pytest.raises(BadInput) as caught:
        public._file(root, "a", "b")
    endings = ".jsonl, .jsonl.gz, .json, .json.gz, .csv, .csv.gz, .parquet"
    assert str(caught.value) == f"{root} has no file a or b with one of {endings}."
    (root / "b").mkdir()
    (root / "b" / "one.parquet").touch()
    (root / "b" / "README.md").touch()
    assert public._file(root, "a", "b") == root / "b" / "one.parquet"
    (root / "b" / "two.parquet").touch()
    with pytest.raises(BadInput):
        public._file(root, "a", "b")
    (root / "b.csv").touch()
    assert public._file(root, "a", "b") == root / "b.csv"
    (root / "a.json").touch()
    (root / "a.jsonl").touch()
    assert public._file(root, "a", "b") == root / "a.jsonl"


@pytest.mark.parametrize("kind", ["mcq", "corpus"])
def test_wmdp_by_both_of_its_published_names(root, kind):
    row = {"question": "Q", "choices": ["a", "b"], "answer": 1} if kind == "mcq" else {"text": "x"}
    names = ("chem-mcq", "wmdp-chem") if kind == "mcq" else ("chem-corpus", "chem-forget-corpus")
    for number, name in enumerate(names, start=1):  # the published name goes first
        write(root / "wmdp" / f"{name}.jsonl", [row] * number)
        assert [record.id for record in public.wmdp("chem", kind)] == [f"{name}-{i + 1}" for i in range(number)]
    assert len(public.wmdp("chem", kind, limit=1)) == 1
    with pytest.raises(BadInput) as caught:
        public.wmdp("chem", split="T")
    assert str(caught.value) == f"{root}/wmdp: the published WMDP has no splits; leave split out."


def test_splits_and_limits_of_the_deduplicated_wmdp(root):
    row = {"question": "Q?", "choices": ["a", "b"], "answer": 1}
    splits = ("T", "V", "T", "dev_T")
    write(root / "wmdp-deduped" / "bio-mcq.jsonl", [row | {"id": f"b{i}", "split": s} for i, s in enumerate(splits)])
    sentences = [["One.", "Two."], ["Three."], ["Four."], ["Five."]]
    corpus = [{"question": f"Q{i}", "split": s, "sentences": sentences[i]} for i, s in enumerate(splits)]
    write(root / "wmdp-deduped" / "bio-corpus.jsonl", corpus)
    assert [record.id for record in public.wmdp("bio", split="T")] == ["b0", "b2"]
    assert [record.id for record in public.wmdp("bio", split="T", limit=1)] == ["b0"]
    assert [record.id for record in public.wmdp("bio")] == ["b0", "b1", "b2", "b3"]
    found = public.wmdp("bio", "corpus", split="T")
    assert [(record.id, record.group) for record in found] == [
        ("bio-corpus-1-0", "Q0"),
        ("bio-corpus-1-1", "Q0"),
        ("bio-corpus-3-0", "Q2"),
    ]
    assert public.wmdp("bio", "corpus", split="T", limit=2) == found[:2]
    assert [record.completion for record in public.wmdp("bio", "corpus")] == [
        "One.",
        "Two.",
        "Three.",
        "Four.",
        "Five.",
    ]
    with pytest.raises(BadInput) as caught:
        public.wmdp("bio", "corpus", split="X")
    assert str(caught.value) == f"{root}/wmdp-deduped/bio-corpus.jsonl has no split 'X'. Known: T, V, dev_T."


def test_what_holds_no_data_sets(root, monkeypatch):
    (root / "file").touch()
    with pytest.raises(BadInput) as caught:
        public.folder("file")
    assert str(caught.value) == f"EQUIPOISE_DATA={root} has no data set 'file'. None are known."
    monkeypatch.setenv(public.VARIABLE, str(root / "file"))
    with pytest.raises(BadInput) as caught:
        public.folder("tofu")
    assert str(caught.value) == f"EQUIPOISE_DATA={root / 'file'} has no data set 'tofu'. None are known."
    monkeypatch.setenv(public.VARIABLE, "")
    with pytest.raises(BadInput) as caught:
        public.wmdp("bio")
    said = "this needs the data set 'wmdp-deduped': set EQUIPOISE_DATA to the folder that holds wmdp-deduped/."
    assert str(caught.value) == said


@pytest.mark.skipif(not os.environ.get(public.VARIABLE), reason="EQUIPOISE_DATA names no folder of public data sets.")
def test_the_real_files():
    assert [len(public.tofu(split)) for split in ("forget01", "retain_perturbed", "holdout10", "real_authors_mc")] == [
        40,
        400,
        400,
        100,
    ]
    full, perturbed = public.tofu("forget10"), public.tofu("forget10_perturbed")
    assert [(r.id, r.prompt, r.completion) for r in full] == [(r.id, r.prompt, r.completion) for r in perturbed]
    assert all(len(record.wrong) >= 3 for record in perturbed)
    assert len(public.wmdp("bio")) == 330 and len(public.wmdp("cyber", split="T")) == 260
