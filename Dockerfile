# syntax=docker/dockerfile:1

# Both stages have Debian 12's Python 3.11, so that what is installed in the first runs in the second.
FROM debian:bookworm-slim AS build
# Of this stage nothing but wheels goes on: Debian's latest is right for it.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 python3-pip
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
# Wheels alone, each with the hash that the lock file says: nothing is built from source, and nothing else gets in.
RUN python3 -m pip install --no-cache-dir --only-binary :all: --require-hashes --target /opt/l7proxy -r requirements.lock \
    && python3 -m pip install --no-cache-dir --only-binary :all: --require-hashes --target /opt/build -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY l7proxy l7proxy
RUN PYTHONPATH=/opt/build python3 -m pip install --no-cache-dir --no-deps --no-index --no-build-isolation --target /opt/l7proxy .

# Python and what it needs, no shell, no package manager.
FROM gcr.io/distroless/python3-debian12:nonroot
LABEL org.opencontainers.image.title="l7proxy" \
      org.opencontainers.image.description="An HTTP-aware L7 sidecar for microservices: fast per core, safe to configure, readable" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="gcr.io/distroless/python3-debian12:nonroot"
COPY --from=build /opt/l7proxy /opt/l7proxy
ENV PYTHONPATH=/opt/l7proxy PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The user id that traffic redirection leaves alone.
USER 1337:1337
EXPOSE 15006 15001 15021 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["/usr/bin/python3", "-P", "-m", "l7proxy", "admin", "--at", "127.0.0.1:15021", "--timeout", "2", "/ready"]
ENTRYPOINT ["/usr/bin/python3", "-P", "-m", "l7proxy"]
CMD ["run", "-c", "/etc/l7proxy"]
