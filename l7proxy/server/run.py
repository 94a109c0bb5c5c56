"""`l7proxy run`: opens what the sidecar listens on, or takes it over, and serves in this process or in several."""

import signal

from l7proxy.config.model import Model
from l7proxy.core.errors import ConfigError
from l7proxy.core.handler import Source
from l7proxy.core.loops import loops
from l7proxy.server import takeover
from l7proxy.server.listeners import Sockets, ends, open_sockets
from l7proxy.server.process import Handover, Process, serve
from l7proxy.server.program import complain, loop_until_done
from l7proxy.telemetry.lines import LineWriter
from l7proxy.telemetry.log import Level


def run(model: Model, source: Source | None = None, path: str | None = None, level: Level = "info") -> int:
    """Runs the sidecar until it is told to end; returns the exit status. Events of at least `level` are logged.

    With a `path` it takes over from the process that offers its sockets there, if one does, and then offers them to the
    next.
    """
    # Where there is nothing to reload, or nothing yet, to be asked for it must not end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    spec = model.sidecar.spec
    try:
        predecessor = takeover.ask(path) if path is not None else None
        sockets = open_sockets(spec, predecessor.sockets if predecessor is not None else {})
    except OSError as error:
        complain(error.strerror or str(error))
        return 1
    loops.begin(ends(sockets), loops.token)
    # A predecessor writes to the same pipes for as long as it drains, and so do workers.
    LineWriter.shared = path is not None or spec.workers > 1
    handover = Handover(path, predecessor, spec, sockets)
    return loop_until_done((_alone if spec.workers == 1 else _several)(model, source, sockets, handover, level))


async def _alone(model: Model, source: Source | None, sockets: Sockets, handover: Handover, level: Level) -> int:
    try:
        process = Process(model, sockets, level)
    except ConfigError as error:
        complain(str(error))
        return 1
    await serve(process, source, handover)
    return 0


async def _several(model: Model, source: Source | None, sockets: Sockets, handover: Handover, level: Level) -> int:
    from l7proxy.server.channel import WorkerGone
    from l7proxy.server.several import SeveralView
    from l7proxy.server.workers import Workers

    workers = Workers(model, sockets, level)
    view = SeveralView(workers)
    if not handover.succeeds:
        workers.operate(view)
    try:
        await workers.start()
    except (ConfigError, WorkerGone, RuntimeError) as error:
        complain(str(error))
        await workers.close()
        return 1
    if handover.succeeds:
        # Until now the one before us has answered, which was ready.
        workers.operate(view)
    await workers.serve(source, handover)
    return 0
