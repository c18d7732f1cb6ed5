#!/bin/sh
# torchrun as the launcher: it sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ... and starts again what fails.
# On each of the hosts:
#   NODES=2 NODE=0 MASTER=host-0 sh examples/torchrun/train.sh configs/tinyllama-1.1b.yaml --set parallel=zero1 --set batch.accumulation=8
# (batch.accumulation is of each rank: with 16 of them, TinyLlama's 1,024 windows a step.)
# On one host there is no need of Python: npx llamaforge launch --nproc 8 --max-restarts 3 -- train CONFIG
set -eu
# node is the rank itself: npx would end at SIGTERM before it has saved. In a clone of the repository:
# LLAMAFORGE=dist/cli/main.js
LLAMAFORGE=${LLAMAFORGE:-node_modules/llamaforge/dist/cli/main.js}
# At SIGTERM torchrun waits so many seconds for the ranks to save and then kills them: 30 if nothing is said.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"
# Its own store takes PORT on host 0; the ranks meet on the next one, or on LLAMAFORGE_MASTER_PORT.
exec torchrun --no-python --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "${GPUS:-8}" \
  --master-addr "${MASTER:-127.0.0.1}" --master-port "${PORT:-29500}" --max-restarts 3 \
  node "$LLAMAFORGE" train "$@" --set device=cuda
