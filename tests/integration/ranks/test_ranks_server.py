"""Two ranks behind a real server: mixed adapters give the tokens of one process, and its facts have the ranks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import long
from tests.integration.ranks.ranked_server import alone, make_folder, ranked_server


@pytest.mark.parametrize("degree", long(2, 4))
def test_mixed_adapters_on_ranks_give_the_tokens_of_one_process(tmp_path: Path, degree: int) -> None:
    expected = alone(make_folder(tmp_path))
    assert len(set(expected.values())) == len(expected)
    asked = [*expected, *reversed(list(expected))]
    with ranked_server(tmp_path, tmp_path / "log", degree) as server, ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda each: server.text(*each), asked))
        assert found == [expected[each] for each in asked]
        assert server.get("/info")["tensor_parallel"] == degree
        assert server.get("/health") == {"status": "ok", "ranks": {"tiny": degree}}
        assert server.number("manylora_ranks_up") == degree
        assert server.number("manylora_collective_seconds") > 0
    assert f"for each of {degree} ranks" in (tmp_path / "log").read_text()
