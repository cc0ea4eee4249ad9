#!/bin/bash
# One run on several machines under SLURM:
#
#   sbatch examples/launch/slurm.sh train my.yaml
#   sbatch examples/launch/slurm.sh train my.yaml --resume
#   sbatch --nodes=1 examples/launch/slurm.sh eval --run first --domain acdc --root /data
#   sbatch examples/launch/slurm.sh predict photos/ -o masks/
#
# What follows the script's name is what follows `diff` elsewhere. Set the lines below to your cluster; options of
# sbatch override them. Without SLURM, on one machine with 4 GPUs, either of these does the same:
#
#   torchrun --standalone --nproc-per-node 4 -m diffcli train my.yaml
#   accelerate launch --multi_gpu --num_processes 4 -m diffcli train my.yaml
#
# With --run (eval, predict) torchrun needs two dashes before the name, or takes the option for its own:
#
#   torchrun --standalone --nproc-per-node 4 -m -- diffcli eval --run first
#
# - A process a GPU. train.batch_size is that of each process: 2 machines of 4 GPUs train on 8 x batch_size images an
#   iteration, as one process would with the 8-fold batch (train.sync_batchnorm; dropout alone draws differently).
#   Learning rate and iterations stay what the settings say.
# - Every machine needs the package, the data under the same paths, and this working directory (with runs/), on a disk
#   that all of them see.
# - Five minutes before its time is over the job is told to stop: training finishes its iteration, saves and ends, and
#   --resume goes on from there, on another number of machines if you like. The launcher allows 30 seconds for
#   it; a torchrun that knows --shutdown-timeout can allow more.

#SBATCH --job-name=diff
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log

set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a machine do not meet

# one launcher a machine (its task), which starts a process a GPU; where one fails, all machines stop
exec srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  torchrun \
  --nnodes="$SLURM_JOB_NUM_NODES" \
  --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-id="$SLURM_JOB_ID" \
  --rdzv-backend=c10d \
  --rdzv-endpoint="$first:$port" \
  -m -- diffcli "$@"
