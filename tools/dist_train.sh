#!/usr/bin/env bash
# Train on several GPUs with torchrun:
#   bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# With several machines, set NNODES, NODE_RANK and MASTER_ADDR; only NODE_RANK differs. Two runs on
# a machine need different PORTs. PYTHON names the interpreter. Without GPUs, add
#   --cfg-options env_cfg.dist_cfg.backend=gloo
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: bash $0 CONFIG GPUS [arguments of tools/train.py]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
