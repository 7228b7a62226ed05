"""A clean stop by signal: the first one asks for it, the second is the ordinary one."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def first_signal(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` on the first SIGINT or SIGTERM inside the block; handlers are as before afterwards.

    Python takes signals in the main thread alone, so in others nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(_number: int, _frame: FrameType | None) -> None:
        restore()
        stop()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
