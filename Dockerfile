# syntax=docker/dockerfile:1
# A CPU image of Streaming SBP: non-root, pinned, two stages. `ARG BASE` lets a site use its own mirror.
#   docker build -t streaming-sbp .
#   docker run -p 127.0.0.1:9464:9464 -v sbp-runs:/runs streaming-sbp run --preset demo run.dir=/runs/demo data.dataset=/runs/data
ARG BASE=python:3.11.13-slim-bookworm

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Extra arguments for pip, for example the CPU index that pytorch.org/get-started shows.
ARG TORCH_ARGS=""
RUN python3 -m venv /opt/sbp
RUN /opt/sbp/bin/pip install torch==2.13.0 ${TORCH_ARGS}
COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY streaming_sbp /src/streaming_sbp
COPY sbp_services /src/sbp_services
RUN /opt/sbp/bin/pip install -c /src/constraints.txt '/src[plots]'

FROM ${BASE}
RUN useradd --create-home --uid 10001 sbp && mkdir /runs && chown sbp /runs
COPY --from=build /opt/sbp /opt/sbp
ENV PATH=/opt/sbp/bin:$PATH OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
USER sbp
WORKDIR /runs
VOLUME /runs
EXPOSE 9464
# /healthz of the supervisor, which restarts the other roles
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["sbp"]
CMD ["run", "--preset", "demo", "--metrics-port", "9464", "run.dir=/runs/demo", "data.dataset=/runs/data/pydocs", "telemetry.host=0.0.0.0"]
