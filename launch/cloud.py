"""What a queued resource, its hosts and its bucket say, asked through gcloud."""

import re
from collections.abc import Sequence

from launch import gcloud, job
from launch.slices import Slice

_MARK = "commit_success.txt"  # Orbax writes it last, in a bucket
_FINISHED = re.compile(rf"/checkpoints/(\d+)/{re.escape(_MARK)}$")


class Cloud:
    """One queued resource."""

    def __init__(self, tpu: gcloud.Tpu, run: gcloud.Runner):
        self.tpu, self._run = tpu, run

    def resource(self) -> gcloud.Resource | None:
        """Its state; None if there is none.

        Raises:
            GcloudError: if that cannot be told, which does not mean that it is gone.
        """
        try:
            text = self._run(self.tpu.describe())
        except gcloud.GcloudError as error:
            if error.missing:
                return None
            raise
        return gcloud.parse_resource(text) if text else None

    def create(self, wanted: Slice, mode: gcloud.Mode, extra: Sequence[str]) -> None:
        """Asks for it."""
        self._run(self.tpu.create(wanted, mode, extra), timeout=1900)

    def delete(self) -> bool:
        """Gives it back; False if it is gone already."""
        try:
            self._run(self.tpu.delete(), timeout=1900)
        except gcloud.GcloudError as error:
            if not error.missing:
                raise
            return False
        return True

    def hosts(self) -> list[job.Report]:
        """What its hosts say of their jobs."""
        return job.parse_reports(self._run(self.tpu.ssh(job.host_command("status"))))

    def ship(self, wanted: job.Job) -> str:
        """Copies what hosts need to the bucket; returns the folder."""
        return job.ship(wanted, self._run)

    def start(self, folder: str, name: str) -> str:
        """Starts a shipped job on all hosts, by the name of this attempt; returns what they say."""
        return self._run(self.tpu.ssh(job.start_command(folder, name)), timeout=1200)

    def stop(self) -> None:
        """Stops what runs on the hosts, with a checkpoint where it still can save one."""
        self._run(self.tpu.ssh(job.host_command("stop")), timeout=600)

    def log(self, lines: int = 20) -> str:
        """The last lines of the first host."""
        return self._run(self.tpu.ssh(job.host_command("log", str(lines)), "0"))

    def names(self, pattern: str) -> set[str]:
        """Objects in a bucket that match."""
        try:
            return set(self._run(gcloud.storage_list(pattern)).split())
        except gcloud.GcloudError as error:
            if error.missing:
                return set()
            raise

    def saved_step(self, workdir: str) -> int | None:
        """The newest finished checkpoint of a run."""
        found = self.names(f"{workdir.rstrip('/')}/checkpoints/*/{_MARK}")
        return max((int(m[1]) for name in found if (m := _FINISHED.search(name))), default=None)
