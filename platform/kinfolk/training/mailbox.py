"""The actor between worker 0 and the driver; its process loads neither torch nor a family."""

from typing import Any


class Mailbox:
    """Reports on their way from worker 0 to the driver, and the driver's wish to stop on its way back."""

    def __init__(self) -> None:
        self._reports: list[dict[str, Any]] = []
        self._stop = False

    def put(self, report: dict[str, Any]) -> bool:
        """Leave a report; answers whether the driver wants training to stop."""
        self._reports.append(report)
        return self._stop

    def drain(self) -> list[dict[str, Any]]:
        """Reports since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def stop(self) -> None:
        """Ask training to stop at its next report."""
        self._stop = True
