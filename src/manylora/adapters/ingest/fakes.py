"""An ingest whose loads and reads end only when, and as, the test says."""

from manylora.adapters.jobs import Found, Ingested, IngestFailure, IngestJob, Job, LocateJob, Outcome
from manylora.adapters.packing.image import ImageFacts
from manylora.adapters.sources.source import Located
from manylora.errors import ManyloraError


class ManualIngest:
    """An `Ingest` whose jobs wait in `jobs` for `finish` or `fail`."""

    def __init__(self) -> None:
        self.jobs: dict[int, IngestJob] = {}
        self.searches: dict[int, LocateJob] = {}
        self.num_submitted = 0  # loads submitted
        self._ended: list[Outcome] = []

    def submit(self, job: Job) -> None:
        if isinstance(job, LocateJob):
            self.searches[job.number] = job
            return
        self.jobs[job.number] = job
        self.num_submitted += 1

    def find(self, number: int, located: Located) -> None:
        """End a search with a version found."""
        del self.searches[number]
        self._ended.append(Found(number, located))

    def finish(self, number: int, facts: ImageFacts) -> None:
        """End a job with an image of these facts; no file is written."""
        del self.jobs[number]
        self._ended.append(Ingested(number, facts, 0, (), {}))

    def fail(self, number: int, error: ManyloraError) -> None:
        del (self.jobs if number in self.jobs else self.searches)[number]
        self._ended.append(IngestFailure(number, error))

    def abandon(self, number: int) -> None:
        self.jobs.pop(number, None)
        self.searches.pop(number, None)
        self._ended = [outcome for outcome in self._ended if outcome.number != number]

    @property
    def is_busy(self) -> bool:
        return bool(self.jobs or self.searches or self._ended)

    def poll(self) -> list[Outcome]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        self.jobs.clear()
        self.searches.clear()
