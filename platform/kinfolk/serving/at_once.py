"""Tasks that give something for each row of a batch in one go, called for rows of many requests together."""

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

from kinfolk.contract import Batch
from kinfolk.serving.rows import Job, RowRequest

Share = Mapping[Job, int]  # requests for such a task, and how many of their rows


def _next_rows(job: Job, rows: int) -> RowRequest:
    assert isinstance(job.request, RowRequest)
    return job.request.part(slice(job.started, job.started + rows))


def groups(share: Share, alike: Callable[[Job], Hashable]) -> list[Share]:
    """The same by what is equal in ``alike``, which may share a call or a start."""
    found: dict[Hashable, dict[Job, int]] = {}
    for job, rows in share.items():
        found.setdefault(alike(job), {})[job] = rows
    return list(found.values())


def together(job: Job) -> Hashable:
    """Jobs in which this is equal may share a call."""
    assert isinstance(job.request, RowRequest)
    return job.request.together


def results(share: Share, device: torch.device | str) -> list[tuple[Job, int, Tensor]]:
    """One call of a task for the next rows of each request: whose, which of its rows, and what it got.

    Raises whatever the task does, and a ValueError where it gives more or fewer rows than it was given.
    """
    parts = [_next_rows(job, rows) for job, rows in share.items()]
    labels = [part.label for part in parts if part.label is not None]
    batch = Batch(torch.cat([part.x for part in parts]), torch.cat(labels) if labels else None)
    out = parts[0].task(batch.to(device), torch.cat([part.seeds for part in parts])).cpu()
    owners = [(job, row) for job, rows in share.items() for row in range(job.started, job.started + rows)]
    return [(job, row, value) for (job, row), value in zip(owners, out, strict=True)]
