"""What stands in place of values of the Sidecar document: the handful of things that differ from pod to pod."""

from typing import Any

from msgspec import Struct, structs

from l7proxy.config.model import AccessLog, Admin, Health, Inbound, Metrics, Outbound, Resource, Sidecar, Tracing


class Overrides(Struct, frozen=True):
    """Each value that is not None is taken in place of what the YAML says, or where it says nothing."""

    app: str | None = None
    service: str | None = None
    namespace: str | None = None
    mesh: str | None = None
    otlp: str | None = None
    workers: int | None = None

    def over(self, sidecar: Resource[Sidecar]) -> Resource[Sidecar]:
        """Returns the document with these values; the same one when there are none."""
        spec = sidecar.spec
        named = {"name": self.service, "namespace": self.namespace, "mesh": self.mesh}
        changes: dict[str, Any] = {}
        if given := {key: value for key, value in named.items() if value is not None}:
            changes["service"] = structs.replace(spec.service, **given)
        if self.app is not None:
            changes["inbound"] = structs.replace(spec.inbound or Inbound(), app=self.app)
        if self.otlp is not None:
            changes["tracing"] = structs.replace(spec.tracing or Tracing(), otlp=self.otlp)
        if self.workers is not None:
            changes["workers"] = self.workers
        return structs.replace(sidecar, spec=structs.replace(spec, **changes)) if changes else sidecar

    def alone(self) -> Resource[Sidecar]:
        """Returns the document that stands for none: every listener and the access log at their defaults, any host may
        be called."""
        spec = Sidecar(
            inbound=Inbound(),
            outbound=Outbound(policy="ALLOW_ANY"),
            admin=Admin(),
            metrics=Metrics(),
            health=Health(),
            access_log=AccessLog(),
        )
        return self.over(Resource("Sidecar", "sidecar", spec))


NONE = Overrides()
