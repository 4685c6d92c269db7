# Ends a run that is past its limits and bounds its output, whether or not a watcher lives.
#
#   set -- RUN_DIRECTORY WALL IDLE GRACE OUTPUT EXIT CLOCK KEEPER
#
# That line stands ahead of this text in a sealed file (script.py). WALL, IDLE and GRACE are hundredths of a second,
# OUTPUT is bytes; 0: no such limit. EXIT: the descriptor of the exit record. CLOCK: the descriptor of a timer (timerfd)
# that was set to 10^9 seconds when this process began. KEEPER: its pid; empty: the first line of stdin.
# stdin: a pipe whose only writer is the keeper, so that this process ends exactly when the keeper does.
# stdout: the record of a limit. stderr: this text.
#
# Somebody may end any helper below, as with "pkill cat". A result that is missing then is asked for again.

exec 7>&1 >/dev/null 2>&1
printf oc-timer >"/proc/$$/comm"
cd -- "$1" || cd /

wall=$2
idle=$3
grace=$4
output=$5
record=/proc/self/fd/$6
clock=/proc/$$/fdinfo/$7
keeper=$8

# By CLOCK_MONOTONIC: time in which the machine was suspended counts for nobody.
take_time() {
    while read -r name seconds fraction; do
        if [ "$name" = it_value: ]; then
            seconds=${seconds#?}
            now=$(((1000000000 - ${seconds%,}) * 100 - ${fraction%?} / 10000000))
        fi
    done <"$clock"
}

# Returns when the time has passed or a helper was ended; ends this process when the keeper has.
pause() {
    command -p timeout "$(($1 / 100)).$(($1 % 100 / 10))$(($1 % 10))" cat
    case $? in
    0) exit 0 ;;
    124) ;;
    *) command -p sleep 0.1 ;;
    esac
}

wait_at_least() {
    take_time
    over=$((now + $1))
    while [ "$now" -lt "$over" ]; do
        step=$((over - now))
        [ "$output" -eq 0 ] || check_output
        pause "$step"
        take_time
    done
}

no_later_than() {
    [ "$1" -ge "$step" ] || step=$1
}

check_wall() {
    left=$((started + wall - now))
    [ "$left" -gt 0 ] || end_run wall
    no_later_than "$left"
}

# It holds the pipe, and nobody else was given it. An executor may write another pid into the pipe, or keep it open when
# the keeper has ended and its pid is somebody else's.
end_without_keeper() {
    [ "/proc/$keeper/fd/8" -ef /proc/self/fd/0 ] || exit 0
}

# By the keeper's own descriptors: names in the run directory are the executor's to change.
look_at_output() {
    end_without_keeper
    sizes=$(command -p stat -L -c %s "/proc/$keeper/fd/1" "/proc/$keeper/fd/2")
    [ $? -lt 128 ]
}

# What was suspended together with this process was not idle then.
check_idle() {
    [ $((now - looked_at)) -le $((step_before + 100)) ] || last_output=$now
    if ! look_at_output; then
        step=10
        return
    fi
    [ "$sizes" = "$last_sizes" ] || last_output=$now
    last_sizes=$sizes
    left=$((last_output + idle - now))
    [ "$left" -gt 0 ] || end_run idle
    no_later_than "$((idle / 8 > 10 ? idle / 8 : 10))"
}

# Of both streams together OUTPUT bytes are kept. One that is short leaves the rest of its half to the other.
# output.py does the same, more often.
check_output() {
    no_later_than 500
    look_at_output || return
    [ "$sizes" != "$bounded_sizes" ] || return
    # shellcheck disable=SC2086
    set -- $sizes
    [ $# -eq 2 ] || return
    half=$((output / 2))
    drop_middle 1 "$1" "$(($2 < half ? output - $2 : half))"
    drop_middle 2 "$2" "$(($1 < half ? output - $1 : half))"
    bounded_sizes=$sizes
}

# In whole blocks of 64 KiB, which every file system gives back.
drop_middle() {
    begin=$((($3 / 2 + 65535) / 65536 * 65536))
    end=$((($2 - $3 / 2) / 65536 * 65536))
    [ "$end" -gt "$begin" ] || return
    command -p fallocate -p -o "$begin" -l "$((end - begin))" "/proc/$keeper/fd/$1"
    no_later_than 20
}

# Pids by parent or session, of which $1 is one or several with "|" between them. By the fields after the name: state,
# parent, group, session. Matched to the end of the line, for a process may call itself anything, and by grep, for the
# shell would read every process of the machine byte by byte.
find_processes() {
    for try in 1 2 3; do
        found=$(command -p grep -slE "\\) [A-Za-z] (($1) |-?[0-9]+ -?[0-9]+ ($1) )[-0-9 ]*\$" /proc/[0-9]*/stat)
        [ $? -gt 128 ] || break
    done
    pids=
    for file in $found; do
        pid=${file#/proc/}
        pids="$pids ${pid%/stat}"
    done
}

# Children of the keeper, and whoever is in a session of one of them or of the keeper.
signal_tree() {
    end_without_keeper
    find_processes "$keeper"
    leaders=$keeper
    for pid in $pids; do
        leaders="$leaders|$pid"
    done
    find_processes "$leaders"
    for pid in $pids; do
        [ "$pid" != "$keeper" ] || continue
        for signal in "$@"; do
            kill -s "$signal" "$pid"
        done
    done
}

# An exit that is recorded is how the run ended, whatever it has left behind.
has_not_ended() {
    for try in 1 2 3; do
        recorded=$(command -p head -c 64 "$record")
        [ $? -gt 128 ] || break
    done
    case $recorded in
    *[!\ ]*) return 1 ;;
    esac
}

# The keeper itself is spared, for it records the exit. It adopts what its children leave behind, so
# killing its children again and again ends the whole tree.
end_run() {
    end_without_keeper
    if has_not_ended; then
        printf '%-63s\n' "$1 end" >&7
        command -p sync /proc/self/fd/7
    fi
    signal_tree TERM CONT
    wait_at_least "$grace"
    while :; do
        signal_tree KILL
        kill -s CONT "$keeper"
        wait_at_least 20
    done
}

[ -n "$keeper" ] || read -r keeper || exit 0
# Without a number every process would be a child of it.
[ "$keeper" -gt 1 ] || exit 0
now=0
take_time
started=$now
last_output=$now
last_sizes=
bounded_sizes=
step=0
while :; do
    looked_at=$now
    take_time
    step_before=$step
    step=360000
    [ "$wall" -eq 0 ] || check_wall
    [ "$idle" -eq 0 ] || check_idle
    [ "$output" -eq 0 ] || check_output
    pause "$step"
done
