"""`python -m moeprof` is the command `moeprof`."""

from moeprof.cli import main

main()
