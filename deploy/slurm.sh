#!/usr/bin/env bash
# A run on several machines of a SLURM cluster: `sbatch deploy/slurm.sh lora mine.yaml`.
# Programs are built once before: `cargo build --release -p recipes --bins --features mpi`.
#SBATCH --job-name=tune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

recipe=${1:?which recipe? lora, say}
config=${2:?which config?}

# One process a task, each on the processors that SLURM gives it. All see the same checkout, model, data and output_dir.
export RAYON_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
srun --mpi=pmix --kill-on-bad-exit=1 "target/release/$recipe" --config "$config"
