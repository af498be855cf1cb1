"""SIGKILL at random moments of crafting, training and writing: what comes out is what an undisturbed run gives."""

import sys

import pytest

from tests import kills

# 20 in all; of a job that crafts into a cache before it trains, some strike there
KILLS = {"victim": 3, "adversarial": 4, "redrl": 6, "folder": 4, "webdataset": 3}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has threads")
@pytest.mark.parametrize("job", KILLS)
def test_a_killed_run_that_goes_on_gives_what_an_undisturbed_one_does(tmp_path, job):
    whole, other = (kills.prepare(tmp_path / name, job) for name in ("whole", "other"))
    seconds = kills.to_the_end(whole, job)
    kills.kill(other, job, KILLS[job], 0, seconds)
    assert kills.differences(job, whole, other) == []
