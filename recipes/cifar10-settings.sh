# Shared by the CIFAR-10 recipes. Whatever is set outside counts; recipes/README.md lists it all.

shopt -s inherit_errexit

DATA="${DATA:-data/cifar10}"        # a folder split/class/*.jpg, made by cifar10-data.sh
RUNS="${RUNS:-runs/cifar10}"        # where everything goes
EXPORT="${EXPORT:-}"                # a folder for small files to carry away; empty: none
LIMIT="${LIMIT:-0}"                 # minutes after which a command's training stops; 0: never
BATCH="${BATCH:-512}"
PYTHON="${PYTHON:-$(command -v python || command -v python3)}"

# The trunk of teacher and student, which are the same so that the one can start from the other.
TRUNK=(
    --network.width "${WIDTH:-64}" --network.width-multipliers ${MULTIPLIERS:-2 2 3}
    --network.blocks-per-level "${BLOCKS:-2}" --network.attention-resolutions ${ATTENTION-16}
)
LEARNING=(
    --batch-size "$BATCH" --augment flip --ema-half-lives 100000 400000
    --objective.noise.mean -1 --objective.noise.std 1.2 --objective.uncertainty
)

# Where no one looks on, a line now and then will do.
[[ -t 2 ]] || export TQDM_MININTERVAL="${TQDM_MININTERVAL:-20}"

# Compilation takes a minute or two that only a GPU wins back; COMPILE= goes without.
FAST=()
if nvidia-smi -L &> /dev/null; then FAST=(--precision bf16 ${COMPILE---compile}); fi

# seconds_left: of the command's LIMIT; 0 where there is none.
seconds_left() {
    awk -v limit="$LIMIT" -v now="$SECONDS" \
        'BEGIN { left = int(60 * limit - now); print limit == 0 ? 0 : left < 1 ? 1 : left }'
}

# train NAME MODULE FLAGS...: the run $RUNS/NAME, which the same command continues after LIMIT
# minutes or a kill.
train() {
    local out="$RUNS/$1" module="$2"
    shift 2
    timeout --signal TERM "$(seconds_left)" \
        "$PYTHON" -m "$module" --out "$out" --data "$DATA" --resume auto "${FAST[@]}" "$@" ||
        [[ $? == 124 ]]
    if [[ ! -f $out/training.json ]]; then
        echo "$out: stopped; the same command continues"
    fi
}

# count NAME MODULE FLAGS...: STEPS; without it as many steps as fit into MINUTES on this machine,
# measured once (steps 31 to 60) and kept beside the run.
count() {
    local known="$RUNS/$1.steps" probe="$RUNS/$1.probe" module="$2" pid
    shift 2
    if [[ -n ${STEPS:-} ]]; then
        echo "$STEPS"
        return
    fi
    if [[ ! -f $known ]]; then
        rm -rf "$probe"
        "$PYTHON" -m "$module" --out "$probe" --data "$DATA" "${FAST[@]}" "$@" --steps 1000000 \
            --validate-every 30 --validation-images 10 >&2 &
        pid=$!
        until [[ $(cat "$probe/history.jsonl" 2> /dev/null | wc -l) -ge 2 ]]; do
            kill -0 "$pid" 2> /dev/null || wait "$pid"
            sleep 1
        done
        kill -TERM "$pid" 2> /dev/null || true
        wait "$pid" || [[ $? == 143 ]]
        "$PYTHON" - "$probe/history.jsonl" "$MINUTES" "$BATCH" > "$known.part" <<'END'
import json
import sys

history, minutes, batch = sys.argv[1:]
speed = json.loads(open(history).readlines()[1])["images_per_second"]
print(max(1, round(60 * float(minutes) * speed / int(batch))))
END
        mv "$known.part" "$known"
        rm -rf "$probe"
    fi
    cat "$known"
}

# model NAME: the trained model, or what there is of it so far.
model() {
    if [[ -f $RUNS/$1/training.json ]]; then echo "$RUNS/$1"; else echo "$RUNS/$1/latest"; fi
}

# carry NAME: the averaged weights as bfloat16, in files of less than 16 MiB, with the figures.
carry() {
    local from
    from=$(model "$1")
    if [[ -z $EXPORT || ! -d $from ]]; then
        return
    fi
    rm -rf "${EXPORT:?}/$1"
    "$PYTHON" -m rdc export "$from" "$EXPORT/$1" --dtype bfloat16 --max-shard-size 15MB
    # A finished run's training.json, which comes along, has its history.
    if [[ $from == */latest && -f $RUNS/$1/history.jsonl ]]; then
        cp "$RUNS/$1/history.jsonl" "$EXPORT/$1/"
    fi
}
