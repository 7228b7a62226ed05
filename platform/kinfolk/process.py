"""What a process that computes sets before it does."""

import ctypes

# Parameters of mallopt, https://man7.org/linux/man-pages/man3/mallopt.3.html, and what each is set to, in bytes.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP_ALL, _GROW_BY, _FROM_THE_HEAP = 2**31 - 1, 2**28, 2**30


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees for its next tensors. -> whether its C library is glibc and does

    By default glibc gives the activations of a step back to the system and fetches them anew in the next, page by
    page. The process keeps its peak until it ends. On a GPU, where torch keeps its own, little changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or none to be asked
        return False
    settings = {_M_TRIM_THRESHOLD: _KEEP_ALL, _M_TOP_PAD: _GROW_BY, _M_MMAP_THRESHOLD: _FROM_THE_HEAP}
    return {mallopt(what, value) for what, value in settings.items()} == {1}
