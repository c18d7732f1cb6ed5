#!/bin/sh
# Trains under torchrun, which sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ... and restarts
# failed ranks. On each host:
#   NODES=2 NODE=0 MASTER=host-0 sh examples/torchrun/train.sh configs/tinyllama-1.1b.yaml --set parallel=zero1 --set batch.accumulation=8
# batch.accumulation counts per rank: 16 ranks make TinyLlama's 1,024 windows per step.
# One host needs no Python: npx llamaforge launch --nproc 8 --max-restarts 3 -- train CONFIG
set -eu
# The rank is node itself: npx would end at SIGTERM, before node has saved. In a clone of the
# repository: LLAMAFORGE=dist/cli/main.js
LLAMAFORGE=${LLAMAFORGE:-node_modules/llamaforge/dist/cli/main.js}
# Seconds from SIGTERM until torchrun kills the ranks, 30 by default: time for them to save.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"
# torchrun's own store takes PORT on host 0. The ranks meet on the next port, or on
# LLAMAFORGE_MASTER_PORT.
exec torchrun --no-python --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "${GPUS:-8}" \
  --master-addr "${MASTER:-127.0.0.1}" --master-port "${PORT:-29500}" --max-restarts 3 \
  node "$LLAMAFORGE" train "$@" --set device=cuda
