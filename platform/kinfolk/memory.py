"""How this process keeps the memory that it frees."""

import ctypes

# Parameters of mallopt, https://man7.org/linux/man-pages/man3/mallopt.3.html.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
_LARGEST_OF_HEAP = (2**30, 2**25)  # bytes; older versions of glibc take 32 MiB at most, as the man page says


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees for its next tensors. -> whether its C library is glibc and does

    By default glibc gives the activations of a step back to the system and fetches them anew in the next, page by
    page. The process then holds its peak, and more where that falls to pieces, until it ends. In threads other than the
    main one tensors of 64 MiB and more are fetched anew all the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or none to be asked
        return False
    if not any(mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in _LARGEST_OF_HEAP):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _NEVER) == 1)
