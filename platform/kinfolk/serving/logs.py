"""Where lines of the platform go that are logged inside a replica: into the same file, in the same form, as Serve's."""

import logging


class _AsServe(logging.Handler):
    """Has Serve's handlers write a line, and at once: for speed they keep a thousand lines, or until an error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the line on; Serve's handlers add the name of the request."""
        for handler in logging.getLogger("ray.serve").handlers:
            handler.handle(record)
            handler.flush()


def log_as_serve() -> None:
    """Let what the platform logs, INFO and above, be written as Serve writes its own lines; once in a process."""
    ours = logging.getLogger("kinfolk")
    ours.addHandler(_AsServe())
    ours.setLevel(logging.INFO)
    ours.propagate = False
