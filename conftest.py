"""Settings of every test of this repository."""

import signal

pytest_plugins = ["tests.helpers.skips", "tests.helpers.leftovers"]

# A job in the background of a script (`nohup make test &`) starts with SIGINT and SIGHUP ignored, and hands that on to
# its children.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
