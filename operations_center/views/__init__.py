"""What a person asks: how is everything, why does this task not run, why was that run judged so. Reads only."""
