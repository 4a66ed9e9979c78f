#!/bin/bash
# A comparison on the nodes of a Slurm cluster, from a folder that all see:
#
#     sbatch recipes/slurm.sh --methods herding dm datm --ipcs 1 10
#
# What follows the script's name is handed to `potstill compare`.  The same
# line continues a job that ran out of time.
#SBATCH --job-name=potstill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

# Where potstill and ray (2.49 or newer) are installed, seen by all nodes.
source "${VENV:-.venv}/bin/activate"

# The first node's address as the others know it: on the node itself its
# name may lead to 127.0.0.1.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
read -r address _ < <(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    hostname --all-ip-addresses)

# On every node: start Ray, and wait for the others.  On the first one: run
# the command, then stop Ray everywhere.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    ray symmetric-run \
    --address "$address:${PORT:-6379}" \
    --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" \
    --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
    -- \
    potstill compare --ray auto "$@"
