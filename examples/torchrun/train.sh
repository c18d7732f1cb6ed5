#!/bin/sh
# torchrun as the launcher: it sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ... and starts again what fails.
# On each of the hosts:  NODES=2 NODE=0 MASTER=host-0 sh examples/torchrun/train.sh configs/tinyllama-1.1b.yaml
# On one host there is no need of Python: npx llamaforge launch --nproc 8 --max-restarts 3 -- train CONFIG
set -eu
CONFIG=$1
exec torchrun --no-python --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "${GPUS:-8}" \
  --master-addr "${MASTER:-127.0.0.1}" --master-port "${PORT:-29500}" --max-restarts 3 \
  npx llamaforge train "$CONFIG" --set device=cuda
