#!/usr/bin/env bash
# Test under Slurm.
#   GPUS=8 tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
# tools/srun.sh lists the variables.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]" >&2
    exit 2
fi
exec "$(dirname "$0")/srun.sh" test.py "$1" "$2" "$3" "$4" "${@:5}"
