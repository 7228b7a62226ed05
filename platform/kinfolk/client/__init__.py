"""Asking served models from Python, with neither torch nor Ray.

    from kinfolk.client import Client

    with Client("http://127.0.0.1:8000") as client:
        drawn = client.model("digits-edm").sample(n=4, seed=0, label=3, steps=20)
        drawn.images[0].save("three.png")

``AsyncClient`` is the same to be awaited. Both are thin: a request (``calls``), what came back (``answers``,
``records``, ``errors``) and whether to ask again (``retries``) are pure functions.
"""

from kinfolk.client.answers import Preview, Result
from kinfolk.client.asynchronous import AsyncClient, AsyncModel
from kinfolk.client.blocking import Client, Model
from kinfolk.client.errors import ClientError, FaultError, NoAnswerError, OverloadedError, RefusedError
from kinfolk.client.records import Data, ModelRecord, TaskRecord
from kinfolk.client.retries import Retries

__all__ = [
    "AsyncClient",
    "AsyncModel",
    "Client",
    "ClientError",
    "Data",
    "FaultError",
    "Model",
    "ModelRecord",
    "NoAnswerError",
    "OverloadedError",
    "Preview",
    "RefusedError",
    "Result",
    "Retries",
    "TaskRecord",
]
