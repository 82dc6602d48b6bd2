"""Every Redis key of posthouse, one function each. These names are stored: they are for ever."""

DUE = "due"
QUEUE = "arq:queue"
WAKE = "queue:wake"
SWEEP = "sweep"
COUNTER = "queue:counter"
DRAINED = "queue:drained"
WORKERS = "workers"
HELD = "held"
SCHEDULES = "schedules"
LATER = "later"

ARQ_PREFIXES = ("arq:job:", "arq:in-progress:", "arq:retry:")


def run(run_id: str) -> str:
    """Hash: the run record."""
    return f"run:{run_id}"


def journal(run_id: str) -> str:
    """Hash: step key -> outcome."""
    return f"run:{run_id}:journal"


def starts(run_id: str) -> str:
    """Hash: step key -> epoch in which it was started and not yet committed; `intent:<step key>` -> effect begun."""
    return f"run:{run_id}:starts"


def events(run_id: str) -> str:
    """Stream: the event log; also the name of the pub/sub channel of this run."""
    return f"run:{run_id}:events"


def blob(run_id: str, digest: str) -> str:
    """String: an outcome too large for the journal."""
    return f"run:{run_id}:blob:{digest}"


def blobs(run_id: str) -> str:
    """Set: digests of the run's blobs."""
    return f"run:{run_id}:blobs"


def waits(run_id: str) -> str:
    """Hash: step key -> what it waits for."""
    return f"run:{run_id}:waits"


def archive(run_id: str) -> str:
    """Hash: number of the retry and step key -> the outcome that the retry set aside."""
    return f"run:{run_id}:archive"


def inputs(run_id: str) -> str:
    """Hash: input request -> its state, times, step and JSON; `<input request>:answer` -> what was answered."""
    return f"run:{run_id}:inputs"


def open_inputs(root_id: str) -> str:
    """Set: the open input requests of a tree."""
    return f"run:{root_id}:open_inputs"


def budget(root_id: str) -> str:
    """Hash: limits of a tree, what was spent, what is reserved for calls in flight; only where there are limits."""
    return f"run:{root_id}:budget"


def inbox(tenant: str) -> str:
    """Zset of open input requests, score 0, so ordered by the run's ULID."""
    return f"inputs:{tenant}"


def tree(root_id: str) -> str:
    """Set: ids of all descendants of a root."""
    return f"run:{root_id}:tree"


def prompts(root_id: str) -> str:
    """Hash: prompt name -> version and text that this tree is pinned to."""
    return f"run:{root_id}:prompts"


def idempotency(tenant: str, key: str) -> str:
    """Hash: fingerprint and first answer of a keyed request."""
    return f"idempotency:{tenant}:{key}"


def index(tenant: str, status: str | None = None) -> str:
    """Zset of run ids, score 0, so ordered by ULID: all of a tenant, those of one status, or the `dead` ones."""
    return f"index:{tenant}" if status is None else f"index:{tenant}:{status}"


def worker(worker_id: str) -> str:
    """Hash with a TTL: a worker's health."""
    return f"worker:{worker_id}"


def lost(worker_id: str) -> str:
    """Channel: runs, with their fences, that this worker owns no more."""
    return f"worker:{worker_id}:lost"


def held(workflow: str, version: str) -> str:
    """Zset: queue entries that no worker of this fleet could read yet."""
    return f"held:{workflow}:{version}"


def claims(claim_id: str) -> str:
    """List with a TTL: the runs that one claim call got, so that a repeated call gets them again."""
    return f"claims:{claim_id}"


def endpoint(digest: str) -> str:
    """Hash with a TTL: the breaker of a model's endpoint; there only while something is wrong with it."""
    return f"endpoint:{digest}"


def pace(digest: str) -> str:
    """Hash with a TTL: how fast an endpoint, or one model of it, is asked, and how fast it may be."""
    return f"pace:{digest}"


def schedule(schedule_id: str) -> str:
    """Hash: a schedule, its next slot and what came of the last one."""
    return f"schedule:{schedule_id}"


def schedules_of(tenant: str) -> str:
    """Zset of schedule ids, score 0, so ordered by ULID."""
    return f"schedules:{tenant}"
