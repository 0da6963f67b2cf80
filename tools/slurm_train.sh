#!/usr/bin/env bash
# slurm_train.sh PARTITION JOB_NAME CONFIG [flags of train.py]   GPUS, GPUS_PER_NODE, CPUS_PER_TASK (a GPU's), SRUN_ARGS
# srun starts one torchrun a machine, and that one a process a GPU. MASTER_ADDR and PORT are chosen, unless they are set.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ "${1:-}" = --on-machine ]; then
    machines=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    first=${machines%%$'\n'*}
    export NNODES="$SLURM_NNODES" NODE_RANK="$SLURM_NODEID" MASTER_ADDR="${MASTER_ADDR:-$first}"
    export PORT="${PORT:-$((20000 + SLURM_JOB_ID % 20000))}"
    exec bash "$here/dist_train.sh" "${@:2}"
fi
if [ $# -lt 3 ]; then echo "usage: $0 PARTITION JOB_NAME CONFIG [flags of train.py]" >&2; exit 2; fi
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
if [ $((gpus % per_node)) -ne 0 ]; then
    echo "error: GPUS=$gpus is no multiple of GPUS_PER_NODE=$per_node; choose one" >&2
    exit 2
fi
# SRUN_ARGS is split into words on purpose
# shellcheck disable=SC2086
exec srun -p "$1" --job-name="$2" --gres="gpu:$per_node" --nodes=$((gpus / per_node)) --ntasks=$((gpus / per_node)) \
    --ntasks-per-node=1 --cpus-per-task=$((${CPUS_PER_TASK:-5} * per_node)) --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    bash "$here/slurm_train.sh" --on-machine "$3" "$per_node" "${@:4}"
