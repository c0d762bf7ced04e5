"""The exit codes, the same for ever."""

EXIT_FINE = 0
EXIT_FAILED = 1
EXIT_PENDING = 2
EXIT_USAGE = 64
EXIT_FINDINGS = 79
