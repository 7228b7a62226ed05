"""What the scripts that measure have in common."""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from kinfolk.errors import KinfolkError

Arguments = ParamSpec("Arguments")


def plain_mistakes(main: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """``main``, ending a mistake of its user with one paragraph and exit code 1 in place of a traceback."""

    @wraps(main)
    def plainly(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            main(*args, **kwargs)
        except KinfolkError as error:
            sys.exit(f"{Path(sys.argv[0]).stem}: {error}")

    return plainly
