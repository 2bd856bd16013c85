import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path():
    """As pytest's, in memory where there is such a folder: syncing thousands of small files is not what is tested."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="equipoise-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The made-up study, its results, their judgement, and the path of its report."""
    from equipoise.study.report import render
    from made_study import declared, judged, measured

    study = declared()
    results = measured(study)
    judgement = judged(study, results)
    return study, results, judgement, render(study, results, judgement, tmp_path_factory.mktemp("report"))
