"""Compiling ahead: what tests need compiled is begun as the session starts, on idle cores.

Those tests come last, in a second process (beside.py). A job is (function, *arguments); conftest.py asks each
test's module for the test's jobs.
"""

import contextlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

# Runs a command in a group of its own, so that what it starts ends with it. Not in a session of its own, within which
# alone its priority might count.
APART = "import os, sys; os.setpgrp(); os.nice(10); os.execvp(sys.argv[1], sys.argv[1:])"

_workers = ThreadPoolExecutor(os.cpu_count())
_begun = {}  # job: its future
_commands = set()


class Needed:
    """A variable of a test module that is compiled before it can be used."""

    def jobs(self, item):
        """What a test needs done."""
        raise NotImplementedError


def parameters(item):
    """Those of pytest.mark.parametrize and of fixtures, by name."""
    return item.callspec.params if hasattr(item, "callspec") else {}


def jobs(item):
    """Of everything in the test's module."""
    held = vars(getattr(item, "module", None) or object).values()
    return [job for value in held if isinstance(value, Needed) for job in value.jobs(item)]


def begin(jobs):
    for job in jobs:
        if job not in _begun:
            _begun[job] = _workers.submit(*job)


def call(*job):
    """What the job returns or raises: waits for it if it is under way, and does it here if it has not begun."""
    if job not in _begun or _begun[job].cancel():
        _begun.pop(job, None)
        return job[0](*job[1:])
    return _begun[job].result()


def run(command, **options):
    """As subprocess.run, for jobs: gives way to the tests, which use several threads, and ends with the session."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-IS", "-c", APART, *command], **pipes, **options) as process:
        _commands.add(process)
        output, errors = process.communicate()
        _commands.discard(process)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def end():
    """Leaves undone what nobody waits for."""
    _workers.shutdown(wait=False, cancel_futures=True)
    for process in list(_commands):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
