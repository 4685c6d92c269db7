"""Other supervisors and job queues, measured in the same run as ours. See README.md."""

def restarts(settings, *, quick): return {}
def footprints(settings, *, quick): return {}
