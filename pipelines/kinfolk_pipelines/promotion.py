"""When a version becomes champion."""

from kinfolk.tracking.promotion import Promotion, PromotionRule, promote
from kinfolk_pipelines.models import version_number
from kinfolk_pipelines.settings import Settings

RULE = PromotionRule(metric="fd_local", better="lower", rests_on=("classes", "samples", "options", "features"))


def promote_version(settings: Settings, name: str, version: str, force_because: str | None = None) -> Promotion:
    """Apply the rule to ``NAME VERSION`` and carry the decision out.

    Raises:
        RegistryError: there is no such model or version.
    """
    number = version_number(settings, name, version)
    return promote(settings.tracking, name, number, RULE, force_because)
