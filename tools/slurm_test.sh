#!/usr/bin/env bash
# Test on a cluster with Slurm:
#   bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]
# It starts GPUS (8) processes, GPUS_PER_NODE (8) per machine, with CPUS_PER_TASK (5) each. SRUN_ARGS
# holds further arguments of srun, and PYTHON names the interpreter. Two jobs on a machine need
# different MASTER_PORTs.
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "usage: bash $0 PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]" >&2
    exit 2
fi
partition=$1 job_name=$2 config=$3 checkpoint=$4
shift 4
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-8}
# A job smaller than a machine requests only the GPUs that it uses.
if [ "$gpus" -lt "$gpus_per_node" ]; then gpus_per_node=$gpus; fi

# SRUN_ARGS is a list of words.
# shellcheck disable=SC2086
exec srun \
    --partition="$partition" \
    --job-name="$job_name" \
    --gres="gpu:$gpus_per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher slurm "$@"
