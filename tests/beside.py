"""Runs some of a session's tests in a second process, beside the others, and reports them where their turn comes.

Where that process ends early, the tests that it leaves run in the session itself.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading

TESTS, REPORTS = "FASTSEG_TESTS_BESIDE", "FASTSEG_REPORTS_BESIDE"  # set in the second process: a file, a pipe


class Beside:
    """The first process's side: a plugin of its session."""

    def __init__(self, config, items):
        self.config, self.left = config, {item.nodeid for item in items}
        self.arrived, self.reports = queue.SimpleQueue(), {}
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(sorted(self.left), file)
        self.tests = file.name
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--tb={config.option.tbstyle}"]
        files = dict.fromkeys(item.nodeid.split("::")[0] for item in items)
        self.process = subprocess.Popen(
            ["nice", *command, *files],  # gives way to the other tests, which use several threads
            cwd=config.rootpath,
            env=os.environ | {TESTS: self.tests, REPORTS: str(writing)},
            pass_fds=[writing],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(writing)
        threading.Thread(target=self.read, args=[reading], daemon=True).start()

    def read(self, reading):
        with open(reading) as lines:
            for line in lines:
                self.arrived.put(json.loads(line))
        self.arrived.put(None)

    def pytest_runtest_protocol(self, item):
        if item.nodeid not in self.left:
            return None
        while (reports := self.reports.setdefault(item.nodeid, [])) == [] or reports[-1].when != "teardown":
            told = self.arrived.get()
            if told is None:
                self.left.clear()
                return None
            report = self.config.hook.pytest_report_from_serializable(config=self.config, data=told)
            self.reports.setdefault(report.nodeid, []).append(report)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.reports.pop(item.nodeid):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self):
        self.process.send_signal(signal.SIGINT)  # it then ends what it has started
        self.process.wait()
        os.unlink(self.tests)


class Told:
    """The second process's side: keeps to the tests it is given, and tells how they went."""

    def __init__(self, config):
        self.config = config
        with open(os.environ.pop(TESTS)) as file:
            self.given = set(json.load(file))
        self.reports = os.fdopen(int(os.environ.pop(REPORTS)), "w", buffering=1)
        os.set_inheritable(self.reports.fileno(), False)

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid in self.given]

    def pytest_runtest_logreport(self, report):
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        print(json.dumps(data), file=self.reports)


def take_part(config):
    """As the second process, where this is it."""
    if TESTS in os.environ:
        config.pluginmanager.register(Told(config))


def start(config, items):
    config.pluginmanager.register(Beside(config, items))
