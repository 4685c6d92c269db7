# Ends a run that is past its limits, whether or not a watcher lives.
#
#   sh -c TEXT timer WALL IDLE GRACE        centiseconds; 0: no such limit
#
# Working directory: the run directory. stdin: a pipe whose only writer is the keeper, so that it ends
# exactly when the keeper does.

wall=$1
idle=$2
grace=$3

take_time() {
    read -r uptime _ </proc/uptime
    now=${uptime%.*}${uptime#*.}
    now=${now#0}
    now=${now#0}
}

# Returns when the time has passed; ends this process when the keeper has.
pause() {
    command -p timeout "$(($1 / 100)).$(($1 % 100 / 10))$(($1 % 10))" cat >/dev/null
    [ $? -eq 124 ] || exit 0
}

check_wall() {
    left=$((started + wall - now))
    [ "$left" -gt 0 ] || end_run wall
    [ "$left" -ge "$step" ] || step=$left
}

# What stood still together with this process was not idle meanwhile.
check_idle() {
    [ $((now - looked_at)) -le $((step_before + 100)) ] || last_output=$now
    sizes=$(command -p stat -L -c %s stdout stderr)
    [ "$sizes" = "$last_sizes" ] || last_output=$now
    last_sizes=$sizes
    left=$((last_output + idle - now))
    [ "$left" -gt 0 ] || end_run idle
    look_again=$((idle / 8 > 10 ? idle / 8 : 10))
    [ "$look_again" -ge "$step" ] || step=$look_again
}

# Children of the keeper and members of its session, by the fields after the name: state, parent, group, session.
# Matched to the end of the line, for a process may call itself anything, and by grep, for the shell would read
# every process of the machine byte by byte.
signal_tree() {
    fields="\\) [A-Za-z] ($keeper|[0-9]+ -?[0-9]+ $keeper) [-0-9 ]*\$"
    for file in $(command -p grep -slE "$fields" /proc/[0-9]*/stat); do
        pid=${file#/proc/}
        pid=${pid%/stat}
        [ "$pid" != "$keeper" ] || continue
        for signal in "$@"; do
            kill -s "$signal" "$pid"
        done
    done
}

# An exit that is recorded is how the run ended, whatever it has left behind.
has_not_ended() {
    recorded=
    # A FIFO that the executor has put in its place would keep us waiting.
    [ ! -f exit ] || read -r recorded <exit
    [ -z "$recorded" ]
}

# The keeper itself is spared, for it records the exit. It adopts what its children leave behind, so
# killing its children again and again ends the whole tree.
end_run() {
    if has_not_ended; then
        printf '%-63s\n' "$1 end" 1<>timed_out
        command -p sync timed_out
    fi
    signal_tree TERM CONT
    pause "$grace"
    while :; do
        signal_tree KILL
        kill -s CONT "$keeper"
        pause 20
    done
}

read -r keeper || exit 0
take_time
started=$now
last_output=$now
last_sizes=
step=0
while :; do
    looked_at=$now
    take_time
    step_before=$step
    step=360000
    [ "$wall" -eq 0 ] || check_wall
    [ "$idle" -eq 0 ] || check_idle
    pause "$step"
done
