#!/usr/bin/env bash
# dist_train.sh CONFIG GPUS [flags of train.py]   several machines: NNODES, NODE_RANK, MASTER_ADDR, PORT
set -euo pipefail
if [ $# -lt 2 ]; then echo "usage: $0 CONFIG GPUS [flags of train.py]" >&2; exit 2; fi
here=$(dirname "$0")
PYTHONPATH="$here/..:${PYTHONPATH:-}" exec "${PYTHON:-python}" -m volo_seg.engine.torchrun \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$2" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$here/train.py" "$1" --launcher pytorch "${@:3}"
