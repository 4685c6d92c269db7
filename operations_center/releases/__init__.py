"""Releases: immutable directories, one for each commit, with the code and the programs that a fleet works with."""
