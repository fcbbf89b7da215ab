"""Keeps a run alive: asks for the slice, starts the training, and after every end that is not the last begins again.

Each round looks at what is there (the queued resource, its hosts, the checkpoints) and takes one step from it, so that a
watcher that was killed goes on where things stand.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ec_dit.core.errors import UserError
from launch import gcloud, job
from launch.cloud import Cloud
from launch.journal import Journal
from launch.slices import Slice

DONE, MISTAKE, STOPPED = (
    0,
    2,
    75,
)  # exit codes of ec_dit.main: finished; what a user must mend; told to stop, to be gone on with
GIVEN_UP = 4


@dataclass(frozen=True)
class Patience:
    """How long a watcher waits for what; times in seconds.

    Attributes:
        poll: between looks.
        backoff, longest_backoff: before another attempt, doubled with each that brought no checkpoint.
        attempts: that may follow each other without a new checkpoint.
        stall: in which a running training must save a checkpoint; 0 = for ever.
        unreachable: for which hosts may not answer, or some may have ended while others go on.
    """

    poll: float = 30
    backoff: float = 30
    longest_backoff: float = 900
    attempts: int = 20
    stall: float = 7200
    unreachable: float = 600


@dataclass
class Watcher:
    """One run on one queued resource.

    Attributes:
        extra: further arguments of gcloud's create.
        keep: leave the slice when the run ends or is given up.
    """

    cloud: Cloud
    wanted: Slice
    mode: str
    extra: Sequence[str]
    job: job.Job
    journal: Journal
    patience: Patience = field(default_factory=Patience)
    keep: bool = False
    sleep: Callable[[float], None] = time.sleep
    _state: str = ""
    _since: dict[str, float] = field(default_factory=dict)

    def run(self) -> int:
        """Watches to the end; returns DONE, MISTAKE (the run's own) or GIVEN_UP."""
        self.journal.note("watching", f"{self.cloud.tpu.name} for {self.job.id}")
        while (code := self._round()) is None:
            self.sleep(self.patience.poll)
        return code

    def _round(self) -> int | None:
        """Looks, and takes one step; the exit code where it was the last."""
        try:
            resource = self.cloud.resource()
            if (state := resource.state if resource else "NONE") != self._state:
                self._state = state
                self.journal.note("state", state)
            if state != "ACTIVE":
                self._since.pop("trouble", None)
            if resource is None:
                return self._create()
            if resource.state in gcloud.GONE:
                return self._gone(resource)
            if resource.state == "ACTIVE":
                return self._look_at_hosts()
        except gcloud.GcloudError as error:
            return self._trouble(error)
        return None

    def _create(self) -> int | None:
        self.journal.note("create", f"{self.wanted.chips} chips, {self.mode}")
        try:
            self.cloud.create(self.wanted, self.mode, self.extra)
        except gcloud.GcloudError as error:
            if error.permanent:
                return self._give_up(str(error))
            return self._again(str(error))
        return None

    def _gone(self, resource: gcloud.Resource) -> int | None:
        """Suspended or failed: what is left holds quota, and never becomes active again."""
        self.journal.note("delete", resource.error or resource.state)
        self.cloud.delete()
        if gcloud.is_permanent(resource.error):
            return self._give_up(f"the queued resource failed: {resource.error}", delete=False)
        return self._again(resource.error or resource.state)

    def _look_at_hosts(self) -> int | None:
        reports = self.cloud.hosts()
        if len(reports) < self.wanted.hosts:
            raise gcloud.GcloudError(["ssh"], 0, f"{len(reports)} of {self.wanted.hosts} hosts answer")
        self._since.pop("trouble", None)
        running = [r for r in reports if r.state == "running"]
        if strangers := [r for r in running if r.job.rpartition(".")[0] != self.job.id]:
            return self._give_up(
                f"{strangers[0].host} runs another job, {strangers[0].job}: stop it (python -m launch.delete), or give this "
                f"run another --name.",
                delete=False,
            )
        if len({r.job for r in running}) == 1 and running[0].job != self._name:
            # Begun by a watcher whose journal is not here.
            self.journal.note("adopt", attempt=int(running[0].job.rpartition(".")[2]))
        attempted = [r for r in reports if r.job == self._name]
        if len(attempted) < len(reports):
            self._start(again=bool(attempted))
        elif len(running) == len(reports):
            self._since.pop("halves", None)
            self._running()
        elif running:  # they end together when one of them does
            if self._lasts("halves", self.patience.unreachable):
                self.journal.note("stop", f"{len(running)} of {len(reports)} hosts still run")
                self.cloud.stop()
        else:
            self._since.pop("halves", None)
            return self._ended({r.code for r in reports})
        return None

    @property
    def _name(self) -> str:
        """What hosts call the newest attempt."""
        return self.job.name(self.journal.last("attempt", 0))

    def _start(self, again: bool = False) -> None:
        """A new attempt; or the same again, where not all hosts have begun it."""
        attempt = self.journal.last("attempt", 0) + (not again)
        self.journal.note("start", attempt=attempt)
        self._since.pop("stalled", None)
        self.cloud.start(self.job, attempt)

    def _running(self) -> None:
        if self._progress():
            self._since.pop("stalled", None)
        if self.patience.stall and self._lasts("stalled", self.patience.stall):
            self.journal.note("stop", f"no checkpoint in {self.patience.stall / 60:g} minutes")
            self._since.pop("stalled", None)
            self.cloud.stop()

    def _ended(self, codes: set[str]) -> int | None:
        self._progress()
        if codes == {str(DONE)}:
            self.journal.note("done", step=self.journal.last("step", 0))
            if not self.keep:
                self.cloud.delete()
            return DONE
        if codes != {str(STOPPED)}:
            self.journal.note("log", "\n" + self.cloud.log())
        if str(MISTAKE) in codes:
            self._give_up("the run ended with a mistake that only you can mend; its last lines are above")
            return MISTAKE
        if (code := self._again(f"hosts ended with {', '.join(sorted(codes))}")) is None:
            self._start()
        return code

    def _progress(self) -> bool:
        """Notes the newest checkpoint; whether it is newer than what was known."""
        step = self.cloud.saved_step(self.job.workdir) or 0
        if step <= self.journal.last("step", 0):
            return False
        self.journal.note("saved", step=step, fruitless=0)
        return True

    def _again(self, why: str) -> int | None:
        """Counts an attempt that ended, and waits before the next."""
        self._progress()
        fruitless = self.journal.last("fruitless", 0) + 1
        self.journal.note("ended", why, fruitless=fruitless)
        if fruitless > self.patience.attempts:
            return self._give_up(
                f"{self.patience.attempts} attempts without a new checkpoint, the last: {why}. See python -m launch.logs "
                f"--saved --workdir={self.job.workdir}; raise --max_attempts to go on."
            )
        self.sleep(min(self.patience.longest_backoff, self.patience.backoff * 2 ** (fruitless - 1)))
        return None

    def _trouble(self, error: gcloud.GcloudError) -> int | None:
        """gcloud failed: a passing error, hosts that do not answer, or something that only a user can mend."""
        if error.permanent:
            return self._give_up(str(error), delete=False)
        self.journal.note("trouble", str(error))
        if not self._lasts("trouble", self.patience.unreachable):
            return None
        self._since.pop("trouble")
        if self._state == "ACTIVE":  # hosts that are broken: a new slice has others
            self.journal.note("delete", "the hosts do not answer")
            self.cloud.delete()
        return self._again(str(error))

    def _lasts(self, what: str, seconds: float) -> bool:
        """Whether something, seen now, has been seen for `seconds`."""
        return time.monotonic() - self._since.setdefault(what, time.monotonic()) >= seconds

    def _give_up(self, why: str, delete: bool = True) -> int:
        """Stops; a request that is left in the queue would be granted and paid for when nobody looks."""
        if delete and not self.keep:
            try:
                self.cloud.delete()
            except UserError as error:
                why += f" The queued resource could not be deleted: {error} Do it: python -m launch.delete."
        self.journal.note("given up", why)
        return GIVEN_UP
