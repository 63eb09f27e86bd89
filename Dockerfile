# The service with the embedded engine, for CPUs and for NVIDIA GPUs; runtime/serve/README.md says how to start it.
#   docker build --target cpu --tag diffseg .
#   docker build --target cuda --tag diffseg:cuda .

FROM debian:bookworm-slim AS python
# Versions are those of the Debian release, with its security updates.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM python AS source
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/diffseg
ENV PATH=/opt/diffseg/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY engines/ engines/
COPY export/ export/
COPY runtime/ runtime/

# OpenCV without windows needs none of their libraries. Versions are those of pyproject.toml.
FROM source AS install-cpu
ARG EXTRAS=cpu,serve,video
# hadolint ignore=DL3013
RUN pip install ".[$EXTRAS]" \
    && pip uninstall --yes opencv-python \
    && pip install "opencv-python-headless>=4.13"

FROM source AS install-cuda
ARG EXTRAS=gpu,serve,video
# hadolint ignore=DL3013
RUN pip install ".[$EXTRAS]" \
    && pip uninstall --yes opencv-python \
    && pip install "opencv-python-headless>=4.13"

# The merge core for GPUs; the compiler does not come with the service.
FROM source AS core
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN pip install "nvidia-cuda-nvcc>=13" "nvidia-cuda-cccl>=13" . \
    && python -m runtime.native build --output /core

FROM python AS service
RUN useradd --create-home --uid 10001 diffseg
ENV PATH=/opt/diffseg/bin:$PATH
USER 10001:10001
WORKDIR /home/diffseg
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["diffseg"]
# An address that others reach needs a token: docker run --env DIFFSEG_TOKEN=...
CMD ["serve", "--host", "0.0.0.0"]

FROM service AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility DIFFSEG_LIBRARY=/opt/core/libdiffseg.so
COPY --from=install-cuda /opt/diffseg /opt/diffseg
COPY --from=core /core /opt/core

# The last one is what a build without --target makes.
FROM service AS cpu
COPY --from=install-cpu /opt/diffseg /opt/diffseg
