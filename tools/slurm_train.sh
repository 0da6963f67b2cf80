#!/usr/bin/env bash
# slurm_train.sh PARTITION JOB_NAME CONFIG [flags of train.py]   GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS
set -euo pipefail
if [ $# -lt 3 ]; then echo "usage: $0 PARTITION JOB_NAME CONFIG [flags of train.py]" >&2; exit 2; fi
here=$(dirname "$0")
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# SRUN_ARGS is split into words on purpose
# shellcheck disable=SC2086
PYTHONPATH="$here/..:${PYTHONPATH:-}" exec srun -p "$1" --job-name="$2" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$here/train.py" "$3" --launcher slurm "${@:4}"
