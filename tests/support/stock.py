"""Runs the core under a stock ASGI server: `python -m tests.support.stock hypercorn|uvicorn PORT CONFIG`."""

import asyncio
import sys


def main() -> None:
    _, server, port, config = sys.argv
    from l7proxy.asgi import create_app

    app = create_app(config)
    if server == "uvicorn":
        import uvicorn

        uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", timeout_graceful_shutdown=1)
        return
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    settings = Config()
    settings.bind = [f"127.0.0.1:{port}"]
    settings.graceful_timeout = 1
    asyncio.run(serve(app, settings))


if __name__ == "__main__":
    main()
