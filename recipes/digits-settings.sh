# Shared by the digits recipes: the packaged network, its noise levels, and RDC's settings.

NETWORK=(
    --network.width 16
    --network.width-multipliers 1 2 --network.blocks-per-level 1
    --network.attention-resolutions --network.head-blocks 1 --network.head-width 8
    --objective.noise.mean 0.2 --objective.noise.std 0.55
    --batch-size 128 --learning-rate 3e-3
)
RDC=(
    --rdc.classifier.levels 12 --rdc.classifier.sigma-min 0.7 --rdc.classifier.sigma-max 3
    --rdc.maximization.steps 10 --rdc.maximization.budget 0.1
    --rdc.maximization.step-size 0.02 --rdc.maximization.momentum 0
    --rdc.maximization.sigma-min 0.6 --rdc.maximization.sigma-max 1 --rdc.maximization.draws 2
)
STEPS="${STEPS:-4000}"  # fewer for a rehearsal

# Without a GPU, accelerate would give its one process a single thread. A recipe that was killed
# continues when it is run again.
CORES=$(python -c 'import os; print(os.cpu_count())')
launch() { accelerate launch --num_cpu_threads_per_process "$CORES" -m "$@" --resume auto; }
