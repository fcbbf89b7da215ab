"""The watcher as a real process, against a gcloud that is one too and hosts that run host.sh; its stories: test_watch.py."""

import pytest

from tests.launch.conftest import UP

FAST = ("--poll_seconds=0.05", "--backoff_seconds=0.05", "--max_backoff_seconds=0.2")
ACTIVE = [["ACTIVE", 10_000]]


@pytest.mark.exhaustive  # tests/launch/test_watch.py shows it within one process
def test_hosts_that_vanish_while_they_work(processes):
    processes.plan([["ACTIVE", "step 4"], ["SUSPENDING", 1], ["SUSPENDED", 1]], UP)
    code, output = processes.call("watch", *processes.watch_arguments(*FAST, steps=8))
    assert code == 0, output
    assert processes.starts == [0, 4]
    assert processes.events[-1] == "done"
    assert "queued-resources delete" in processes.calls[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=[] if m == "saved" else pytest.mark.exhaustive) for m in ("create", "start", "saved")],
)
def test_killed_and_started_again_it_picks_up_where_things_stand(processes, moment):
    processes.plan(UP, stalls=1)
    first = processes.start("watch", *processes.watch_arguments(*FAST))
    processes.wait_for(moment)
    if moment == "saved":
        code, output = processes.call("watch", *processes.watch_arguments(*FAST))
        assert (code, "another watcher is at work here" in output) == (2, True)
    first.kill()
    first.communicate()
    processes.plan(UP)
    code, output = processes.call("watch", *processes.watch_arguments(*FAST))
    assert code == 0, output
    assert "goes on" in output
    assert processes.creations == 1
    assert processes.starts[0] == 0 and len(processes.starts) <= 2
    if moment == "saved":
        assert len(processes.starts) == 1  # the training never noticed


@pytest.mark.slow
def test_a_mistake_of_the_user_ends_it_and_is_shown(processes):
    processes.plan(ACTIVE, crash=2, at=0)
    code, output = processes.call("watch", *processes.watch_arguments(*FAST))
    assert code == 2
    assert "something went wrong" in output
    assert output.splitlines()[-1].endswith("its last lines are above")
    assert processes.starts == [0]


@pytest.mark.exhaustive
def test_a_training_that_saves_nothing_is_told_to_stop(processes):
    processes.plan(ACTIVE, stalls=0)
    patience = ("--stall_minutes=0.01", "--max_attempts=0")
    code, output = processes.call("watch", *processes.watch_arguments(*FAST, *patience))
    assert code == 4
    assert "0 attempts without a new checkpoint, the last: hosts ended with 75" in output.splitlines()[-1]
    assert processes.starts == [0]
