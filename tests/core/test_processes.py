"""Where a process stands among several, as flags, variables and SLURM's environment tell; what process 0 tells the others."""

import errno
import threading

import pytest

from ec_dit.core import paths, processes
from ec_dit.core.errors import DamageError, TryAgain, UserError
from ec_dit.core.places import Place, find

NOTHING = (None, None, None)
SRUN = {"SLURM_JOB_ID": "4097", "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "5", "SLURM_NTASKS": "16"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu7", "gpu7"), ("gpu7,gpu9", "gpu7"), ("gpu[007-012,20],cpu1", "gpu007"), ("n[3,5]-ib", "n3-ib")],
)
def test_srun(nodes, first):
    place = find(NOTHING, SRUN | {"SLURM_STEP_NODELIST": nodes})
    assert place == Place(f"{first}:61441", 16, 5)  # 4097 mod 4096 = 1


@pytest.mark.parametrize(
    "env",
    [
        {},
        {
            "SLURM_JOB_ID": "1",
            "SLURM_NTASKS": "16",
            "SLURM_PROCID": "0",
            "SLURM_JOB_NODELIST": "gpu[1-4]",
        },  # sbatch's script
        SRUN | {"SLURM_STEP_NODELIST": "gpu1", "SLURM_PTY_PORT": "4000"},  # an interactive shell
        SRUN | {"SLURM_STEP_NODELIST": "gpu1", "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_one_process(env):
    assert find(NOTHING, env) is None


def test_one_process_by_wish():
    assert find(NOTHING, {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) == Place("", 1, 0)


def test_flags_come_before_variables_and_these_before_slurm():
    env = SRUN | {"SLURM_STEP_NODELIST": "gpu1"}
    env |= {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert find(NOTHING, env) == Place("host:1234", 4, 3)
    assert find(("other:1", None, 2), env) == Place("other:1", 4, 2)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("host:1", None, None), r"missing: JAX_NUM_PROCESSES, JAX_PROCESS_ID\."),
        (("host:1", 2, 2), r"process 2 of 2: processes are numbered from 0 to 1"),
        (("host:0", 2, 0), r"host:0, 2, 0 is no place among several processes"),
        (("host:99999", 2, 0), r"host:99999, 2, 0 is no place among several processes"),
        ((":8476", 2, 0), r":8476, 2, 0 is no place among several processes"),
        (("host:1", "²", 0), r"host:1, ², 0 is no place among several processes"),
        (("host", 2, 0), r"host, 2, 0 is no place among several processes: --coordinator=HOST:PORT"),
    ],
)
def test_mistakes(place, message):
    with pytest.raises(UserError, match=message):
        find(place, {})


def test_a_list_of_nodes_that_is_not_understood():
    with pytest.raises(UserError, match=r"SLURM_STEP_NODELIST='rack\[1-2\]node\[3-4\]' is not understood"):
        find(NOTHING, SRUN | {"SLURM_STEP_NODELIST": "rack[1-2]node[3-4]"})


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_JOB_ID", "SLURM_STEP_ID"])
@pytest.mark.parametrize("text", ["abc", "", "-1"])
def test_variables_of_slurm_that_are_no_numbers(name, text):
    with pytest.raises(UserError, match=rf"{name}='{text}' is no number"):
        find(NOTHING, SRUN | {"SLURM_STEP_NODELIST": "gpu1", name: text})


def test_steps_of_one_job_have_ports_of_their_own():
    place = find(NOTHING, SRUN | {"SLURM_STEP_NODELIST": "gpu1", "SLURM_STEP_ID": "3"})
    assert place == Place("gpu1:61444", 16, 5)


def test_alone_there_is_nothing_to_wait_for():
    assert (processes.count(), processes.index(), processes.is_first(), processes.label()) == (1, 0, True, "")
    processes.wait("alone")
    processes.check_same("text", "a text")
    with processes.first_goes_ahead("alone"):
        pass
    assert processes.leave(3, failed=True) == 3


@pytest.fixture
def both(monkeypatch):
    """Calls a function in two processes, played by threads, with their index; what was raised in each, or None."""
    here, meeting, contents = threading.local(), threading.Barrier(2, timeout=5), {}

    def said(content, speakers):
        contents[here.index] = content
        meeting.wait()
        told = [contents[i] for i in speakers]
        meeting.wait()
        return told

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "index", lambda: here.index)
    monkeypatch.setattr(processes, "wait", lambda name: meeting.wait())
    monkeypatch.setattr(processes, "_said", said)

    def call(body):
        raised = [None, None]

        def one(index):
            here.index = index
            try:
                body(index)
            except Exception as error:  # noqa: BLE001 - whatever it is
                raised[index] = error

        threads = [threading.Thread(target=one, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return raised

    return call


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (UserError("a typo"), UserError, "a typo"),
        (TryAgain("taken"), TryAgain, "taken"),
        (DamageError("damaged"), DamageError, "damaged"),
        (PermissionError(errno.EACCES, "Permission denied", "/b"), UserError, "[Errno 13] Permission denied: '/b'"),
        (OSError("Forbidden: b/bucket"), UserError, "Forbidden: b/bucket"),  # of gcsfs
        (ConnectionError("no route"), TryAgain, "no route"),
        (UserError("no folder \ud800\udcff"), UserError, "no folder "),
        (UserError("é" * 5000), UserError, "é" * 2000),
    ],
)
def test_what_process_0_meets_is_raised_in_all(both, error, kind, text):
    def body(index):
        with processes.told_by_first():
            if index == 0:
                raise error

    raised = both(body)
    assert [type(one) for one in raised] == [kind, kind]
    assert all(str(one).startswith(text) for one in raised)


def test_a_fault_of_process_0_is_one_in_all(both):
    def body(index):
        with processes.told_by_first():
            if index == 0:
                raise KeyError("x")

    first, second = both(body)
    assert type(first) is KeyError
    assert type(second) is RuntimeError and str(second) == "process 0 failed: KeyError: 'x'"
    assert both(lambda index: body(1)) == [None, None]


def test_the_others_do_not_begin_where_process_0_failed(both):
    began = []

    def body(index):
        with processes.first_goes_ahead("it"):
            began.append(index)
            if fails:
                raise OSError(errno.EROFS, "Read-only file system", "/d")

    for fails, kinds in ((True, [UserError, UserError]), (False, [type(None), type(None)])):
        began.clear()
        assert [type(one) for one in both(body)] == kinds
        assert began == ([0] if fails else [0, 1])


def test_a_folder_that_process_0_cannot_make_is_told_to_all(both, tmp_path):
    (tmp_path / "file").touch()
    raised = both(lambda index: processes.check_shared(paths.at(tmp_path / "file" / "a"), "--out"))
    assert [type(one) for one in raised] == [UserError, UserError]
    assert all("Not a directory" in str(one) for one in raised)
    assert both(lambda index: processes.check_shared(paths.at(tmp_path / "b"), "--out")) == [None, None]
    assert list((tmp_path / "b").iterdir()) == []


def test_they_agree(both):
    assert both(lambda index: processes.check_same("a", "it")) == [None, None]
    raised = both(lambda index: processes.check_same(f"a{index}", "it"))
    assert [str(one) for one in raised] == [
        f"it is not the same on all processes: [1] differ from 0. Here: a{i}" for i in (0, 1)
    ]
    found = {}
    assert both(lambda index: found.update({index: processes.of_first(f"text {index}")})) == [None, None]
    assert found == {0: "text 0", 1: "text 0"}
    assert both(lambda index: found.update({index: processes.everywhere(True)})) == [None, None]
    assert found == {0: True, 1: True}
    for one in (0, 1):
        assert both(lambda index, one=one: found.update({index: processes.everywhere(index == one)})) == [None, None]
        assert found == {0: False, 1: False}
