"""Models put behind HTTP on the Ray this process is connected to, kept at their aliases, and taken down again."""

from collections.abc import Sequence

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import LoggingConfig

from kinfolk.contract import Model
from kinfolk.errors import ConfigError, KinfolkError
from kinfolk.serving.access import Access
from kinfolk.serving.config import MODELS, ServedModel, ServeFile, Shared
from kinfolk.serving.replica import (
    DIRECTORY,
    SHARED,
    DirectoryReplica,
    SamplingReplica,
    SharedReplica,
    application_name,
)
from kinfolk.serving.shared import bytes_in, bytes_of, check_fits
from kinfolk.serving.versions import Registry, Release, load, locate

__all__ = [
    "Registry",
    "Release",
    "ServingError",
    "serve_models",
    "stop_serving",
]

_HEALTH_CHECK_S = 2.0  # between two looks at a replica
_ROOT_REQUESTS = 1000  # replicas that wait to hear of aliases are among them
_LOOK_BACK_S = 11.0  # in which requests under way are averaged; Serve wants more than its 10 s between two reports


class ServingError(KinfolkError):
    """Serve did not bring up, or lost, what was asked of it."""


def check_idle() -> None:
    """Refuse a Ray that serves already: its address could not be changed, and its models would be lost.

    Raises:
        ConfigError: Serve runs on this Ray.
    """
    if serve.status().proxies:
        raise ConfigError("This Ray serves models already. Stop that first (stop_serving), or use another Ray.")


def check_room(file: ServeFile) -> None:
    """Refuse more replicas than the cluster can hold, where Serve would wait for ever.

    Raises:
        ConfigError: with what is wanted and what the cluster has.
    """
    resources = ray.cluster_resources()
    for kind, setting in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        need = sum(getattr(model, setting) * max(model.autoscaling.min_replicas, 1) for model in file.own)
        need += 0 if file.shared is None else getattr(file.shared, setting)
        have = resources.get(kind, 0)
        if need > have:
            raise ConfigError(
                f"The {len(file.models)} models of the serve file want {need:g} {kind}s to start; the cluster has "
                f"{have:g}. Lower {setting} or min_replicas, or serve fewer models."
            )


def _looked_at(served: ServedModel, release: Release) -> Model:
    """The model on the CPU: where replicas have a GPU, this machine need not."""
    return load(served.model_copy(update={"num_gpus": 0.0}), release)


def _logging(file: ServeFile) -> LoggingConfig:
    """Lines of JSON; Serve puts the X-Request-ID into those of a request, which it also gives and answers with."""
    return LoggingConfig(encoding="JSON", enable_access_log=file.access_log)


def _replicas_logging(file: ServeFile) -> LoggingConfig:
    """The same. Below WARNING a replica of Serve's says little else than what it was asked.

    It makes that line up for each request even where nobody wants it. What the platform says is logged in any case.
    """
    return LoggingConfig(
        encoding="JSON", enable_access_log=file.access_log, log_level="INFO" if file.access_log else "WARNING"
    )


def _deployment(
    replica: type, settings: ServedModel | Shared, file: ServeFile, scaling: AutoscalingConfig | None = None
) -> serve.Deployment:
    return serve.deployment(
        serve.ingress()(replica),
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_ongoing_requests,
        autoscaling_config=scaling,
        max_surge_percent=100,  # a new replica answers before the old one goes
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        health_check_period_s=_HEALTH_CHECK_S,
        logging_config=_replicas_logging(file),
    )


def _application(
    served: ServedModel, file: ServeFile, registry: Registry | None, access: Sequence[Access]
) -> serve.Application:
    scale = served.autoscaling
    scaling = AutoscalingConfig(
        min_replicas=scale.min_replicas,
        initial_replicas=max(scale.min_replicas, 1),
        max_replicas=scale.max_replicas,
        upscale_delay_s=scale.upscale_delay_s,
        downscale_delay_s=scale.downscale_delay_s,
        downscale_to_zero_delay_s=scale.sleep_delay_s,
        look_back_period_s=_LOOK_BACK_S,
        policy=AutoscalingPolicy(
            policy_function="kinfolk.serving.autoscaling:ByWork",
            policy_kwargs={"target_queue_s": scale.target_queue_s, "target_busy": scale.target_busy},
        ),
    )
    return _deployment(SamplingReplica, served, file, scaling).bind(served, registry, access, file.cors_origins)


def _shared(file: ServeFile, registry: Registry | None, access: Sequence[Access]) -> serve.Application:
    shared = file.shared
    assert shared is not None
    return _deployment(SharedReplica, shared, file).bind(shared, file.sharing, registry, access, file.cors_origins)


def _directory(file: ServeFile, registry: Registry | None, access: Sequence[Access]) -> serve.Application:
    return serve.deployment(
        serve.ingress()(DirectoryReplica),
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_ROOT_REQUESTS,
        logging_config=_replicas_logging(file),
    ).bind(file.models, registry, access, file.cors_origins)


def serve_models(
    file: ServeFile, registry: Registry | None = None, access: Sequence[Access] = ()
) -> dict[str, Release]:
    """Bring up every model of the serve file at its host and port, and return the version each path serves.

    Everything is looked at before anything is started. Ray must be connected, with ``haproxy_environment`` set before
    it was started if HAProxy shall stand in front.

    Raises:
        ConfigError: the cluster is too small, or serves already.
        KinfolkError: a model cannot be had or served.
        ServingError: a replica did not start.
    """
    assert ray.is_initialized()
    check_idle()
    check_room(file)
    releases = {model.path: locate(model, registry) for model in file.models}
    for model in file.own:
        _looked_at(model, releases[model.path])
    for model in file.sharing:
        assert file.shared is not None
        release = releases[model.path]
        check_fits(file.shared, model.name, bytes_in(release.folder))
        check_fits(file.shared, model.name, bytes_of(_looked_at(file.shared.settled(model), release)))
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": file.host, "port": file.port},
        logging_config=_logging(file),
    )
    targets = [
        serve.RunTarget(_application(model, file, registry, access), application_name(model), model.path)
        for model in file.own
    ]
    if file.shared is not None:
        targets.append(serve.RunTarget(_shared(file, registry, access), SHARED, MODELS))
    try:
        serve.run_many([*targets, serve.RunTarget(_directory(file, registry, access), DIRECTORY, "/")])
    except RuntimeError as error:
        serve.shutdown()
        raise ServingError(f"The models did not come up: {error}") from None
    return releases


def stop_serving() -> None:
    """Take every endpoint down; requests being sampled are finished first."""
    serve.shutdown()
