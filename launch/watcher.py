"""Keeps a run alive: asks for the slice, starts the training, and after every end that is not the last begins again.

Each round looks at what is there (the queued resource, its hosts, the checkpoints) and takes one step from it, so that a
watcher that was killed goes on where things stand. Whatever fails on the way counts as an attempt and is waited for; whatever
nobody sees is left alone.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field

from ec_dit.cli import MISTAKE
from ec_dit.core.errors import UserError
from launch import gcloud
from launch.clock import Clock
from launch.cloud import Cloud
from launch.job import Job, Report
from launch.journal import Journal
from launch.slices import Slice

DONE, GIVEN_UP = 0, 4


@dataclass(frozen=True)
class Patience:
    """How long a watcher waits for what; times in seconds.

    Attributes:
        poll: between looks.
        backoff, longest_backoff: before another attempt, doubled with each that brought no checkpoint.
        attempts: that may follow each other without a new checkpoint.
        stall: in which a running training must save a checkpoint; 0 = for ever.
        unreachable: for which hosts may not answer while no checkpoint comes, or some may have ended while others go on.
    """

    poll: float = 60
    backoff: float = 30
    longest_backoff: float = 900
    attempts: int = 20
    stall: float = 7200
    unreachable: float = 900


@dataclass
class Watcher:
    """One run on one queued resource.

    Attributes:
        extra: further arguments of gcloud's create.
        clock: the journal's, with whose times it is compared.
        keep: leave the slice when the run ends or is given up.
    """

    cloud: Cloud
    wanted: Slice
    mode: gcloud.Mode
    extra: Sequence[str]
    job: Job
    journal: Journal
    clock: Clock
    patience: Patience = field(default_factory=Patience)
    keep: bool = False
    _state: str = ""
    _phase: tuple[str, float] = ("", 0.0)
    _shipped: str = ""

    def run(self) -> int:
        """Watches to the end; returns DONE, MISTAKE (the run's own) or GIVEN_UP."""
        if (code := self._begin()) is not None:
            return code
        while (code := self._round()) is None:
            self.clock.sleep(self.patience.poll)
        return code

    def _begin(self) -> int | None:
        """Goes on with the story of the journal, or begins one that owes nothing to what other jobs left there."""
        story = self.journal.story(self.job.id)
        if story and story[-1]["event"] == "done":
            self.journal.note("done", "this run has ended before")
            return self._finish(DONE)
        if story and story[-1]["event"] != "given up":
            self.journal.note("watching", f"{self.cloud.tpu.name}, goes on", job=self.job.id)
        else:  # an attempt with a number of its own: how an earlier one ended says nothing of this one
            attempt = int(self.clock.now().timestamp())
            self.journal.note("watching", self.cloud.tpu.name, job=self.job.id, attempt=attempt, step=0, fruitless=0)
        return None

    def _round(self) -> int | None:
        """Looks, and takes one step; the exit code where it was the last."""
        try:
            resource = self.cloud.resource()
        except gcloud.GcloudError as error:  # says nothing of the slice
            if error.permanent:
                return self._give_up(str(error))
            self.journal.note("trouble", str(error))
            return None
        if (state := resource.state if resource else "NONE") != self._state:
            self._state, self._phase = state, ("", 0.0)
            self.journal.note("state", state)
        try:
            if resource is None:
                self._create()
                return None
            if resource.kind and self.wanted.accelerator_type and resource.kind != self.wanted.accelerator_type:
                return self._leave_alone(
                    f"{self.cloud.tpu.name} is a {resource.kind}, not {self.wanted.accelerator_type}"
                )
            if resource.state in gcloud.GONE:
                return self._gone(resource)
            if resource.state == "ACTIVE":
                return self._look_at_hosts()
        except gcloud.GcloudError as error:
            return self._give_up(str(error)) if error.permanent else self._again(str(error))
        except UserError as error:  # of the checkout: its wheel cannot be built
            return self._give_up(str(error))
        return None

    def _create(self) -> None:
        self._ship()  # what is wrong with code or bucket shows before a chip is paid for
        self.journal.note("create", f"{self.wanted.chips} chips, {self.mode}")
        self.cloud.create(self.wanted, self.mode, self.extra)

    def _gone(self, resource: gcloud.Resource) -> int | None:
        """Suspended or failed: what is left holds quota, and never becomes active again."""
        why = resource.error or resource.state
        self.journal.note("delete", why)
        self.cloud.delete()
        return self._give_up(why) if gcloud.is_permanent(resource.error, resource.code) else self._again(why)

    def _look_at_hosts(self) -> int | None:
        self._note_progress()
        try:
            reports = self.cloud.hosts()
        except gcloud.GcloudError as error:
            return self._unreachable(str(error))
        running = [r for r in reports if r.state == "running"]
        if strangers := [r for r in running if r.job.rpartition(".")[0] != self.job.id]:
            return self._leave_alone(f"{strangers[0].host} runs another job, {strangers[0].job}")
        if len(reports) < self.wanted.hosts:
            return self._unreachable(f"{len(reports)} of {self.wanted.hosts} hosts answer")
        if len({r.job for r in running}) == 1 and running[0].job != self._name:
            # Begun by a watcher whose journal is not here.
            self.journal.note("adopt", attempt=int(running[0].job.rpartition(".")[2]))
        if any(r.job != self._name for r in reports):
            self._start()
        elif len(running) == len(reports):
            self._running()
        elif running:  # they end together when one of them does
            if self._lasts("some have ended") >= self.patience.unreachable:
                self.journal.note("stop", f"{len(running)} of {len(reports)} hosts still run")
                self.cloud.stop()
        else:
            return self._ended(reports)
        return None

    def _unreachable(self, why: str) -> int | None:
        """Perhaps the hosts are broken, perhaps the way to them: while checkpoints come nothing is done."""
        self.journal.note("trouble", why)
        if self._lasts(f"unreachable since step {self.journal.last('step', 0)}") < self.patience.unreachable:
            return None
        self.journal.note("delete", "the hosts do not answer, and no checkpoint comes")
        self.cloud.delete()
        return self._again(why)

    @property
    def _name(self) -> str:
        """What hosts call the newest attempt."""
        return self.job.name(self.journal.last("attempt", 0))

    def _ship(self) -> str:
        self._shipped = self._shipped or self.cloud.ship(self.job)
        return self._shipped

    def _start(self) -> None:
        """The next attempt; or the newest again, where that has not begun on all hosts."""
        attempt = self.journal.last("attempt", 0)
        if self.journal.last("started", 0) == attempt and not self._phase[0].startswith("starting"):
            attempt += 1
        self._lasts(f"starting {attempt}")
        self.journal.note("start", attempt=attempt)
        self.cloud.start(self._ship(), self._name)
        self.journal.note("started", started=attempt)

    def _running(self) -> None:
        self._lasts("running")
        marks = [e for e in self.journal.events if e["event"] in ("saved", "started", "adopt")]
        quiet = self.clock.now() - dt.datetime.fromisoformat(marks[-1]["time"]) if marks else dt.timedelta()
        if self.patience.stall and quiet.total_seconds() >= self.patience.stall:
            self.journal.note("stop", f"no checkpoint in {self.patience.stall / 60:g} minutes")
            self.cloud.stop()

    def _ended(self, reports: Sequence[Report]) -> int | None:
        self._note_progress()
        codes = {r.code for r in reports}
        if codes == {str(DONE)}:
            self.journal.note("done")
            return self._finish(DONE)
        odd = next(r for r in reports if r.code != str(DONE))
        self.journal.note("log", self._last_lines())
        if codes == {str(MISTAKE)}:
            self._give_up("the run ended with a mistake that only you can mend; its last lines are above")
            return MISTAKE
        code = self._again(f"hosts ended with {', '.join(sorted(codes))}, such as {odd.host}")
        if code is None:
            self._start()
        return code

    def _last_lines(self) -> str:
        try:
            return "\n" + self.cloud.log()
        except UserError as error:
            return str(error)

    def _note_progress(self) -> None:
        """Notes the newest checkpoint, if it is newer than what was known; what cannot be told changes nothing."""
        try:
            step = self.cloud.saved_step(self.job.workdir) or 0
        except gcloud.GcloudError as error:
            self.journal.note("trouble", str(error))
            return
        if step > self.journal.last("step", 0):
            self.journal.note("saved", step=step, fruitless=0)

    def _again(self, why: str) -> int | None:
        """Counts an attempt that ended, and waits before the next."""
        self._note_progress()
        self._phase = ("", 0.0)
        fruitless = self.journal.last("fruitless", 0) + 1
        self.journal.note("ended", why, fruitless=fruitless)
        if fruitless > self.patience.attempts:
            return self._give_up(
                f"{self.patience.attempts} attempts without a new checkpoint, the last: {why}. See python -m launch.logs "
                f"--saved --workdir={self.job.workdir}; raise --max_attempts to go on."
            )
        self.clock.sleep(min(self.patience.longest_backoff, self.patience.backoff * 2 ** (fruitless - 1)))
        return None

    def _lasts(self, phase: str) -> float:
        """Seconds for which look after look has found the same phase."""
        if self._phase[0] != phase:
            self._phase = (phase, self.clock.monotonic())
        return self.clock.monotonic() - self._phase[1]

    def _give_up(self, why: str) -> int:
        self.journal.note("given up", why)
        return self._finish(GIVEN_UP)

    def _leave_alone(self, why: str) -> int:
        self.journal.note(
            "given up", f"{why}: give this run another --name, or delete that one with python -m launch.delete."
        )
        return GIVEN_UP

    def _finish(self, code: int) -> int:
        """Deletes the slice: a request that is left in the queue would be granted and paid for when nobody looks."""
        if not self.keep:
            try:
                self.cloud.delete()
            except UserError as error:
                self.journal.note(
                    "warning",
                    f"{self.cloud.tpu.name} may still be there and be PAID FOR: {error} Do it: python -m launch.delete.",
                )
        return code
