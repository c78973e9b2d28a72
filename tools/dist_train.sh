#!/usr/bin/env bash
# Train with one process per GPU, or per gloo rank on a machine without GPUs.
#   tools/dist_train.sh CONFIG N [options of tools/train.py]
# Several machines: run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
# MAX_RESTARTS=R restarts a run whose process died, up to R times, from its newest checkpoint.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG N [options of tools/train.py]" >&2
    exit 2
fi
exec "$(dirname "$0")/torchrun.sh" train.py "$2" "$1" "${@:3}"
