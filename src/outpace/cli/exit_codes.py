"""Exit codes beside 0 (done), 1 (a check failed) and 2 (an error)."""

INTERRUPTED = 130  # as a shell reports a process that Ctrl-C ended
READER_GONE = 141  # as a shell reports a process that SIGPIPE ended
