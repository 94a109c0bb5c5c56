"""From files and folders to one checked Model, or to every mistake in them."""

from collections.abc import Generator, Sequence

from l7proxy.config.model import Admin, Health, Inbound, Metrics, Model, Outbound, Resource, Sidecar


def load(paths: Sequence[str]) -> Model:
    """Returns the model that the YAML files (and the `*.yaml`, `*.yml` files of folders) at `paths` describe.

    Raises ConfigError with every problem of every file.
    """
    steps = load_steps(paths)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            model: Model = done.value
            return model


def load_steps(paths: Sequence[str]) -> Generator[None, None, Model]:
    """Does the work of `load` in steps of less than a millisecond, so that an event loop can serve between them."""
    raise NotImplementedError
    yield


def app_model(app: str) -> Model:
    """Returns the model of `l7proxy run --app URL`: every listener at its default, all requests to the application."""
    sidecar = Sidecar(
        inbound=Inbound(app=app),
        outbound=Outbound(policy="ALLOW_ANY"),
        admin=Admin(),
        metrics=Metrics(),
        health=Health(),
    )
    return Model(sidecar=Resource(kind="Sidecar", name="sidecar", spec=sidecar), version="app")
