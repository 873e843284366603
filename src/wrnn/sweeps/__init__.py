"""Sweeps that cannot be lost: every run in a process and a folder of its own, with a record of how it ended.

A sweep folder, `runs/<sweep>/`, holds a folder `<run_name>-<hash>` for each run, where the hash is of all that changes
the result (`wrnn.config.fingerprint`); so the same sweep, started again, finds what it has done. Of this package only
the child process imports torch: the controller and its workers stay small.
"""
