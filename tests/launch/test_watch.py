"""The watcher as a real process against a gcloud that is played: states in time, hosts, bucket and trainer."""

import shutil
import time

import pytest

from tests.launch.conftest import POD, SLICE, WORKDIR

FAST = ("--poll_seconds=0.05", "--backoff_seconds=0.05", "--max_backoff_seconds=0.2", "--max_attempts=3")
STEPS = 12
UP = [["WAITING_FOR_RESOURCES", 2], ["PROVISIONING", 1], ["ACTIVE", 10_000]]


def arguments(stage, *more, steps=STEPS):
    journal = f"--journal={stage.folder / 'journal.jsonl'}"
    return (
        *SLICE,
        "--code=git+https://host/repo@v1",
        WORKDIR,
        journal,
        *FAST,
        *more,
        "--",
        f"--config.train.steps={steps}",
    )


def events(stage):
    return [entry["event"] for entry in stage.lines("journal.jsonl")]


def newest(stage):
    return max(entry.get("step", 0) for entry in stage.lines("journal.jsonl"))


@pytest.mark.slow
def test_through_two_suspensions_to_the_end(stage):
    stage.plan(
        [["WAITING_FOR_RESOURCES", 3], ["PROVISIONING", 1], ["SUSPENDED", 1]],  # between create and start
        [["CREATING", 1], ["broken", 1], ["SUSPENDING", 2], ["SUSPENDED", 1]],  # active, but gone before the start
        [["WAITING_FOR_RESOURCES", 1], ["ACTIVE", "step 4"], ["SUSPENDING", 1], ["SUSPENDED", 1]],
        [["ACTIVE", "step 8"], ["SUSPENDED", 1]],
        UP,
    )
    code, output = stage.call("watch", *arguments(stage))
    assert code == 0, output
    assert stage.starts == [0, 4, 8]
    assert events(stage)[-1] == "done"
    assert newest(stage) == STEPS
    assert sum("queued-resources create" in call for call in stage.calls) == 5
    assert "queued-resources delete" in stage.calls[-1]  # nothing is left to be paid for
    assert [start["host"] for start in stage.lines("trained.jsonl")].count("w-1") == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([["refuse: PERMISSION_DENIED: no access to project proj", 1]], "PERMISSION_DENIED: no access to project proj"),
        (
            [["CREATING", 1], ["FAILED: 3 no such accelerator in zone", 1]],
            "no such accelerator in zone",
        ),
    ],
)
def test_what_trying_again_does_not_mend_ends_it(stage, states, message):
    stage.plan(states)
    code, output = stage.call("watch", *arguments(stage))
    assert code == 4
    assert message in output.splitlines()[-1]
    assert "given up" in output.splitlines()[-1]
    assert sum("queued-resources create" in call for call in stage.calls) == 1


@pytest.mark.slow
def test_attempts_that_bring_no_checkpoint_run_out(stage):
    stage.plan([["ACTIVE", 10_000]], crash=1, at=2)
    code, output = stage.call("watch", *arguments(stage))
    assert code == 4
    assert "3 attempts without a new checkpoint, the last: hosts ended with 1" in output.splitlines()[-1]
    assert "queued-resources delete" in stage.calls[-1]
    assert stage.starts == [
        0,
        2,
        2,
        2,
    ]  # the first brought two checkpoints, then the first fruitless one is not a start


@pytest.mark.slow
def test_a_failing_create_is_tried_again_later(stage):
    stage.plan([["refuse: there is no more capacity in the zone", 1]], UP)
    code, output = stage.call("watch", *arguments(stage, steps=3))
    assert code == 0, output
    assert "no more capacity in the zone" in output


@pytest.mark.slow
def test_a_mistake_of_the_user_ends_it_and_is_shown(stage):
    stage.plan([["ACTIVE", 10_000]], crash=2, at=0)
    code, output = stage.call("watch", *arguments(stage))
    assert code == 2
    assert "something went wrong" in output
    assert stage.starts == [0]


@pytest.mark.slow
def test_a_training_that_saves_nothing_is_started_again(stage):
    stage.plan([["ACTIVE", 10_000]], stalls=True)
    code, output = stage.call("watch", *arguments(stage, "--stall_minutes=0.01", "--max_attempts=1"))
    assert code == 4
    assert "no checkpoint in 0.01 minutes" in output
    assert "hosts ended with 75" in output  # told to stop, not killed
    assert len(stage.starts) == 2


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for(stage, event):
    wait_until(lambda: event in events(stage))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["create", "start", "saved"])
def test_killed_and_started_again_it_picks_up_where_things_stand(stage, moment):
    stage.plan(UP)
    first = stage.start("watch", *arguments(stage))
    wait_for(stage, moment)
    first.kill()
    first.communicate()
    code, output = stage.call("watch", *arguments(stage))
    assert code == 0, output
    assert sum("queued-resources create" in call for call in stage.calls) == 1
    assert stage.starts[0] == 0 and len(stage.starts) <= 2
    if moment == "saved":
        assert len(stage.starts) == 1  # the training never noticed


@pytest.mark.slow
def test_without_its_journal_it_adopts_what_runs(stage):
    stage.plan(UP)
    for sign in ("saved", "adopt"):
        watcher = stage.start("watch", *arguments(stage, steps=1000))
        wait_for(stage, sign)
        watcher.kill()
        watcher.communicate()
        (stage.folder / "journal.jsonl").unlink()
    assert len(stage.starts) == 1


@pytest.mark.slow
def test_two_watchers_and_two_jobs_do_not_mix(stage):
    stage.plan(UP, stalls=True)
    first = stage.start("watch", *arguments(stage))
    wait_for(stage, "start")
    code, output = stage.call("watch", *arguments(stage))
    assert (code, "another watcher is at work here" in output) == (2, True)
    wait_until(lambda: len(stage.lines("trained.jsonl")) == 2)
    first.kill()
    first.communicate()
    code, output = stage.call("watch", *arguments(stage, steps=STEPS + 1))
    assert code == 4
    assert "runs another job" in output.splitlines()[-1]
    other = ("--topology=v5p:2x2x4", *arguments(stage)[len(SLICE) :])
    code, output = stage.call("watch", *POD, *other)
    assert code == 4
    assert "pod is a v5p-16, not v5p-32" in output.splitlines()[-1]
    assert "queued-resources delete" not in " ".join(stage.calls)


@pytest.mark.slow
def test_errors_that_pass(stage):
    failing = [
        ["resources describe", 2, "UNAVAILABLE: the service is currently unavailable"],
        ["resources create", 1, "there is no more capacity in the zone"],
        ["tpu-vm ssh|host.sh start", 1, "ssh: connect to host port 22: Connection refused"],
        ["storage ls gs", 1, "HTTPError 503: try again"],
    ]
    stage.plan(UP, failing=failing)
    code, output = stage.call("watch", *arguments(stage))
    assert code == 0, output
    assert stage.starts == [0]
    for _, _, message in failing:
        assert message in output


@pytest.mark.slow
def test_a_bucket_that_is_not_there_shows_before_anything_is_asked_for(stage):
    stage.plan(UP, failing=[["storage cp --rec", 1000, "gs://bucket not found: 404."]])
    code, output = stage.call("watch", *arguments(stage))
    assert code == 4
    assert "not found: 404" in output
    assert not any("queued-resources create" in call for call in stage.calls)


@pytest.mark.slow
def test_hosts_that_do_not_answer(stage):
    """Left alone while checkpoints come, given back when none does."""
    stage.plan(
        [["ACTIVE", 10_000]], [["ACTIVE", 10_000]], failing=[["tpu-vm ssh|host.sh status", 0, "Connection timed out"]]
    )
    watcher = stage.start("watch", *arguments(stage, "--unreachable_minutes=0.02", steps=60))
    wait_for(stage, "saved")
    (stage.folder / "failing.json").write_text('[["tpu-vm ssh|host.sh status", 8, "Connection timed out"]]')
    output, _ = watcher.communicate(timeout=120)
    assert watcher.returncode == 0, output
    assert "Connection timed out" in output
    assert stage.starts == [0]  # it went on training all the while


@pytest.mark.slow
def test_hosts_that_never_answer_are_given_back(stage):
    failing = [["tpu-vm ssh|host.sh status", 1000, "Connection timed out; the locale is not supported"]]
    stage.plan([["ACTIVE", 10_000]], failing=failing)
    code, output = stage.call("watch", *arguments(stage, "--unreachable_minutes=0.005", "--max_attempts=1"))
    assert code == 4
    assert sum("queued-resources create" in call for call in stage.calls) == 2
    assert "the hosts do not answer, and no checkpoint comes" in output


@pytest.mark.slow
def test_a_new_story_owes_nothing_to_the_old(stage):
    stage.plan(UP, crash=1, at=2)
    assert stage.call("watch", *arguments(stage, "--max_attempts=0"))[0] == 4
    stage.plan(UP)  # mended
    code, output = stage.call("watch", *arguments(stage, "--max_attempts=0"))
    assert code == 0, output
    code, output = stage.call("watch", *arguments(stage, "--max_attempts=0"))
    assert (code, "this run has ended before" in output) == (0, True)
    assert len(stage.starts) == 2
    shutil.rmtree(stage.folder / "gs/bucket/run/checkpoints")
    code, output = stage.call("watch", *arguments(stage, "--max_attempts=0", steps=3))
    assert code == 0, output
    assert newest(stage) == STEPS
