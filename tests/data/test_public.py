import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from equipoise.core.errors import BadInput
from equipoise.data import public


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


def test_tofu_splits_are_ranges_of_the_full_set(root):
    write(root / "tofu" / "full.json", [{"question": f"Q{i}?", "answer": f"A{i}"} for i in range(4000)])
    for split, first, count in (
        ("forget01", 3960, 40),
        ("forget10", 3600, 400),
        ("retain95", 0, 3800),
        ("full", 0, 4000),
    ):
        records = public.tofu(split)
        assert len(records) == count and records[0].completion == f"A{first}" and records[0].id == str(first)
        assert records[-1].group == f"author {(first + count - 1) // 20}"
    assert {record.id for record in public.tofu("forget05")} | {record.id for record in public.tofu("retain95")} == {
        str(i) for i in range(4000)
    }
    assert len(public.tofu("retain90", limit=3)) == 3
    with pytest.raises(BadInput, match=r"TOFU has no split 'forget5'. Did you mean 'forget05'"):
        public.tofu("forget5")
    write(root / "tofu" / "full.json", [{"question": "Q?", "answer": "A"}])
    with pytest.raises(BadInput, match="1 records, expected TOFU's 4000"):
        public.tofu("forget01")


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
