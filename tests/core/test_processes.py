"""Where a process stands among several, read from flags, variables and SLURM's environment."""

import pytest

from ec_dit.core import processes
from ec_dit.core.errors import UserError
from ec_dit.core.processes import Place, find

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
