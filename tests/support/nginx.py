"""An nginx of the test's own: its configuration, port and files in one folder."""

from pathlib import Path

from tests.support.net import accepts, free_address
from tests.support.process import Process
from tests.support.servers import program

_CONFIG = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    keepalive_timeout {keepalive};
    server {{
        listen 127.0.0.1:{port};
        root {folder}/www;
        {server}
    }}
}}
"""


class Nginx:
    """Serves the files of `folder`/www; `server` is put into its server block."""

    def __init__(self, folder: Path, server: str = "", keepalive: str = "75s") -> None:
        self.address = free_address()
        self.www = folder / "www"
        self.www.mkdir(exist_ok=True)
        # Started as root, nginx reads files as another user.
        for path in (folder, *folder.parents):
            if path.owner() == "root" and not path.stat().st_mode & 0o001 and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o011)
        config = folder / "nginx.conf"
        config.write_text(_CONFIG.format(folder=folder, port=self.address[1], server=server, keepalive=keepalive))
        command = [program("nginx") or "nginx", "-e", f"{folder}/nginx.error.log", "-p", str(folder), "-c", str(config)]
        self.process = Process("nginx", command, folder)
        self.process.wait_until(lambda: accepts(self.address))

    def stop(self) -> None:
        """Ends nginx."""
        self.process.stop()
