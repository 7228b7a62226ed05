"""What a task needs of its request beside the seeds. N samples asked."""

from collections.abc import Sequence

from torch import Tensor

from kinfolk.contract import RequestError, SampleRequest

_OF_A_SAMPLE = ("x", "mask")  # their rows have the shape of the data; those of all else are numbers


def check_given(request: SampleRequest, shape: Sequence[int], *names: str) -> None:
    """Refuse a request without one of ``names``, or with one that is not of each row's; ``shape`` is the data's.

    Raises:
        RequestError: ``field`` names it.
    """
    for name in names:
        value, wanted = getattr(request, name), (len(request.seeds), *(shape if name in _OF_A_SAMPLE else ()))
        if value is None or tuple(value.shape) != wanted:
            got = "nothing" if value is None else f"shape {tuple(value.shape)}"
            raise RequestError(name, f"{name}: this task needs one for each row, {wanted}, got {got}.")


def given_elements(request: SampleRequest, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The sample to complete, and where it is given, on the CPU. -> (N, *shape), (N, *shape) bool

    Raises:
        RequestError: one of the two is missing, or of another shape.
    """
    check_given(request, shape, "x", "mask")
    assert request.x is not None
    assert request.mask is not None
    return request.x.cpu(), request.mask.bool().cpu()


def check_draws(draws: int) -> None:
    """Refuse a bound of no draws.

    Raises:
        RequestError: ``field`` is draws.
    """
    if draws < 1:
        raise RequestError("draws", f"draws={draws}: a bound takes 1 or more.")
