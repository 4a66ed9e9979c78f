#!/bin/bash
# A comparison on the nodes of a Slurm cluster, which all see the folder that it is submitted from:
#
#     sbatch recipes/slurm.sh --dataset data/cifar10 --methods herding dm datm --ipcs 1 10
#
# All that follows the script's name is handed to `potstill compare`.  The same line continues a job that ran out of time.
#SBATCH --job-name=potstill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

source "${VENV:-.venv}/bin/activate"    # where potstill and ray (2.49 or newer) are installed, seen by all nodes
port=${PORT:-6379}                      # of the Ray cluster that this job makes for itself

# The first node's address as the others know it: names may lead to 127.0.0.1 on the node itself.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
read -r address _ < <(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --all-ip-addresses)

# On every node: start Ray, and wait for the others; on the first one: run the command, then stop Ray everywhere.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    ray symmetric-run \
    --address "$address:$port" \
    --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" \
    --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
    -- \
    potstill compare --ray auto "$@"
