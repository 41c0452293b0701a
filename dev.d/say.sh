# Talking to the person at the terminal, and running long steps without silence.
# Sourced by ./dev; expects ROOT.

readonly LOG_DIR="$ROOT/target/dev"
readonly HEARTBEAT_S=4 # The promise is "nothing silent for more than 5 s".

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The pid of the step now running, for the interrupt trap.
STEP_PID=""

on_interrupt() {
    trap - INT TERM
    if [[ -n $STEP_PID ]]; then
        # Each step is a process group of its own: all of it ends, and it alone.
        kill -TERM -- "-$STEP_PID" 2>/dev/null || true
        wait "$STEP_PID" 2>/dev/null || true
    fi
    printf '\nInterrupted. What is finished stays finished: run "./dev %s" again to go on from here.\n' "$DEV_COMMAND" >&2
    exit 130
}

# step TEXT COMMAND...: run it with output in a log; print a line every few seconds and the log's end on failure.
# It runs in a fresh ./dev: bash ignores errexit in all that is called from a condition, even in subshells.
step() {
    local text=$1 log status=0 began=$SECONDS
    shift
    mkdir -p "$LOG_DIR"
    log="$LOG_DIR/$(tr -cs 'a-zA-Z0-9' '-' <<<"$text" | sed 's/^-//; s/-$//').log"
    printf '%s ...\n' "$text"
    start_apart "$log" "$@"
    beat "$STEP_PID" "$text" "$began" "$log"
    wait "$STEP_PID" || status=$?
    STEP_PID=""
    if ((status != 0)); then
        printf '%s: failed after %d s. The end of %s:\n' "$text" $((SECONDS - began)) "${log#"$ROOT"/}" >&2
        tail -n 25 "$log" | sed 's/^/  | /' >&2
        return "$status"
    fi
    printf '%s: done in %d s\n' "$text" $((SECONDS - began))
}

# start_apart LOG COMMAND...: in the background, as a process group of its own (a session of its own would lose the
# terminal, and with it what sudo remembers).
start_apart() {
    local log=$1
    shift
    set -m
    "$ROOT/dev" __step "$@" >"$log" 2>&1 </dev/null &
    STEP_PID=$!
    set +m
}

# Prints a line with the elapsed time and the log's last line for as long as PID lives.
beat() {
    local pid=$1 text=$2 began=$3 log=$4 next=$((SECONDS + HEARTBEAT_S))
    while kill -0 "$pid" 2>/dev/null; do
        if ((SECONDS >= next)); then
            printf '%s: %d s  %s\n' "$text" $((SECONDS - began)) "$(last_line "$log")"
            next=$((SECONDS + HEARTBEAT_S))
        fi
        sleep 0.1
    done
}

last_line() { tail -c 400 "$1" 2>/dev/null | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 | cut -c1-90 || true; }

# live COMMAND...: its output is shown as it comes and kept in LIVE_LOG, with a heartbeat while it says nothing.
LIVE_LOG="$LOG_DIR/live.log"
live() {
    local status=0 reader
    mkdir -p "$LOG_DIR"
    : >"$LIVE_LOG"
    start_apart "$LIVE_LOG" "$@"
    tail -n +1 -s 0.2 -f --pid="$STEP_PID" "$LIVE_LOG" &
    reader=$!
    quiet_beat "$STEP_PID" "$LIVE_LOG"
    wait "$STEP_PID" || status=$?
    STEP_PID=""
    wait "$reader" || true
    return "$status"
}

# Says "still running" whenever LOG has not grown for a heartbeat.
quiet_beat() {
    local pid=$1 log=$2 size=-1 quiet_since=$SECONDS began=$SECONDS now
    while kill -0 "$pid" 2>/dev/null; do
        now=$(stat -c %s "$log" 2>/dev/null || echo 0)
        if ((now != size)); then
            size=$now quiet_since=$SECONDS
        elif ((SECONDS - quiet_since >= HEARTBEAT_S)); then
            printf '  ... still running, %d s so far\n' $((SECONDS - began))
            quiet_since=$SECONDS
        fi
        sleep 0.1
    done
}

# human_kib KIB
human_kib() { awk -v k="$1" 'BEGIN { if (k >= 1048576) printf "%.1f GiB", k / 1048576; else printf "%d MiB", k / 1024 }'; }
