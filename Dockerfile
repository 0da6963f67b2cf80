# volo-seg with its HTTP server, as a user without privileges:
#   docker build -t volo-seg .                               torch as pip finds it: on Linux and x86-64 that is a CUDA build
#   docker build -t volo-seg --build-arg TORCH_INDEX=URL .   torch from an index of CPU or CUDA builds, see "Start locally" of PyTorch
#   docker run -p 127.0.0.1:7860:7860 volo-seg               the model that ships; add --gpus all for a GPU
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH_INDEX=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# torch first: it is the largest part and changes least
RUN pip install -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY . .
RUN pip install -c constraints.txt '.[serve,onnx]'

FROM python:${PYTHON}-slim-bookworm
# libraries that OpenCV opens; Debian keeps no old versions of them to pin
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 libxcb1 \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home --uid 10001 volo
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 MPLBACKEND=Agg
USER 10001
WORKDIR /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
ENTRYPOINT ["volo-seg"]
CMD ["serve", "--host", "0.0.0.0"]
