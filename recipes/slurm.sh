#!/bin/bash
# A comparison on several nodes of a Slurm cluster, which all see the folder it is submitted from:
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

VENV=${VENV:-.venv}    # where potstill and ray (2.49 or newer) are installed, seen by all nodes
PORT=${PORT:-6379}     # of the cluster that this job makes for itself

source "$VENV/bin/activate"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')

# On every node: start Ray, wait for the others, and on the first one run the command; then stop Ray.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    ray symmetric-run \
    --address "$address:$PORT" \
    --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" \
    --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    -- \
    potstill compare --ray auto "$@"
