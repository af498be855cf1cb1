#!/bin/bash
# Trains on several machines without a scheduler. Run the same line on each of them, with the address of the first:
#   NODES=2 PROCESSES=4 HEAD=10.0.0.1:29500 examples/torchrun/train.sh --config FILE --run_dir DIR
# A rank that dies ends all; torchrun starts all of them again, RESTARTS times, from the last checkpoint. The run's folder
# must be on a disk that all machines see.
set -eu
NODES="${NODES:-1}" PROCESSES="${PROCESSES:-1}" HEAD="${HEAD:-127.0.0.1:29500}" RESTARTS="${RESTARTS:-3}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# `auto` starts the run the first time, and goes on from its last checkpoint ever after
exec torchrun --nnodes="$NODES" --nproc-per-node="$PROCESSES" --max-restarts="$RESTARTS" \
    --rdzv-backend=c10d --rdzv-endpoint="$HEAD" --rdzv-id="${JOB:-lit_adv}" \
    -m lit_adv fit "$@" --ckpt_path auto \
    --trainer.strategy=ddp --trainer.num_nodes="$NODES" --trainer.devices="$PROCESSES" \
    --checkpoint.every_n_train_steps="${SAVE_EVERY:-500}"
