#!/usr/bin/env bash
# Train under Slurm.
#   GPUS=8 tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
# tools/srun.sh lists the variables.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]" >&2
    exit 2
fi
exec "$(dirname "$0")/srun.sh" train.py "$1" "$2" "$3" --work-dir "$4" "${@:5}"
