# shellcheck shell=bash
# Helpers for daemons that are started by hand: no systemd is needed.

STATE=${IMAGE_BUILDER_STATE:-/var/lib/image-builder-dev}
RUN=$STATE/run
LOG=$STATE/log
ETC=$STATE/etc

say() { printf '%s\n' "$*" >&2; }

die() {
    say "${0##*/}: $*"
    exit 1
}

need_root() { ((EUID == 0)) || die "this needs root"; }

# One 'up' or 'down' at a time.
lock_state() {
    mkdir -p "$RUN" "$LOG" "$ETC"
    chmod 755 "$STATE" "$RUN" "$LOG" "$ETC"
    exec 9>"$STATE/lock"
    flock -w 300 9 || die "another stack.sh has held $STATE/lock for five minutes"
}

# What tells a process from a later one with the same number, also after a reboot.
process_stamp() { # PID
    local stat boot
    local -a fields
    read -r stat <"/proc/$1/stat" || return 1
    read -r boot </proc/sys/kernel/random/boot_id
    read -ra fields <<<"${stat##*) }"
    [[ ${fields[0]} != Z ]] || return 1
    echo "$boot ${fields[19]}"
} 2>/dev/null

# True when the daemon that was started here under this name is still alive.
# Leaves its number in $pid.
is_ours() { # NAME
    local stamp
    pid=
    read -r pid <"$RUN/$1.pid" || return 1
    read -r stamp <"$RUN/$1.stamp" || return 1
    [[ $(process_stamp "$pid") == "$stamp" ]]
} 2>/dev/null

# Starts a daemon that holds on to nothing of its starter: no terminal, no pipe
# (make would wait for it), no lock.
start_daemon() { # NAME COMMAND...
    local name=$1 log=$LOG/$1.log
    shift
    rm -f "$RUN/$name.pid" "$RUN/$name.stamp"
    [[ ! -e $log ]] || mv -f "$log" "$log.old"
    : >"$log"
    (
        for fd in "/proc/$BASHPID/fd/"*; do
            fd=${fd##*/}
            ((fd <= 2 || fd == 255)) || eval "exec $fd>&-"
        done
        cd /
        ulimit -n 65536 2>/dev/null || true # or what the machine allows
        unset MAKEFLAGS MFLAGS MAKELEVEL NOTIFY_SOCKET
        exec setsid "$@" </dev/null >>"$log" 2>&1
    ) &
    echo "$!" >"$RUN/$name.pid"
    process_stamp "$!" >"$RUN/$name.stamp" || true # one that is gone already is noticed by await_ready
}

# Waits until the probe succeeds; gives up when the daemon ends or time runs out.
await_ready() { # NAME SECONDS PROBE...
    local name=$1 limit=$2 deadline=$((SECONDS + $2)) reason=
    shift 2
    until "$@"; do
        if ! is_ours "$name"; then
            reason="ended while it was starting"
        elif ((SECONDS >= deadline)); then
            reason="did not answer within $limit s"
        fi
        if [[ $reason ]]; then
            say "--- the end of $LOG/$name.log"
            tail -n 20 "$LOG/$name.log" >&2 || true
            die "$name $reason"
        fi
        sleep 0.1
    done
}

# Asks the daemon to end, and makes it after the time limit.
stop_daemon() { # NAME SECONDS
    local deadline=$((SECONDS + $2))
    if is_ours "$1"; then
        kill -TERM "$pid" 2>/dev/null || true
        while is_ours "$1"; do
            if ((SECONDS >= deadline)); then
                say "$1 did not end within $2 s and is killed"
                kill -KILL "$pid" 2>/dev/null || true
                sleep 0.2
                break
            fi
            sleep 0.1
        done
    fi
    rm -f "$RUN/$1.pid" "$RUN/$1.stamp"
}

# True when something accepts connections on this port of the machine itself.
port_taken() { # PORT
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}
