"""Stop things and wait until they have ended: a run, every run, the fleet; and settle what only a person can judge.

How a run ends is decided by a person in ``resolving.py`` and by nothing else here: a stop is stored, and the one
reconciliation is driven until the run is closed. So it works with a fleet, which does the same at the same time, and
without one.

    runs.py       end a run, cancel a task, end every run
    resolving.py  settle a run by a person's word
    fleet.py      take the fleet down
    restart.py    restart watchers, one after the other
    ends.py       wait for the end of processes and runs
    hindrances.py what cannot be ended from here
    last_resort.py end runs where the ledger cannot be written
"""
