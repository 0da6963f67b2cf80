# volo-seg with its HTTP server, as a user without privileges:
#   docker build -t volo-seg .                               for the CPU
#   docker build -t volo-seg --build-arg DEVICE=cuda .       for a GPU: docker run --gpus all
#   docker run -p 127.0.0.1:7860:7860 volo-seg               the model that ships
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE} AS build
ARG DEVICE=cpu
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt uv && python -m venv --without-pip /opt/volo-seg
# torch first and alone: its layer is the largest and changes least. cpu: PyTorch's own build; cuda: the default one for Linux
RUN case "$DEVICE" in \
        cpu) export UV_TORCH_BACKEND=cpu ;; \
        cuda) ;; \
        *) echo "DEVICE=$DEVICE is unknown: give cpu or cuda" >&2; exit 2 ;; \
    esac \
    && uv pip install --no-cache --python /opt/volo-seg/bin/python -c constraints.txt torch
COPY . .
RUN uv pip install --no-cache --python /opt/volo-seg/bin/python -c constraints.txt '.[onnx,serve]'

FROM ${BASE}
# what opencv-python loads; Debian keeps no old versions of packages, so they follow the base image
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin volo
COPY --from=build /opt/volo-seg /opt/volo-seg
# caches go to /tmp, the only folder that has to be writable
ENV PATH=/opt/volo-seg/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    MPLBACKEND=Agg
USER 10001:10001
WORKDIR /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 7860, timeout=4); c.request('GET', '/healthz'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["volo-seg"]
CMD ["serve", "--host", "0.0.0.0", "--allow-hosts", "localhost"]
