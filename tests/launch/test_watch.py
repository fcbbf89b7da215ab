"""The watcher's stories, told within the test: gcloud, bucket and trainer are played by played_gcloud.py, hosts and time by
played_hosts.py. As processes: test_watch_processes.py.
"""

import datetime as dt
import shutil

import pytest

from tests.launch.conftest import POD, UP, play

ACTIVE = [["ACTIVE", 10_000]]
MINUTE = 60


def minutes_between(played, first, last):
    """From the first such event in the journal to the first of the other."""
    times = [
        next(dt.datetime.fromisoformat(e["time"]) for e in played.lines("journal.jsonl") if e["event"] == event)
        for event in (first, last)
    ]
    return (times[1] - times[0]).total_seconds() / MINUTE


def test_through_two_suspensions_to_the_end(played):
    played.plan(
        [["WAITING_FOR_RESOURCES", 3], ["PROVISIONING", 1], ["SUSPENDED", 1]],  # between create and start
        [["CREATING", 1], ["broken", 1], ["SUSPENDING", 2], ["SUSPENDED", 1]],  # active, but gone before the start
        [["WAITING_FOR_RESOURCES", 1], ["ACTIVE", "step 4"], ["SUSPENDING", 1], ["SUSPENDED", 1]],
        [["ACTIVE", "step 8"], ["SUSPENDED", 1]],
        UP,
    )
    code, output = played.call("watch", *played.watch_arguments())
    assert code == 0, output
    assert played.starts == [0, 4, 8]
    assert played.events[-1] == "done"
    assert played.newest == 12
    assert played.creations == 5
    assert "queued-resources delete" in played.calls[-1]  # nothing is left to be paid for
    assert [start["host"] for start in played.lines("trained.jsonl")].count("w-1") == 3


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([["refuse: PERMISSION_DENIED: no access to project proj", 1]], "PERMISSION_DENIED: no access to project proj"),
        ([["CREATING", 1], ["FAILED: 3 no such accelerator in zone", 1]], "no such accelerator in zone"),
    ],
)
def test_what_trying_again_does_not_mend_ends_it(played, states, message):
    played.plan(states)
    code, output = played.call("watch", *played.watch_arguments())
    assert code == 4
    assert message in output.splitlines()[-1]
    assert "given up" in output.splitlines()[-1]
    assert played.creations == 1


def test_attempts_that_bring_no_checkpoint_run_out(played):
    played.plan(ACTIVE, crash=1, at=2)
    code, output = played.call("watch", *played.watch_arguments())
    assert code == 4
    assert "3 attempts without a new checkpoint, the last: hosts ended with 1" in output.splitlines()[-1]
    assert "queued-resources delete" in played.calls[-1]
    # The first brought two checkpoints, then the first fruitless one is not a start.
    assert played.starts == [0, 2, 2, 2]


def test_it_waits_twice_as_long_each_time_up_to_a_limit(played):
    played.plan(ACTIVE, crash=1, at=0)
    patience = ("--poll_seconds=7", "--max_attempts=5", "--backoff_seconds=30", "--max_backoff_seconds=200")
    code, _ = played.call("watch", *played.watch_arguments(*patience))
    assert code == 4
    assert [seconds for seconds in played.clock.waits if seconds != 7] == [30, 60, 120, 200, 200]


def test_a_failing_create_is_tried_again_later(played):
    played.plan([["refuse: there is no more capacity in the zone", 1]], UP)
    code, output = played.call("watch", *played.watch_arguments(steps=3))
    assert code == 0, output
    assert "no more capacity in the zone" in output


def test_a_mistake_of_the_user_ends_it_and_is_shown(played):
    played.plan(ACTIVE, crash=2, at=0)
    code, output = played.call("watch", *played.watch_arguments())
    assert code == 2
    assert "something went wrong" in output
    assert played.starts == [0]
    assert "queued-resources delete" in played.calls[-1]


def test_a_training_that_saves_nothing_is_started_again(played):
    played.plan(ACTIVE, stalls=0)
    code, output = played.call("watch", *played.watch_arguments("--stall_minutes=90", "--max_attempts=1"))
    assert code == 4
    assert "no checkpoint in 90 minutes" in output
    assert "hosts ended with 75" in output  # told to stop, not killed
    assert len(played.starts) == 2
    assert 90 <= minutes_between(played, "started", "stop") < 93


def test_a_stalled_training_may_stall_for_ever_where_that_is_wanted(played):
    played.plan(ACTIVE, stalls=0)
    played.clock.at(10 * 60 * MINUTE, lambda: played.plan(ACTIVE))
    code, output = played.call("watch", *played.watch_arguments("--stall_minutes=0", "--poll_seconds=600"))
    assert code == 0, output
    assert played.starts == [0]


def test_killed_at_any_call_of_gcloud_it_picks_up_where_things_stand(tmp_path):
    """Before the call is made, and once it has done its work."""
    whole = play(tmp_path / "whole")
    whole.plan(UP)
    assert whole.call("watch", *whole.watch_arguments("--poll_seconds=300", steps=2))[0] == 0
    for kill in [(number, done) for number in range(len(whole.calls)) for done in (False, True)]:
        played = play(tmp_path / f"{kill}")
        played.plan(UP)
        played.dies = lambda *moment, kill=kill: moment == kill
        assert played.call("watch", *played.watch_arguments("--poll_seconds=300", steps=2))[0] is None
        played.dies = lambda *_: False
        code, output = played.call("watch", *played.watch_arguments("--poll_seconds=300", steps=2))
        assert code == 0, (kill, output)
        assert played.creations == 1
        assert played.starts == [0]
        assert ("goes on" if kill[0] < len(whole.calls) - 1 else "this run has ended before") in output
        assert "delete" in played.calls[-1]


def test_without_its_journal_it_adopts_what_runs(played):
    played.plan(UP)
    for sign in ("saved", "adopt"):
        played.dies = lambda *_, sign=sign: sign in played.events
        assert played.call("watch", *played.watch_arguments(steps=1000))[0] is None
        (played.folder / "journal.jsonl").unlink()
    assert len(played.starts) == 1


def test_jobs_do_not_mix(played):
    played.plan(UP, stalls=0)
    played.dies = lambda *_: len(played.lines("trained.jsonl")) == 2
    assert played.call("watch", *played.watch_arguments())[0] is None
    played.dies = lambda *_: False
    code, output = played.call("watch", *played.watch_arguments(steps=13))
    assert code == 4
    assert "runs another job" in output.splitlines()[-1]
    code, output = played.call("watch", *played.watch_arguments(where=(*POD, "--topology=v5p:2x2x4")))
    assert code == 4
    assert "pod is a v5p-16, not v5p-32" in output.splitlines()[-1]
    assert "queued-resources delete" not in " ".join(played.calls)


def test_errors_that_pass(played):
    failing = [
        ["resources describe", 2, "UNAVAILABLE: the service is currently unavailable"],
        ["resources create", 1, "there is no more capacity in the zone"],
        ["tpu-vm ssh|host.sh start", 1, "ssh: connect to host port 22: Connection refused"],
        ["storage ls gs", 1, "HTTPError 503: try again"],
    ]
    played.plan(UP, failing=failing)
    code, output = played.call("watch", *played.watch_arguments())
    assert code == 0, output
    assert played.starts == [0]
    for _, _, message in failing:
        assert message in output


def test_a_bucket_that_is_not_there_shows_before_anything_is_asked_for(played):
    played.plan(UP, failing=[["storage cp --rec", 1000, "gs://bucket not found: 404."]])
    code, output = played.call("watch", *played.watch_arguments())
    assert code == 4
    assert "not found: 404" in output
    assert played.creations == 0


def test_hosts_that_do_not_answer(played):
    """Left alone while checkpoints come, given back when none does."""
    played.plan([["ACTIVE", "step 2"], ["broken", "step 11"], ["ACTIVE", 10_000]], ACTIVE)
    code, output = played.call("watch", *played.watch_arguments(steps=20))  # 9 steps take 45 minutes, patience is 15
    assert code == 0, output
    assert output.count("Connection timed out") > 30
    assert played.starts == [0]  # it went on training all the while
    assert played.creations == 1


def test_hosts_that_never_answer_are_given_back(played):
    failing = [["tpu-vm ssh|host.sh status", 1000, "Connection timed out; the locale is not supported"]]
    played.plan(ACTIVE, failing=failing)
    code, output = played.call("watch", *played.watch_arguments("--unreachable_minutes=20", "--max_attempts=1"))
    assert code == 4
    assert played.creations == 2
    assert "the hosts do not answer, and no checkpoint comes" in output
    assert 20 <= minutes_between(played, "trouble", "delete") < 23


def test_a_host_that_is_not_heard_of_is_one_that_does_not_answer(played):
    played.plan(ACTIVE, ACTIVE)
    played.clock.at(0, lambda: played.hosts.silent.add(1))
    code, output = played.call("watch", *played.watch_arguments("--max_attempts=1"))
    assert code == 4
    assert "1 of 2 hosts answer" in output
    assert played.creations == 2
    assert played.starts == []


def test_hosts_that_go_on_when_another_has_ended_are_stopped(played):
    played.plan(ACTIVE, crash=1, at=2, host="w-1")
    code, output = played.call("watch", *played.watch_arguments("--unreachable_minutes=20"))
    assert code == 0, output
    assert "1 of 2 hosts still run" in output
    assert "hosts ended with 1, 75" in output
    first, again = played.starts
    assert (first, again) == (0, 2 + 4)  # 20 minutes after the second checkpoint


def test_hosts_that_were_started_anew_are_given_the_job_again(played):
    played.plan(ACTIVE)
    played.clock.at(40 * MINUTE, played.hosts.restart)
    code, output = played.call("watch", *played.watch_arguments())
    assert code == 0, output
    assert "hosts ended with killed" in output
    assert len(played.starts) == 2


def test_a_slice_that_cannot_be_deleted_is_told_of(played):
    played.plan(ACTIVE, failing=[["resources delete", 1000, "UNAVAILABLE"]])
    code, output = played.call("watch", *played.watch_arguments())
    assert code == 0
    assert "pod may still be there and be PAID FOR" in output.splitlines()[-1]


def test_a_slice_to_keep_is_kept(played):
    played.plan(ACTIVE)
    code, output = played.call("watch", *played.watch_arguments("--keep"))
    assert code == 0, output
    assert not any("queued-resources delete" in call for call in played.calls)


def test_a_new_story_owes_nothing_to_the_old(played):
    arguments = played.watch_arguments("--max_attempts=0")
    played.plan(UP, crash=1, at=2)
    assert played.call("watch", *arguments)[0] == 4
    played.plan(UP)  # mended
    code, output = played.call("watch", *arguments)
    assert code == 0, output
    code, output = played.call("watch", *arguments)
    assert (code, "this run has ended before" in output) == (0, True)
    assert len(played.starts) == 2
    shutil.rmtree(played.folder / "gs/bucket/run/checkpoints")
    code, output = played.call("watch", *played.watch_arguments("--max_attempts=0", steps=3))
    assert code == 0, output
    assert played.starts[2:] == [0]  # the other job's end is not this one's
    assert played.newest == 12


def test_attempts_of_a_story_that_was_given_up_do_not_count(played):
    arguments = played.watch_arguments("--max_attempts=1")
    played.plan(UP, crash=1, at=0)
    assert played.call("watch", *arguments)[0] == 4
    played.plan(UP, failing=[["tpu-vm ssh|host.sh start", 1, "Connection refused"]])  # mended, but for one attempt
    code, output = played.call("watch", *arguments)
    assert code == 0, output
