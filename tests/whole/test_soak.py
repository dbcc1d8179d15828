"""One minute of random use; docs/reliability.md has the figures of half an hour."""

from __future__ import annotations

import json

import beside
import numpy as np
import pytest
from soak import soak


@pytest.mark.waits_for("soak")
def test_soak():
    done = beside.result("soak")
    print(done["stdout"], done["stderr"])
    assert done["status"] == 0
    report = json.loads(done["stdout"])
    assert len(report["steps"]) == 11 and report["checks"] > 500
    # What is held grows until every kind of step has been taken; after that it may not.
    *_, half, three_quarters, end = report["memory_mib"]
    assert end < half + 32 and end < three_quarters + 32
    assert report["threads"] < 10  # the bar's monitor and no more: none of ours is left


def test_a_wrong_answer_is_found(monkeypatch):
    def swapped(self, users, k=10, **options):
        answer = recommend(self, users, k, **options)
        answer.ids[:] = answer.ids[:, ::-1].copy()
        return answer

    recommend = soak.WALS.recommend
    monkeypatch.setattr(soak.WALS, "recommend", swapped)
    with pytest.raises(AssertionError):
        soak.run(20, seed=0)


def test_memory_that_is_lost_is_seen():
    before = soak.resident_bytes()
    lost = np.ones(2**23)
    assert soak.resident_bytes() - before > 0.9 * lost.nbytes
