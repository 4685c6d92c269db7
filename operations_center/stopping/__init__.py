"""Stop things and wait until they have ended: a run, every run, the fleet.

Nothing here decides how a run ends: a stop is stored, and the one reconciliation is driven until the run is
closed. So it works with a fleet, which does the same at the same time, and without one.

    runs.py      end a run, cancel a task, end every run
    fleet.py     take the fleet down
    restart.py   restart watchers, one after the other
    ends.py      wait for the end of processes and runs
"""
