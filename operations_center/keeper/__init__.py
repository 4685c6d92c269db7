"""Start a run so that it outlives us, look at it, end its tree.

    launch.py    makes the run directory and starts keeper and timer; revokes a run that has not begun
    keeper.sh    holds the lock, wins the gate, runs the executor, records its exit, ends last
    timer.sh     lives as long as the keeper and ends the run when it is past its limits
    script.py    runs a script of ours so that its command line shows nothing of it
    timer.py     starts a timer, and another one where it has died
    executor.py  who leads the executor's session, as the kernel shows it
    output.py    drops the middle of what a run prints beyond its bound
    inspect.py   what the run's files and the process table say
    result.py    what the executor says of itself
    processes.py the processes themselves, as a parameter: who lives, signals, starts
    stop.py      signals to a run's tree
    cgroup.py    a cgroup for each run, where the machine lets us

A run directory (0700) holds:

    task.json, prompt    what the executor was given
    lock                 an flock that the keeper holds as long as it lives
    gate                 who decided whether the run starts: ``PID TICKS end``, or a link to ``revoked``
    exit                 64 bytes, blank until the keeper records ``exit CODE end``
    timed_out            64 bytes, blank until the timer records ``wall end`` or ``idle end``
    stdout, stderr       the executor's output, append only
    result.json          the executor's own result, if it wrote one
    work/                the working directory, unless one is configured

The two records are overwritten in place in blocks that exist already, so that a full disk cannot swallow
them; the end mark tells a whole one from a torn one. Keeper and timer write them by descriptors that were opened before
the executor began, so that nothing which it puts in their place leads them elsewhere.
"""
