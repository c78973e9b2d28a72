#!/usr/bin/env bash
# Test with one process per GPU, or per gloo rank on a machine without GPUs.
#   tools/dist_test.sh CONFIG CHECKPOINT N [options of tools/test.py]
# Several machines: run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT N [options of tools/test.py]" >&2
    exit 2
fi
exec "$(dirname "$0")/torchrun.sh" test.py "$3" "$1" "$2" "${@:4}"
