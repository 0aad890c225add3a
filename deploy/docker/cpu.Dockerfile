# manylora on processors: docker build -f deploy/docker/cpu.Dockerfile -t manylora:cpu .
# It runs as user 10001 on a read-only root; what it writes is in two volumes and /tmp (docs/installing.md).
FROM python:3.12-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN python -m venv /opt/manylora && \
    /opt/manylora/bin/python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)" && \
    /opt/manylora/bin/python -m pip install --no-cache-dir '.[postgres,otel]' -c constraints.txt

FROM python:3.12-slim-bookworm
# The kernels are compiled for the processor of the machine at their first use.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* && \
    useradd --system --uid 10001 --home-dir /var/lib/manylora --no-create-home manylora && \
    install -d -o 10001 -g 10001 /var/lib/manylora /var/cache/manylora
COPY --from=build /opt/manylora /opt/manylora
ENV PATH=/opt/manylora/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/manylora \
    MANYLORA_SERVER_HOST=0.0.0.0 \
    MANYLORA_MODEL_CACHE_DIR=/var/cache/manylora \
    MANYLORA_CONTROL_DIR=/var/lib/manylora/control \
    MANYLORA_METERING_DIR=/var/lib/manylora/metering \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME ["/var/lib/manylora", "/var/cache/manylora"]
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["manylora"]
CMD ["serve"]
