# syntax=docker/dockerfile:1
# A CPU image of Streaming SBP: pinned, non-root. `BASE` lets a site use its own mirror; `TORCH_ARGS` are extra arguments
# for pip, for example the CPU index that pytorch.org/get-started shows (without, pip may choose a CUDA build).
#   docker build -t streaming-sbp .
#   docker run -p 127.0.0.1:9464:9464 -v sbp-runs:/runs streaming-sbp
ARG BASE=python:3.11.13-slim-bookworm

# what the package needs: a layer that changes only with pyproject.toml and constraints.txt
FROM ${BASE} AS dependencies
# PIP_BUILD_CONSTRAINT: newer pip builds with other constraints than it installs with
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/src/constraints.txt PIP_BUILD_CONSTRAINT=/src/constraints.txt
ARG TORCH_ARGS=""
WORKDIR /src
COPY constraints.txt ./
RUN python3 -m venv /opt/sbp && /opt/sbp/bin/pip install torch==2.13.0 ${TORCH_ARGS}
COPY pyproject.toml ./
# an empty package with the same requirements, taken out again
RUN mkdir streaming_sbp sbp_services && touch README.md LICENSE streaming_sbp/__init__.py sbp_services/__init__.py \
    && /opt/sbp/bin/pip install '.[plots]' && /opt/sbp/bin/pip uninstall -y streaming-sbp

# the package itself: the same environment would be copied again for each change of a line, so only a wheel is taken on
FROM dependencies AS package
COPY README.md LICENSE ./
COPY streaming_sbp streaming_sbp
COPY sbp_services sbp_services
RUN /opt/sbp/bin/pip wheel --no-deps --wheel-dir /dist .

FROM ${BASE}
RUN useradd --create-home --uid 10001 sbp && mkdir /runs && chown sbp /runs
COPY --from=dependencies /opt/sbp /opt/sbp
COPY --from=package /dist /opt/dist
RUN /opt/sbp/bin/pip install --no-cache-dir --no-deps --no-index /opt/dist/*.whl
# hadolint ignore=DL3064
ENV PATH=/opt/sbp/bin:$PATH OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
USER 10001
WORKDIR /runs
VOLUME /runs
EXPOSE 9464
# /healthz of the supervisor, which restarts the other roles; it serves once the data set is there
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["sbp"]
CMD ["run", "--preset", "demo", "--metrics-port", "9464", "run.dir=/runs/demo", "data.dataset=/runs/data/pydocs", "telemetry.host=0.0.0.0"]
