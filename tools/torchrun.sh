#!/usr/bin/env bash
# Start SCRIPT (train.py or test.py next to this file) in N processes; dist_train.sh and
# dist_test.sh call this.
#   tools/torchrun.sh SCRIPT N ARGS...
# With MAX_RESTARTS=R the processes are started again up to R times when one of them dies; train.py
# then goes on from the newest intact checkpoint.
# Several machines: run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
SCRIPT=$1
N=$2
shift 2

case $N in
    auto | cpu | gpu) ;;
    '' | *[!0-9]* | 0*)
        echo "Error: N is the number of processes, one per GPU, got '$N'" >&2
        exit 2
        ;;
esac
case ${MAX_RESTARTS:-0} in
    *[!0-9]*)
        echo "Error: MAX_RESTARTS is a number, got '$MAX_RESTARTS'" >&2
        exit 2
        ;;
esac

RENDEZVOUS=(--master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
if [ "${MAX_RESTARTS:-0}" -gt 0 ]; then
    # Without these two, torchrun hands the addresses of dead processes to the restarted ones.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    RENDEZVOUS=(
        --max_restarts="$MAX_RESTARTS" --rdzv_id="${RUN_ID:-mmhcnet}" --rdzv_backend=c10d
        --rdzv_endpoint="${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}"
        --rdzv_conf="is_host=$([ "${NODE_RANK:-0}" = 0 ] && echo true || echo false)")
    [ "${NNODES:-1}" != 1 ] || RENDEZVOUS+=(--local_addr=127.0.0.1)
fi

# In place of this shell, so that a signal to it reaches them.
exec "${PYTHON:-python}" -m mmhcnet.torchrun \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --nproc_per_node="$N" \
    "${RENDEZVOUS[@]}" \
    "$(dirname "$0")/$SCRIPT" "$@" --launcher pytorch
