# Shared by the comparisons of class heads, digits-class-heads.sh and cifar10-cpu-heads.sh. They set
# OUT and MEASURED (folders of networks and of figures), and TRAIN and CALIBRATE (commands with the
# flags that all networks share).
SHARE="${SHARE:-1}" # of the compute; fewer for a rehearsal

# run NAME STEPS FLAGS...: train one network.
run() {
    local name="$1" steps
    steps=$(awk -v steps="$2" -v share="$SHARE" 'BEGIN { print int(steps * share) }')
    shift 2
    "${TRAIN[@]}" --out "$OUT/$name" --steps "$steps" --validate-every "$steps" "$@"
}

# measure NAME MODEL FLAGS...: accuracy of the diffusion classifier of a network.
measure() {
    local name="$1" model="$2"
    shift 2
    [[ -f $MEASURED/$name/calibration.json ]] ||
        "${CALIBRATE[@]}" --model "$OUT/$model" --out "$MEASURED/$name" --sigma-min 0.7 \
            --sigma-max 3 --maximization-steps --images "${IMAGES:-200}" \
            --attacked "${ATTACKED:-50}" --steps 10 "$@"
}

# print_table: what was measured.
print_table() { OUT="$OUT" MEASURED="$MEASURED" "${PYTHON:-python}" - < recipes/class_heads_table.py; }
