"""The meeting of the ranks leaves nothing in any folder, at whichever moment they are killed."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from manylora.engine.execution.ranks.group import join_group, meeting_in, new_meeting
from tests.engine.execution.ranks.thread_ranks import TIMEOUT_S


def test_ranks_meet_over_a_file_that_no_folder_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    number = new_meeting()
    with ThreadPoolExecutor(2) as pool:
        assert os.fstat(number).st_nlink == 0
        stores = [meeting_in(number, 2) for _ in range(2)]
        joins = [pool.submit(join_group, "gloo", store, rank, 2, TIMEOUT_S) for rank, store in enumerate(stores)]
        groups = [join.result() for join in joins]
        assert os.fstat(number).st_size  # the addresses
        del stores  # a store removes its path
        assert os.fstat(number).st_size
        assert list(tmp_path.iterdir()) == []
        sums = pool.map(lambda group: sum(group.gather(torch.full((2,), 1.0 + group.rank))), groups)
        assert [found.tolist() for found in sums] == [[3.0, 3.0]] * 2
