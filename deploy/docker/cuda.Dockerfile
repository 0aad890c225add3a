# manylora on a CUDA card: docker build -f deploy/docker/cuda.Dockerfile -t manylora:cuda .
# docker run --gpus all …; Triton compiles its kernels at the first start and keeps them in the cache volume.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04 AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu128
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN python3 -m venv /opt/manylora && \
    /opt/manylora/bin/python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)" && \
    /opt/manylora/bin/python -m pip install --no-cache-dir '.[postgres,otel]' -c constraints.txt

FROM nvidia/cuda:12.8.1-base-ubuntu24.04
# Triton compiles a small library with the C compiler and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-dev g++ && \
    rm -rf /var/lib/apt/lists/* && \
    useradd --system --uid 10001 --home-dir /var/lib/manylora --no-create-home manylora && \
    install -d -o 10001 -g 10001 /var/lib/manylora /var/cache/manylora
COPY --from=build /opt/manylora /opt/manylora
ENV PATH=/opt/manylora/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/manylora \
    MANYLORA_SERVER_HOST=0.0.0.0 \
    MANYLORA_MODEL_DEVICE=cuda \
    MANYLORA_MODEL_CACHE_DIR=/var/cache/manylora \
    MANYLORA_CONTROL_DIR=/var/lib/manylora/control \
    MANYLORA_METERING_DIR=/var/lib/manylora/metering \
    TRITON_CACHE_DIR=/var/cache/manylora/triton \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME ["/var/lib/manylora", "/var/cache/manylora"]
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["manylora"]
CMD ["serve"]
